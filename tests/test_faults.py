"""A fault inside peftc is never an artifact: a broken graph and a graph that computes something else are defects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
from torch import fx

from peftc.errors import Defect
from peftc.graph.sites import Attention
from peftc.plan import Plan, resolve
from peftc.rewrite import PASSES, rewrite
from peftc.rewrite.passes import copied
from peftc.rewrite.program import Body, Program
from peftc.runtime.proof import prove
from peftc.spec.load import loads
from peftc.trace import trace_base

ROOT = Path(__file__).parents[1]
SPEC = """\
name: faults
base:
  config: {model_type: bert, vocab_size: 97, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4,
    intermediate_size: 64, max_position_embeddings: 64}
methods: [METHODS]
"""
METHODS = {
    "lora": "{method: lora, rank: 2}, {method: adapter, bottleneck: 6}",
    "prefix": "{method: prefix, length: 3}, {method: adapter, bottleneck: 6, gate: sequence}",
}
Fault = Callable[[fx.Graph, Body], None]


@dataclass(frozen=True)
class Faulty:
    """A pass that does harm to every graph."""

    name: ClassVar[str] = "faulty"
    fault: Fault

    def run(self, program: Program) -> Program:
        return replace(program, bodies=tuple(self.harmed(body) for body in program.bodies))

    def harmed(self, body: Body) -> Body:
        graph = copied(body.graph)
        self.fault(graph, body)
        return replace(body, graph=graph)


@dataclass(frozen=True)
class Forgetful:
    """A pass that loses a unit."""

    name: ClassVar[str] = "forgetful"

    def run(self, program: Program) -> Program:
        return replace(program, bodies=program.bodies[1:])


@pytest.fixture(scope="module", params=METHODS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return planned(METHODS[request.param])


@cache
def planned(methods: str) -> Plan:
    spec = loads(SPEC.replace("METHODS", methods))
    return resolve(spec, trace_base(spec.base))


def calls(graph: fx.Graph, end: str) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module" and str(node.target).endswith(end)]


def forgets_an_addition(graph: fx.Graph, body: Body) -> None:
    node = calls(graph, body.additions[0].name)[0]
    node.replace_all_uses_with(next(iter(graph.nodes)))
    graph.erase_node(node)


def reads_before_it_writes(graph: fx.Graph, body: Body) -> None:
    node = next(n for n in graph.nodes if n.op == "call_module" and n.users)
    next(iter(node.users)).append(node)


def renames_an_argument(graph: fx.Graph, body: Body) -> None:
    next(n for n in reversed(list(graph.nodes)) if n.op == "placeholder").target = "another"


def calls_a_stranger(graph: fx.Graph, body: Body) -> None:
    next(n for n in graph.nodes if n.op == "call_module").target = "stranger"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (forgets_an_addition, "it never calls"),
        (reads_before_it_writes, "is broken"),
        (renames_an_argument, "its arguments were"),
        (calls_a_stranger, "it calls stranger, which nothing adds"),
    ],
)
@pytest.mark.parametrize("position", range(1, len(PASSES) + 1))
def test_a_broken_graph(plan: Plan, fault: Fault, message: str, position: int) -> None:
    """After whichever pass it happens."""
    passes = (*PASSES[:position], Faulty(fault), *PASSES[position:])
    with pytest.raises(Defect, match=message):
        rewrite(plan, plan.trace, passes)


def test_a_lost_unit(plan: Plan) -> None:
    with pytest.raises(Defect, match="forgetful lost a unit"):
        rewrite(plan, plan.trace, (*PASSES, Forgetful()))


def swaps_queries_and_keys(graph: fx.Graph, body: Body) -> None:
    names = [site.node for site in body.unit.sites if isinstance(site, Attention)]
    for node in (n for n in graph.nodes if n.name in names):
        _, query, key, *_ = (a for a in node.args if isinstance(a, fx.Node))
        node.args = tuple({query: key, key: query}.get(a, a) if isinstance(a, fx.Node) else a for a in node.args)


def drops_a_dropout(graph: fx.Graph, body: Body) -> None:
    for node in calls(graph, "dropout"):
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)


def adds_twice(graph: fx.Graph, body: Body) -> None:
    """The residual of the last norm."""
    norm = calls(graph, "LayerNorm")[-1:]
    for total in (node.all_input_nodes[0] for node in norm):
        total.args = (total.args[0], total.args[0])


@pytest.mark.parametrize("fault", [swaps_queries_and_keys, drops_a_dropout, adds_twice])
def test_a_graph_that_computes_something_else(fault: Fault) -> None:
    """Where every method claims to be the identity at initialisation, which is what the proof can hold it to."""
    plan = planned(METHODS["lora"])
    prove(rewrite(plan, plan.trace))
    program = rewrite(plan, plan.trace, (*PASSES, Faulty(fault)))
    with pytest.raises(Defect):
        prove(program)


def test_the_command_line_calls_it_a_defect(tmp_path: Path) -> None:
    spec = tmp_path / "faults.yaml"
    spec.write_text(SPEC.replace("METHODS", METHODS["lora"]))
    program = (
        "import sys\n"
        "from peftc import cli, compiler\n"
        "from peftc.rewrite import PASSES, rewrite\n"
        "from tests.test_faults import Faulty, forgets_an_addition\n"
        "broken = (PASSES[0], Faulty(forgets_an_addition), *PASSES[1:])\n"
        "compiler.rewrite = lambda plan, trace: rewrite(plan, trace, broken)\n"
        f"sys.argv[1:] = ['compile', {str(spec)!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "cli.main()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 3
    assert "this is a defect of peftc" in run.stderr
    assert "it never calls" in run.stderr
    assert not (tmp_path / "out").exists()
