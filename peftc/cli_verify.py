"""What `peftc verify` finds: an artifact against its lock, against its own spec, and the proof again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from peftc.compiler import compile
from peftc.emit.artifact import Artifact
from peftc.emit.folder import LOCK, added
from peftc.errors import PeftcError, Problem, raise_all
from peftc.report.render import SPEC
from peftc.runtime.lock import changed, locked
from peftc.spec.load import load
from peftc.spec.schema import Spec
from peftc.trace.record.model import read_config


def verified(folder: Path, stage: Callable[[str], None]) -> tuple[str, ...]:
    """What was proved.  PeftcError with every file that is not what the lock says, or not what the spec compiles to."""
    stage("reading the lock")
    files = locked(folder)
    raise_all([*changed(folder, files), *_added(folder, files)])
    if SPEC not in files:
        raise PeftcError(f"{folder} has no {SPEC}: there is nothing to compile again")
    spec = load(folder / SPEC)
    _check_base(spec)
    artifact = compile(spec, stage)
    raise_all(_other(folder, files, artifact))
    return (f"{folder}: {len(files)} files are as locked, and are what the spec compiles to", *proved(artifact))


def proved(artifact: Artifact) -> tuple[str, ...]:
    """The sentences of the proof, as the lock has them."""
    return tuple(json.loads(artifact.files[LOCK])["proof"]["lines"])


def _added(folder: Path, files: Mapping[str, str]) -> Iterator[Problem]:
    """What lies beside the locked files, but for what a version control or a download keeps there."""
    for name in (name for name in added(folder, files) if not name.startswith(".")):
        yield Problem(f"{folder / name} is not in {LOCK}", hint="move it: an artifact is what its spec compiles to")


def _check_base(spec: Spec) -> None:
    """PeftcError where the base cannot be read; a folder is looked for where the command runs, as in a compile."""
    try:
        read_config(spec.base)
    except PeftcError as error:
        named = Path(spec.base.model or "/")
        here = f"if {named} is a folder, verify in the working directory of the compile: it is not found from here"
        hint = None if named.is_absolute() else here
        raise PeftcError(*(Problem(p.message, spec.origin.key("base"), hint) for p in error.problems)) from error


def _other(folder: Path, files: Mapping[str, str], artifact: Artifact) -> Iterator[Problem]:
    """What the spec does not compile to, the lock included; `spec` there is the hash of a file that lies elsewhere."""
    moved = artifact.moved(folder)
    for name in (*files, *(name for name in artifact.files if name not in files)):
        if artifact.difference(folder, name, unheld=("spec", "versions")):
            yield Problem(f"{folder / name} is not what the spec compiles to", hint=moved or "compile the spec again")
