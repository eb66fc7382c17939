"""Each pasted module against its equation, written out again; dtypes; initial values."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch
from torch import nn

from peftc import modules

MODULES = (
    modules.LoRA(6, 4, 2, 0.5),
    modules.LoRAEmbedding(9, 4, 2, 0.5),
    modules.Adapter(6, 3, "gelu_tanh", scale=4.0),
    modules.IA3(6),
    modules.Prefix(3, 4, 4),
    modules.PrefixTrunk(3, 6, 5, (4, 4, 2, 2)),
    modules.SequenceGate(6),
    modules.MaskedGate(6),
    modules.TokenGate(6),
    modules.ConstantGate(),
    modules.CentralGate(6, 2),
)

Addition = (
    modules.LoRA
    | modules.LoRAEmbedding
    | modules.Adapter
    | modules.IA3
    | modules.Prefix
    | modules.PrefixTrunk
    | modules.SequenceGate
    | modules.MaskedGate
    | modules.TokenGate
    | modules.ConstantGate
    | modules.CentralGate
)
A = TypeVar("A", bound=Addition)


@dataclass
class Draws:
    """Draws for one shape, from one generator."""

    shape: torch.Size
    generator: torch.Generator

    def normal(self, std: float) -> torch.Tensor:
        return std * torch.randn(self.shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, bound: float) -> torch.Tensor:
        return bound * (2 * torch.rand(self.shape, generator=self.generator, dtype=torch.float64) - 1)

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=torch.float64)

    def ones(self) -> torch.Tensor:
        return torch.ones(self.shape, dtype=torch.float64)


def initialised(module: A, noise: float = 0.0) -> A:
    module, generator = copy.deepcopy(module), torch.Generator().manual_seed(0)
    for name, p in module.named_parameters():
        p.data.copy_(module.initial(name, Draws(p.shape, generator)))
        p.data.add_(noise * torch.randn(p.shape, generator=generator))
    return module


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_no_parameter_is_a_scalar(module: Addition) -> None:
    """FSDP shards none."""
    assert all(p.dim() > 0 for p in module.parameters())


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_initial_values_have_the_shapes(module: Addition) -> None:
    for name, p in module.named_parameters():
        assert module.initial(name, Draws(p.shape, torch.Generator())).shape == p.shape


def test_lora() -> None:
    module, x = initialised(MODULES[0], 0.3), torch.randn(2, 5, 6)
    torch.testing.assert_close(module(x), 0.5 * x @ module.A.T @ module.B.T)
    assert not initialised(MODULES[0])(x).any()
    bound = initialised(modules.LoRA(100, 4, 50)).A.abs().max()
    assert 0.09 < bound <= 1 / math.sqrt(100)


def test_lora_dropout_acts_in_training_alone() -> None:
    module, x = initialised(modules.LoRA(6, 4, 2, dropout=0.5), 0.3), torch.ones(1, 400, 6)
    assert module.eval()(x).unique(dim=1).shape[1] == 1
    assert module.train()(x).unique(dim=1).shape[1] > 1


def test_lora_of_an_embedding_is_lora_of_its_one_hot() -> None:
    module, ids = initialised(MODULES[1], 0.3), torch.tensor([[0, 8, 3]])
    hot = nn.functional.one_hot(ids, 9).float()
    torch.testing.assert_close(module(ids), 0.5 * hot @ module.A @ module.B.T)
    assert not initialised(MODULES[1])(ids).any()


def test_ids_of_a_table_that_grew_have_no_delta() -> None:
    module = initialised(MODULES[1], 0.3)
    delta = module(torch.tensor([[3, 9, 0, 15]]))
    torch.testing.assert_close(delta[0, [0, 2]], module(torch.tensor([3, 0])))
    assert not delta[0, [1, 3]].any()


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "mish", "relu6", "selu"]
)
def test_adapter(name: str) -> None:
    module, x = initialised(modules.Adapter(6, 3, name, scale=4.0), 0.3), torch.randn(2, 5, 6)
    inner = getattr(nn.functional, name)(x @ module.down.T + module.down_bias)
    torch.testing.assert_close(module(x), 4 * (inner @ module.up.T + module.up_bias))
    assert not initialised(module)(x).any()


def test_adapter_with_the_approximate_gelu() -> None:
    module, x = initialised(MODULES[2], 0.3), torch.randn(2, 6)
    h = x @ module.down.T + module.down_bias
    inner = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(module(x), 4 * (inner @ module.up.T + module.up_bias))


def test_ia3() -> None:
    module, x, gate = initialised(MODULES[3], 0.3), torch.randn(2, 5, 6), torch.rand(2, 1, 1)
    torch.testing.assert_close(module(x), x * module.l)
    torch.testing.assert_close(module(x, gate), (1 - gate) * x + gate * x * module.l)
    assert torch.equal(initialised(module)(x), x)


def test_added_is_plain_addition_where_dtypes_agree() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, delta = torch.randn(50, dtype=dtype), torch.randn(50, dtype=dtype)
        assert torch.equal(modules.added(x, delta), x + delta)


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32])
def test_added_adds_in_the_wider_dtype_and_keeps_that_of_the_base(base: torch.dtype, own: torch.dtype) -> None:
    x, delta = torch.randn(50).to(base), torch.randn(50).to(own)
    total = modules.added(x, delta)
    assert total.dtype == base
    assert torch.equal(total, (x.double() + delta.double()).to(torch.promote_types(base, own)).to(base))


@pytest.mark.parametrize("module", [MODULES[0], MODULES[2], *MODULES[6:9], MODULES[10]], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_input_is_cast_to_the_modules_own_dtype(module: Addition, dtype: torch.dtype) -> None:
    module, x = initialised(module, 0.3), torch.randn(2, 5, 6).to(dtype)
    mask = (None,) if isinstance(module, modules.MaskedGate) else ()
    assert torch.equal(module(x, *mask), module(x.float(), *mask))


def test_under_autocast_gradients_reach_every_parameter_in_its_own_dtype() -> None:
    lora, gate, base = initialised(MODULES[0], 0.3), initialised(MODULES[6], 0.3), nn.Linear(6, 4)
    x = torch.randn(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = modules.added(base(x), gate(x) * lora(x))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert {p.grad.dtype for m in (lora, gate) for p in m.parameters() if p.grad is not None} == {torch.float32}


def test_trunk_gives_each_layer_its_rows() -> None:
    trunk = initialised(MODULES[5], 0.3)
    table = torch.tanh(trunk.E @ trunk.W1.T + trunk.b1) @ trunk.W2.T + trunk.b2
    found = torch.cat([part for index in range(2) for part in trunk(index)], dim=-1)
    torch.testing.assert_close(found, table)
    assert sum(p.numel() for p in trunk.parameters()) == 3 * 6 + 6 * 5 + 5 + 5 * 12 + 12


def test_a_slice_neither_saves_nor_counts_its_trunk() -> None:
    trunk = initialised(MODULES[5], 0.3)
    part = modules.PrefixSlice(trunk, 1)
    assert not part.state_dict() and not list(part.parameters())
    assert torch.equal(part()[0], trunk(1)[0])
    other_trunk, other_part = copy.deepcopy((trunk, part))
    assert other_part.trunk[0] is other_trunk
