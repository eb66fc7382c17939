"""The same weights in huggingface/peft and here give the same outputs and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from peftc.emit.artifact import Artifact
from peftc.graph.sites import Projection, Site
from peftc.plan import Placement
from peftc.runtime import attach
from tests.laws import Entry, emitted, move, spec, trace
from tests.zoo import DECODERS, ZOO, Tiny, fresh, inputs, named

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
LENGTH, HIDDEN = 4, 9
Pair = tuple[str, Tensor, Callable[[Tensor], Tensor]]  # ours, theirs, and the part of theirs that ours is
Pairs = list[Pair]


def compiled(tiny: Tiny, entry: Entry) -> tuple[tuple[Placement, ...], Artifact]:
    program, artifact = emitted(spec([entry], tiny), trace(tiny))
    return program.plan.placements, artifact


def module(path: str, site: Site) -> str:
    """The full name of a projection."""
    assert isinstance(site, Projection)
    return f"{path}.{site.module}"


def suffixes(tiny: Tiny, sites: tuple[str, ...]) -> list[str]:
    """The full names of the projections, so that peft matches no other module."""
    places = (layer.find(site) for layer in trace(tiny).layers for site in sites)
    return sorted({module(place[0], place[2]) for place in places if place})


def fused(tiny: Tiny) -> bool:
    place = trace(tiny).layers[0].find("q")
    return place is not None and isinstance(place[2], Projection) and place[2].rows is not None


def part_of(site: Site) -> Callable[[Tensor], Tensor]:
    """The rows of a fused projection that are one of its parts; all of it where it is not fused."""
    rows = site.rows if isinstance(site, Projection) else None
    return whole if rows is None else lambda tensor: tensor[list(rows)]


def whole(tensor: Tensor) -> Tensor:
    return tensor


def copied(ours: Any, pairs: Pairs) -> Any:
    with torch.no_grad():
        for name, theirs, part in pairs:
            ours.get_parameter(name).copy_(part(theirs).reshape(ours.get_parameter(name).shape))
    return ours


def compare(ours: Any, theirs: Any, pairs: Pairs, tiny: Tiny, shift: int = 0, tolerance: float = 1e-5) -> None:
    """Outputs and gradients, padded and not, in training and not, dropout seeded."""
    for padded in (False, True):
        given = inputs(ours, padded, causal=tiny.causal)
        moved = {"position_ids": shift + torch.arange(given["input_ids"].shape[1])[None]} if shift else {}
        real = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
        for training in (False, True):
            found, expected = run(ours.train(training), {**given, **moved}), run(theirs.train(training), given)
            if found.shape[:2] == real.shape:
                found, expected = found[real], expected[real]
            scale = max(1.0, float(expected.detach().abs().max()))
            torch.testing.assert_close(found, expected, atol=scale * tolerance, rtol=tolerance)
            for one, output in ((ours, found), (theirs, expected)):
                one.zero_grad()
                output.float().square().mean().backward()
            gradients(ours, pairs, tolerance)


def run(model: Any, given: dict[str, Any]) -> Tensor:
    torch.manual_seed(3)
    found: Tensor = model(**given)[0]
    return found


def gradients(ours: Any, pairs: Pairs, tolerance: float) -> None:
    """Each of ours equals that part of theirs; several of ours that were copied from all of one add up to it."""
    sums: dict[int, Tensor] = {}
    for name, theirs, part in pairs:
        own = ours.get_parameter(name).grad
        assert own is not None and theirs.grad is not None
        if part is whole:
            sums[id(theirs)] = sums.get(id(theirs), torch.zeros_like(own)) + own
        else:
            near(own, part(theirs.grad).reshape(own.shape), tolerance, name)
    for name, theirs, part in pairs:
        if part is whole and theirs.grad is not None:
            near(sums[id(theirs)], theirs.grad.reshape(sums[id(theirs)].shape), tolerance, name)


def near(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, atol=scale * tolerance, rtol=tolerance, msg=lambda m: f"{name}: {m}")


ALL = pytest.mark.parametrize("tiny", ZOO, ids=lambda tiny: tiny.name)
CAUSAL = pytest.mark.parametrize("tiny", DECODERS, ids=lambda tiny: tiny.name)


@ALL
@pytest.mark.parametrize(
    ("sites", "sqrt", "dtype"),
    [
        (("q", "v"), False, torch.float32),
        (("q", "k", "v", "o", "ffn_up", "ffn_down"), True, torch.float32),
        (("q", "v"), False, torch.bfloat16),
    ],
    ids=["q and v", "all, sqrt", "bf16"],
)
def test_lora(tiny: Tiny, sites: tuple[str, ...], sqrt: bool, dtype: torch.dtype) -> None:
    sites = tuple(dict.fromkeys((*sites, "k"))) if fused(tiny) else sites
    base = fresh(tiny).to(dtype)
    targets = suffixes(tiny, sites)
    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=sqrt, target_modules=targets, fan_in_fan_out=fused(tiny))
    theirs: Any = peft.get_peft_model(copy.deepcopy(base), config)
    move(p for name, p in theirs.named_parameters() if "lora_" in name)
    scaling = "sqrt" if sqrt else "rank"
    entry = {"method": "lora", "at": list(sites), "rank": 3, "alpha": 5, "scaling": scaling}
    placements, artifact = compiled(tiny, entry)
    pairs: Pairs = []
    for placed in placements:
        layer = theirs.base_model.model.get_submodule(module(placed.path, placed.site))
        name = f"{placed.path}.{placed.name}"
        pairs.append((f"{name}.A", layer.lora_A["default"].weight, whole))
        pairs.append((f"{name}.B", layer.lora_B["default"].weight, part_of(placed.site)))
    ours = copied(attach(base, artifact), pairs)
    compare(ours, theirs, pairs, tiny, tolerance=1e-5 if dtype is torch.float32 else 0.1)


@ALL
def test_ia3(tiny: Tiny) -> None:
    sites = ("q", "k", "v", "ffn_down") if fused(tiny) else ("k", "v", "ffn_down")
    base = fresh(tiny)
    inner = suffixes(tiny, ("ffn_down",))
    options: dict[str, Any] = {
        "target_modules": suffixes(tiny, sites),
        "feedforward_modules": inner,
        "fan_in_fan_out": fused(tiny),
    }
    theirs: Any = peft.get_peft_model(copy.deepcopy(base), peft.IA3Config(**options))
    move(p for name, p in theirs.named_parameters() if "ia3_l" in name)
    placements, artifact = compiled(tiny, {"method": "ia3", "at": list(sites)})
    pairs: Pairs = []
    for placed in placements:
        layer = theirs.base_model.model.get_submodule(module(placed.path, placed.site))
        pairs.append((f"{placed.path}.{placed.name}.l", layer.ia3_l["default"], part_of(placed.site)))
    compare(copied(attach(base, artifact), pairs), theirs, pairs, tiny)


@CAUSAL
@pytest.mark.parametrize("projection", [False, True], ids=["", "projection"])
def test_prefix(tiny: Tiny, projection: bool) -> None:
    """Their prefix stands in the cache, so that the positions move on by its length; ours moves nothing."""
    base = fresh(tiny)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=projection, encoder_hidden_size=HIDDEN
    )
    theirs: Any = peft.get_peft_model(copy.deepcopy(base), config)
    entry = {"method": "prefix", "length": LENGTH, **({"reparametrize": {"hidden": HIDDEN}} if projection else {})}
    placements, artifact = compiled(tiny, entry)
    ours = attach(base, artifact)
    encoder = theirs.prompt_encoder["default"]
    move(encoder.parameters())
    pairs = _trunk(ours, encoder) if projection else list(_tables(placements, encoder))
    compare(copied(ours, pairs), theirs, pairs, tiny, shift=LENGTH)


def _tables(placements: tuple[Placement, ...], encoder: Any) -> Iterator[Pair]:
    for index, placed in enumerate(placements):
        for offset, word in enumerate(("key", "value")):

            def part(tensor: Tensor, at: int = 2 * index + offset) -> Tensor:
                return tensor.reshape(LENGTH, 2 * len(placements), -1)[:, at]

            yield f"{placed.path}.{placed.name}.{word}", encoder.embedding.weight, part


def _trunk(ours: Any, encoder: Any) -> Pairs:
    """Theirs embeds in the width of the keys, ours in that of the layers: where ours is wider, the rest is cut off."""
    trunk = ours.prefix_trunk
    narrow = encoder.embedding.weight.shape[1]
    trunk.E = torch.nn.Parameter(trunk.E.detach()[:, :narrow].clone())
    trunk.W1 = torch.nn.Parameter(trunk.W1.detach()[:, :narrow].clone())
    first, last = encoder.transform[0], encoder.transform[2]
    return [
        ("prefix_trunk.E", encoder.embedding.weight, whole),
        ("prefix_trunk.W1", first.weight, whole),
        ("prefix_trunk.b1", first.bias, whole),
        ("prefix_trunk.W2", last.weight, whole),
        ("prefix_trunk.b2", last.bias, whole),
    ]


def test_bitfit() -> None:
    """Their nearest: LoRA with every bias; the names that train, the head and LoRA left out."""
    tiny = named("bert")
    base = fresh(tiny)
    config = peft.LoraConfig(target_modules=suffixes(tiny, ("q",)), bias="all")
    theirs: Any = peft.get_peft_model(copy.deepcopy(base), config).base_model.model
    expected = {n.replace(".base_layer", "") for n, p in theirs.named_parameters() if p.requires_grad}
    ours = attach(base, compiled(tiny, {"method": "bitfit"})[1])
    found = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert found == {name for name in expected if "lora_" not in name and not name.startswith("classifier.")}
