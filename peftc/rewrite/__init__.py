"""From a plan to a program: passes in order, verified after each."""

from __future__ import annotations

from collections.abc import Sequence

from peftc.graph.sites import Trace
from peftc.plan import Plan
from peftc.rewrite.attach import Attach
from peftc.rewrite.freeze import Freeze
from peftc.rewrite.passes import Pass, checked, start
from peftc.rewrite.program import Program
from peftc.rewrite.share import Share
from peftc.rewrite.simplify import Simplify

PASSES: tuple[Pass, ...] = (Attach(), Simplify(), Share(), Freeze())


def rewrite(plan: Plan, trace: Trace, passes: Sequence[Pass] = PASSES) -> Program:
    """The program of a plan.  Raises Defect where a pass breaks a graph."""
    program = start(plan, trace)
    for step in passes:
        program = checked(step, program)
    return program
