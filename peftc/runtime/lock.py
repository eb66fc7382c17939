"""The lock of an artifact's folder: which files are there, and whether they are those that were compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from peftc.emit.folder import LOCK, locked_files
from peftc.errors import PeftcError, Problem


def locked(folder: Path) -> dict[str, str]:
    """file name -> sha256, as the lock has it.  PeftcError where there is no lock, or none of peftc's."""
    try:
        files = locked_files(folder)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        hint = "compile the spec, and name the folder that holds it"
        raise PeftcError(Problem(f"{folder} is no artifact: {LOCK}: {reason}", hint=hint)) from None
    if files is None:
        hint = "move the folder, and compile the spec again"
        raise PeftcError(Problem(f"{folder / LOCK} is no lock of peftc", hint=hint))
    return files


def changed(folder: Path, files: Mapping[str, str]) -> Iterator[Problem]:
    """Files that are not those of the lock."""
    hint = "edit the spec and compile it again, not the file"
    for name, digest in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            yield Problem(f"{path} is missing", hint="compile the spec again")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Problem(f"{path} is not the file that {LOCK} describes", hint=hint)
