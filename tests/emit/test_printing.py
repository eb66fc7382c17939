"""Patterns, literals, imports and pasted sources; and that a linter and a formatter leave a module alone."""

from __future__ import annotations

import ast
import math
import operator
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from transformers import BertConfig

from peftc.emit.blocks import Body, Branch
from peftc.emit.expressions import Globals, Printer
from peftc.emit.imports import arranged
from peftc.emit.layout import wrapped
from peftc.emit.literal import literal
from peftc.emit.machinery import expand
from peftc.emit.names import Names
from peftc.emit.provenance import base_config
from peftc.emit.sources import paste
from peftc.emit.statements import _Lines, forward
from peftc.errors import Defect
from peftc.graph.branches import Guard, assume, choose
from peftc.spec.layers import number
from peftc.spec.patterns import compress
from tests.emit.bases import bert, gpt2

NAMES = st.lists(st.sampled_from(["a", "layer", "3", "0", "12", "mlp2", "q"]), min_size=1, max_size=5).map(".".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    "text",
    [
        "mixed = (weights * normed.unflatten(-1, (count, size))).mean(dim=-2)", "row = table[first_long_name + second]",
        "alone = (one_long_name_of_a_value,)", "called = function(of_one_long_argument_that_is_alone)",
        "listed = [one_long_name_of_a_value + another]", "if not (one_long_condition and another_long_one): return",
    ],
)  # fmt: skip
def test_a_broken_line_says_the_same(text: str) -> None:
    lines = wrapped(text, 30)
    assert len(lines) > 1
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(text))


@given(st.lists(NAMES, unique=True))
def test_patterns_expand_to_exactly_the_names(names: list[str]) -> None:
    rows = [row for pattern in compress(names) for row in expand(pattern)]
    assert sorted(name for name, _ in rows) == sorted(names)
    assert all(layer == number(name) for name, layer in rows)


def test_patterns_read_well() -> None:
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1, 2, 5, 7, 8)]
    assert compress(["head", *names]) == ("head", "encoder.layer.{0-2, 5, 7-8}.attention.self")


@given(VALUES)
def test_a_literal_is_its_value(value: object) -> None:
    assert ast.literal_eval(literal(value)) == value


def test_what_is_no_finite_number_is_written_as_one() -> None:
    written = literal({"limits": [0.0, math.inf, -math.inf]})
    assert written == '{"limits": [0.0, float("inf"), float("-inf")]}'
    config = base_config(SimpleNamespace(config=BertConfig(layer_norm_eps=math.inf)))[1]  # type: ignore[arg-type]
    assert config == {"layer_norm_eps": math.inf}


def test_imports_are_merged() -> None:
    lines = ["from torch import nn", "import torch", "import math", "from a.b import c as base", "from torch import fx"]
    assert arranged(lines) == "import math\n\nimport torch\nfrom a.b import c as base\nfrom torch import fx, nn"


def test_pasted_sources_bring_what_they_use() -> None:
    pasted = paste(["LoRA"])
    assert [piece.name for piece in pasted.pieces] == ["LoRA"]
    assert pasted.imports == ("from torch import nn", "import math", "import torch")
    with pytest.raises(Defect, match="Nothing"):
        paste(["Nothing"])


@pytest.mark.parametrize("program", [bert, gpt2], ids=["bert", "gpt2"])
def test_a_module_is_the_same_twice_and_clean(program: object, tmp_path: Path) -> None:
    text = program().text  # type: ignore[operator]
    assert text == program().text  # type: ignore[operator]
    (tmp_path / "modeling_x.py").write_text(text)
    for command in (["check", "--select", "E,F,I,W,UP"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "--line-length", "120", str(tmp_path)], check=True)


