"""The lock of an artifact's folder: which files are there, and whether they are those that were compiled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from peftc.emit.folder import LOCK
from peftc.errors import PeftcError, Problem


def locked(folder: Path) -> dict[str, str]:
    """file name -> sha256, as the lock has it.  PeftcError where there is no lock, or none of peftc's."""
    try:
        files = json.loads((folder / LOCK).read_text("utf-8"))["files"]
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        hint = "compile the spec, and name the folder that holds it"
        raise PeftcError(Problem(f"{folder} is no artifact: {LOCK}: {reason}", hint=hint)) from None
    except (ValueError, KeyError, TypeError):
        raise PeftcError(f"{folder / LOCK} is no lock of peftc") from None
    if not isinstance(files, dict) or any(Path(name).name != name for name in files):
        raise PeftcError(f"{folder / LOCK} is no lock of peftc")
    return {str(name): str(digest) for name, digest in files.items()}


def changed(folder: Path, files: Mapping[str, str]) -> Iterator[Problem]:
    """Files that are not those of the lock."""
    hint = "edit the spec and compile it again, not the file"
    for name, digest in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            yield Problem(f"{path} is missing", hint="compile the spec again")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Problem(f"{path} is not the file that {LOCK} describes", hint=hint)
