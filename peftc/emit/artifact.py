"""The artifact: file name -> text.  Only `write` touches the disk, and it leaves the old artifact or the new one."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from peftc.emit.card import card
from peftc.emit.folder import LOCK, foreign
from peftc.emit.module import NOTHING, Heading, Source, aliases, module_source
from peftc.emit.provenance import base_config, config_text, lock_text
from peftc.emit.statements import forward
from peftc.errors import PeftcError, Problem
from peftc.identity import rank
from peftc.report.render import SPEC, as_json, budget_markdown, budget_record
from peftc.rewrite.program import Program
from peftc.spec.written import recorded
from peftc.trace.record.autoclasses import auto_classes

if TYPE_CHECKING:
    from peftc.report.budget import Budget
    from peftc.runtime.proof import Proof


@dataclass(frozen=True, eq=False)
class Artifact:
    """The files of generated/<name>/, and what they cost."""

    name: str
    files: Mapping[str, str]
    budget: Budget

    @property
    def module(self) -> str:
        """The name of the emitted module."""
        return f"modeling_{self.name.replace('-', '_')}"

    def write(self, out: str | Path) -> Path:
        """Write the folder `out`/name whole, or leave it as it was.  PeftcError where something else is there."""
        folder = Path(out) / self.name
        if problem := foreign(folder):
            raise PeftcError(problem)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{self.name}.", suffix=".new", dir=folder.parent))
        try:
            for name, text in self.files.items():
                (fresh / name).write_text(text, encoding="utf-8", newline="\n")
            fresh.chmod(0o755)
            _swap(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return folder

    def check(self, out: str | Path) -> list[Problem]:
        """How the folder differs from these files; the lock's versions may."""
        folder = Path(out) / self.name
        if not folder.is_dir():
            return [Problem(f"{folder} is not there", hint="compile the spec without --check")]
        again = f"{'' if (folder / LOCK).is_file() else 'move the folder, and '}compile the spec again"
        found = sorted({path.name for path in folder.iterdir() if path.name != "__pycache__"} | self.files.keys())
        complaints = [(name, self.difference(folder, name)) for name in found]
        return [
            Problem(f"{folder / name} {what}", hint=again if name in self.files else "move it")
            for name, what in complaints
            if what
        ]

    def difference(self, folder: Path, name: str, unheld: tuple[str, ...] = ("versions",)) -> str | None:
        """How a file of a folder differs, some keys of the lock aside; None where it is the same."""
        path, expected = folder / name, self.files.get(name)
        if expected is None:
            return "does not belong to the artifact"
        if not path.is_file():
            return "is missing"
        try:
            found = path.read_bytes().decode()
        except UnicodeDecodeError:
            return "is no text"
        if name != LOCK:
            return None if found == expected else "differs"
        return None if _held(found, unheld) == _held(expected, unheld) else "differs"

    def moved(self, folder: Path) -> str | None:
        """Which versions a folder was compiled with, where they are known and are not these."""
        theirs = _versions((folder / LOCK).read_text("utf-8"))
        pairs = [(name, theirs.get(name, now), now) for name, now in sorted(_versions(self.files[LOCK]).items())]
        changed = [f"{name} {then} (now {now})" for name, then, now in pairs if then != now]
        return f"compiled with {', '.join(changed)}" if changed else None


def emit(program: Program, budget: Budget, proof: Proof) -> Artifact:
    """Every file of the artifact."""
    plan, model = program.plan, program.plan.trace.model
    name = plan.spec.name
    methods = tuple(dict.fromkeys(m.method for m in sorted(plan.spec.methods, key=rank)))
    heading = Heading(methods, budget.total.trained, budget.total.stored)
    autos = _auto_classes(program)
    source = printed(program, heading, autos, base_config(model)[1])
    module = f"modeling_{name.replace('-', '_')}"
    files = {
        f"{module}.py": source.text,
        "config.json": config_text(model, autos, module),
        SPEC: as_json(recorded(plan.spec)),
        "budget.json": as_json(budget_record(budget)),
        "budget.md": budget_markdown(name, budget),
        "README.md": card(plan, module, autos, heading, proof.lines, budget_markdown(name, budget)),
    }
    files = {key: text.rstrip("\n") + "\n" for key, text in files.items()}
    return Artifact(name, {**files, LOCK: lock_text(plan, files, source, asdict(proof))}, budget)


def printed(
    program: Program,
    heading: Heading = NOTHING,
    autos: tuple[str, ...] = (),
    config: Mapping[str, object] = MappingProxyType({}),
) -> Source:
    """The module's source; by default without the facts that only an artifact on disk needs."""
    names = aliases(program)
    forwards = {body.name: forward(body.unit.base, body.graph, names) for body in program.bodies}
    return module_source(program, forwards, heading, autos, config)


def _auto_classes(program: Program) -> tuple[str, ...]:
    """The Auto classes that build the model; one of the user's own has those that it was registered with."""
    model = program.plan.trace.model
    return auto_classes(type(model), str(base_config(model)[0].get("model_type", "")))


def _swap(fresh: Path, folder: Path) -> None:
    """Put a new folder where an old one may stand.

    Where the system cannot exchange two folders at once, a kill between the two renames leaves the old in `.name.old`.
    """
    if not folder.exists():
        fresh.rename(folder)
        return
    if _exchanged(fresh, folder):
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old)


def _exchanged(one: Path, other: Path) -> bool:
    """Linux: swap two folders in one step; False where the system or its file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _held(lock: str, unheld: tuple[str, ...]) -> object:
    """What a lock is held to; the text itself where it is none."""
    try:
        return {key: value for key, value in json.loads(lock).items() if key not in unheld}
    except (AttributeError, RecursionError, ValueError):
        return lock


def _versions(lock: str) -> dict[str, str]:
    found = json.loads(lock).get("versions")
    return found if isinstance(found, dict) else {}