def test_a_check_says_what_it_found() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    kinds: list[tuple[Any, bool]] = [(float, False), (torch.Tensor, True)]
    for kind, outcome in kinds:
        graph.call_function(assume, (graph.call_function(isinstance, (x, kind)), outcome, "recompile Unit"))
    graph.output(x)

    class Unit(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert forward(Unit, graph, {}).lines[1:5] == (
        "    if isinstance(x, float):",
        '        raise ValueError("recompile Unit: isinstance(x, float)")',
        "    if not isinstance(x, torch.Tensor):",
        '        raise ValueError("recompile Unit: not isinstance(x, torch.Tensor)")',
    )


def test_parameters_that_no_call_gave_or_each_are_checked_at_once_and_first() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["names"] = ["x", "residual"]
    turned = graph.call_function(torch.neg, (x,))
    for condition in ("mask is not None", "bias is not None", "past is None"):
        with graph.inserting_before(turned):
            graph.call_function(assume, (condition, False, "recompile Unit"))
    turned.meta["names"] = ["x"]
    graph.output((x, turned))

    class Unit(nn.Module):
        def forward(self, x: torch.Tensor, mask: Any = None, bias: Any = None, past: Any = None) -> torch.Tensor:
            return x

    printed = forward(Unit, graph, {})
    assert printed.functions == {"expect_given", "expect_none"}
    assert printed.lines[1:] == (
        "    expect_none(self, mask=mask, bias=bias)",
        "    expect_given(self, past=past)",
        "    residual = x",
        "    x = torch.neg(residual)",
        "    return residual, x",
    )


def test_a_value_is_checked_under_the_name_that_is_chosen_from_it() -> None:
    """length = x.size(0) if x is not None else 0, with a check of what size gives."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    guard = {"guard": (Guard("x is not None", True),), "names": []}
    size = graph.call_method("size", (x, 0))
    tensor: Any = torch.Tensor
    kind = graph.call_function(isinstance, (size, tensor))
    check = graph.call_function(assume, (kind, False, "Unit is not compiled for such inputs"))
    chosen = graph.call_function(choose, ("x is not None", size, 0))
    chosen.meta["names"] = ["length"]
    for node in (size, kind, check):
        node.meta.update(guard)
    graph.output(chosen)

    class Unit(nn.Module):
        def forward(self, x: torch.Tensor | None = None) -> int:
            return 0

    assert forward(Unit, graph, {}).lines[1:] == (
        "    if x is not None:",
        "        length = x.size(0)",
        "        if isinstance(length, torch.Tensor):",
        '            raise ValueError("Unit is not compiled for such inputs: isinstance(length, torch.Tensor)")',
        "    else:",
        "        length = 0",
        "    return length",
    )


def test_a_branch_that_does_nothing_is_not_printed() -> None:
    graph = fx.Graph()
    names = Names(graph, Body([], frozenset()), avoid=())
    assert _Lines(Printer(lambda node: None, Globals({})), names).items([Branch("x is not None")]) == []


def test_no_value_takes_the_name_of_a_parameter_that_is_yet_to_be_checked() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["names"] = ["x", "y"]
    graph.call_function(assume, ("y is not None", False, "recompile Unit for y"))
    turned = graph.call_function(torch.neg, (x,))
    turned.meta["names"] = ["x"]
    graph.output((x, turned))

    class Unit(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return x

    assert forward(Unit, graph, {}).lines[1:] == (
        "    expect_none(self, y=y)",
        "    x_2 = torch.neg(x)",
        "    return x, x_2",
    )


def test_an_item_whose_name_is_taken_is_numbered() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first, second = (graph.call_method("split", (x, size)) for size in (2, 3))
    halves = [graph.call_function(operator.getitem, (made, 0)) for made in (first, second)]
    for node in (first, second):
        node.meta["value"] = ((1, 2), (1, 2))
    for node in halves:
        node.meta["names"] = ["half"]
    graph.output(tuple(halves))

    class Unit(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert forward(Unit, graph, {}).lines[1:3] == ("    half, _ = x.split(2)", "    half_2, _ = x.split(3)")


def test_what_differs_between_layers_is_looked_up() -> None:
    text = bert().text
    assert "rank=2 if layer < 2 else 3, scale=2.0)" in text
    assert "self.prefix = PrefixSlice(trunk=model.prefix_trunk, index=layer)" in text
    assert 'UNITS = {"bert.encoder.layer.{0-2}.attention.self": BertSelfAttention}' in text
