"""The pass that names what trains: the additions, and what the plan selects of the base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from peftc import modules
from peftc.errors import Defect
from peftc.methods.call import ModuleCall
from peftc.rewrite.program import Program


@dataclass(frozen=True)
class Freeze:
    """Everything of the base is frozen but the plan's selections; everything added trains."""

    name: ClassVar[str] = "freeze"

    def run(self, program: Program) -> Program:
        selected = {name for selection in program.plan.selections for name in selection.names}
        if unknown := selected - program.plan.trace.parameters.keys():
            raise Defect(f"the plan trains {', '.join(sorted(unknown))}, which the base does not have")
        of_base = (name for name in program.plan.trace.parameters if name in selected)
        return replace(program, trained=(*of_base, *_added(program)))


def _added(program: Program) -> Iterator[str]:
    for shared in program.shared:
        yield from (f"{shared.name}.{name}" for name in parameter_names(shared.module.call))
    for body in program.bodies:
        for path in body.paths:
            for addition in body.additions:
                names = parameter_names(addition.calls[path])
                yield from (f"{path}.{addition.name}.{name}" for name in names)


def parameter_names(call: ModuleCall) -> tuple[str, ...]:
    """The parameters of the module that a call builds."""
    arguments = dict(call.arguments)
    if "trunk" in arguments:
        return ()
    with torch.device("meta"):
        module = getattr(modules, call.name)(**arguments)
    return tuple(name for name, _ in module.named_parameters())
