"""What `peftc verify` finds: an artifact against its lock, against its own spec, and the proof again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from peftc.compiler import compile
from peftc.emit.artifact import Artifact
from peftc.emit.provenance import LOCK
from peftc.errors import PeftcError, Problem, raise_all
from peftc.report.render import SPEC
from peftc.spec.load import load


def verified(folder: Path, stage: Callable[[str], None]) -> tuple[str, ...]:
    """What was proved.  PeftcError with every file that is not what the lock says, or not what the spec compiles to."""
    stage("reading the lock")
    files = _locked(folder)
    raise_all(_changed(folder, files))
    artifact = compile(load(folder / SPEC), stage)
    raise_all(_other(folder, files, artifact))
    return (f"{folder}: {len(files)} files are as locked, and are what the spec compiles to", *proved(artifact))


def proved(artifact: Artifact) -> tuple[str, ...]:
    """The sentences of the proof, as the lock has them."""
    return tuple(json.loads(artifact.files[LOCK])["proof"]["lines"])


def _locked(folder: Path) -> dict[str, str]:
    """file name -> sha256, as the lock has it."""
    try:
        files = json.loads((folder / LOCK).read_text("utf-8"))["files"]
    except OSError as error:
        raise PeftcError(f"{folder} is no artifact: {LOCK}: {(error.strerror or 'unreadable').lower()}") from None
    except (ValueError, KeyError, TypeError):
        raise PeftcError(f"{folder / LOCK} is no lock of peftc") from None
    if not isinstance(files, dict) or SPEC not in files or any(Path(name).name != name for name in files):
        raise PeftcError(f"{folder / LOCK} is no lock of peftc")
    return {str(name): str(digest) for name, digest in files.items()}


def _changed(folder: Path, files: dict[str, str]) -> Iterator[Problem]:
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            yield Problem(f"{path} is missing", hint="compile the spec again")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Problem(f"{path} is not the file that was locked", hint="compile the spec again")


def _other(folder: Path, files: dict[str, str], artifact: Artifact) -> Iterator[Problem]:
    moved = artifact.moved(folder.parent)
    for name in files:
        if artifact.files.get(name) != (folder / name).read_text("utf-8"):
            yield Problem(f"{folder / name} is not what the spec compiles to", hint=moved or "compile the spec again")
