"""What forwards do that tracing must follow or refuse aloud: each on a tiny block around one attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.graph.branches import assume
from peftc.trace import trace_model
from tests.trace.nets import IDS, WIDTH, Attending, Block, Net, attached, made, sites


class Activated(Block):
    """Calls a module that it makes on the way."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = nn.Softmax(dim=-1)(x)
        return result


class Making(Block):
    """Uses a tensor that no input is in."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x + torch.arange(WIDTH, device=x.device)


class Scaled(Block):
    """Reads a number of a module in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Identity()])
        self.inner[0].scale = 0.5  # type: ignore[assignment]

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x * self.inner[0].scale  # type: ignore[operator]


class Operating(Block):
    """Calls an operator of torch by its full name."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten.tanh(x)
        return result


class Copying(Block):
    """Writes parts of one tensor into another."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result = torch.zeros_like(x)
        result[:, 1:, :-1] = x[:, 1:, :-1]
        return result


@pytest.mark.parametrize("kind", [Block, Activated, Making, Scaled, Operating, Copying])
def test_a_forward_is_followed(kind: type[nn.Module]) -> None:
    model = made(kind)
    assert all(
        {"q", "k", "v", "o", "attention", "ffn_up", "ffn_down", "ffn"} <= set(names)
        for names in sites(trace_model(model))
    )
    attached(model)


class Paired(Attending):
    """Hands out a bias too, where it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.bias: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, **kwargs: Any) -> Any:
        return super().forward(x), self.bias


class Biased(Block):
    """Adds a bias that its attention may hand out."""

    attends = Paired

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        made, bias = self.attention(x)
        x = x + (made if bias is None else made + bias.expand_as(made))
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


def test_what_a_call_does_not_give_is_checked() -> None:
    model = made(Biased)
    assert all("ffn" in names for names in sites(trace_model(model)))
    changed: Any = attached(model, {"method": "adapter", "bottleneck": 2})
    changed.blocks[1].attention.bias = torch.zeros(WIDTH)
    with pytest.raises(ValueError, match="Biased is not compiled"):
        changed(IDS)


class Routed(Block):
    """Looks at values: which rows to send through an expert, and whether there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.router(x)
        return result


class Router(nn.Module):
    """One of two experts for each position; a bias corrects the choice and reaches no output."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(WIDTH, 2, bias=False)
        self.choice_bias = nn.Parameter(torch.zeros(2))
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, result = (self.scores(x) + self.choice_bias).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero(as_tuple=True)
            if bool(chosen.max() > number + 1):
                raise ValueError("no such expert")
            result[rows] = expert(x[rows]).to(result.dtype)
        return result


def test_values_that_are_not_there_stop_no_recording() -> None:
    model = made(Routed)
    assert all({"q", "v", "attention"} <= set(names) for names in sites(trace_model(model)))
    attached(model, {"method": "lora", "at": ["q", "v"], "rank": 2})


def test_a_bias_that_only_decides_is_none_to_train() -> None:
    parameters = trace_model(made(Routed)).parameters
    biases = {name for name, parameter in parameters.items() if parameter.is_bias}
    assert "blocks.0.router.experts.0.bias" in biases
    assert not any(name.endswith("choice_bias") for name in biases)


class Asking(Block):
    """Reads one of its own **kwargs."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        shift = kwargs.get("shift")
        if shift is not None:
            x = x + shift
        return super().forward(x)


def test_keywords_that_a_forward_reads_are_followed() -> None:
    for given in ({"shift": torch.tensor(2.0)}, {"other": torch.tensor(2.0)}, {}):
        model = made(Asking, given)
        changed: Any = attached(model)
        changed.given = {"shift": torch.tensor(3.0)} if "shift" not in given else {}
        with pytest.raises(ValueError, match="shift"):
            changed(IDS)


class Handing(Block):
    """Hands its **kwargs to a module that is inlined, whose parameter one of them is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Shifting()

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.inner(x, **kwargs)
        return result


class Shifting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.norm(x) if shift is None else self.norm(x + shift)
        return result


def test_keywords_that_are_handed_on_are_followed() -> None:
    for traced in ({}, {"shift": torch.tensor(2.0)}):
        changed: Any = attached(made(Handing, traced))
        for given in ({}, {"shift": torch.tensor(3.0)}):
            changed.given = given
            torch.testing.assert_close(changed(IDS), made(Handing, given)(IDS))


class Broken(Attending):
    """Does what no trace can follow."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result = super().forward(x)
        return result if x.shape[1] > 8 else result + 0.0


class Halting(Block):
    attends = Broken


def test_what_cannot_be_traced_stays_and_says_why() -> None:
    model = made(Halting)
    trace = trace_model(model)
    assert set(trace.untraced) == {"blocks.0.attention", "blocks.1.attention"}
    attached(model, {"method": "adapter", "bottleneck": 2})
    said = r"has no site 'q'(.|\n)*not traced: Broken: a branch on x.shape\[1\] > 8 \(line"
    with pytest.raises(peftc.PeftcError, match=said):
        attached(model, {"method": "lora", "at": ["q"], "rank": 2})


def test_among_layers_the_one_without_a_trace_says_why() -> None:
    """A block before it that has nothing of an attention has as little to say of one."""
    plain = Block()
    plain.attention = nn.Identity()
    said = r"has no site 'q'(.|\n)*not traced: Broken: a branch"
    with pytest.raises(peftc.PeftcError, match=said):
        attached(Net([plain, Halting()]), {"method": "lora", "at": ["q"], "rank": 2})


class Sorted(nn.Module):
    """Behind its sum, a method that looks at values: which rows to send through which expert."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.experts = nn.Linear(12, WIDTH), nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, made: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.routed(self.down(made) + x)

    def routed(self, x: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = x[..., 0].gt(0) == bool(number)
            result[rows] = expert(x[rows])
        return result


class Sorting(Block):
    def __init__(self) -> None:
        super().__init__()
        self.after = Sorted()

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = x + self.attention(x)
        result: torch.Tensor = self.after(torch.relu(self.up(x)), x)
        return result


def test_a_method_that_cannot_be_followed_stays_a_call() -> None:
    model = made(Sorting)
    trace = trace_model(model)
    assert not trace.untraced
    assert all({"ffn", "ffn_down"} <= set(names) for names in sites(trace))
    attached(model, {"method": "adapter", "bottleneck": 2}, {"method": "bitfit"})


class Stage(nn.Module):
    """Blocks in a row: no layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x[:, ::2] if x.shape[1] > 1 else x


def test_blocks_in_stages_are_the_layers() -> None:
    trace = trace_model(Net([Stage(), Stage()]).eval())
    assert [layer.path for layer in trace.layers] == [f"blocks.{i}.steps.{j}" for i in (0, 1) for j in (0, 1)]
    assert [layer.index for layer in trace.layers] == [0, 1, 2, 3]


def test_a_twin_of_other_sizes_is_run() -> None:
    model = Net([Stage(), Stage()]).eval()
    attached(model)


def test_what_a_check_says_is_in_the_graph() -> None:
    unit = next(unit for unit in trace_model(made(Asking)).units if unit.base is Asking)
    assert [n.args[0] for n in unit.graph.nodes if n.target is assume] == ['kwargs.get("shift") is not None']
