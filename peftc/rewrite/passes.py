"""What a pass is, the program that the first one gets, and what must hold after each."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import fx

from peftc.errors import Defect
from peftc.graph.branches import moved
from peftc.graph.sites import Trace, Unit
from peftc.graph.verify import verify
from peftc.plan import Plan
from peftc.rewrite.program import Body, Program


class Pass(Protocol):
    """A step from a program to a program; its fields are its options."""

    name: ClassVar[str]

    def run(self, program: Program) -> Program:
        """The program after this pass."""


def start(plan: Plan, trace: Trace) -> Program:
    """The units that have placements, as the base has them."""
    placed = {placement.path for placement in plan.placements}
    found: dict[Unit, list[str]] = {}
    for path, unit in trace.instances():
        if path in placed:
            found.setdefault(unit, []).append(path)
    bodies = tuple(Body(u.name, u, copied(u.graph), tuple(paths), (), ()) for u, paths in found.items())
    return Program(plan, bodies, plan.shared, ())


def checked(step: Pass, program: Program) -> Program:
    """One pass, and the proof that every graph is still sound."""
    done = step.run(program)
    for body in done.bodies:
        verify(body.graph, body.unit, [addition.name for addition in body.additions])
    placed = sum(len(body.paths) for body in program.bodies)
    if sum(len(body.paths) for body in done.bodies) != placed:
        raise Defect(f"the pass {step.name} lost a unit")
    return done


def copied(graph: fx.Graph) -> fx.Graph:
    """A graph that may be edited: the same nodes under the same names."""
    new = fx.Graph()
    table: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        table[node] = new.node_copy(node, lambda n: table[n])
        table[node].meta["guard"] = moved(node.meta.get("guard", ()), table)
        if table[node].name != node.name:
            raise Defect(f"{node.name} became {table[node].name} in a copy")
    return new
