"""Where an artifact goes: what may stand there, and whether it can be written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from peftc.errors import Problem

LOCK = "peftc.lock.json"


def obstacle(folder: Path) -> Problem | None:
    """What keeps an artifact from being written to a folder, found by trying; nothing is left there."""
    above = next((path for path in folder.parents if os.path.lexists(path)), None)
    if above is None or not above.is_dir():
        return Problem(f"cannot write {folder}: {above or folder.anchor} is no folder", hint="use another --out")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".new", dir=above):
            return foreign(folder)
    except OSError as error:
        reason = (error.strerror or "unwritable").lower()
        return Problem(f"cannot write {folder}: {above}: {reason}", hint="use another --out")


def foreign(folder: Path) -> Problem | None:
    """The complaint about what stands there and is no artifact, or lies in one: nothing of it may be replaced."""
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink() or not folder.is_dir() or not (folder / LOCK).is_file():
        hint = f"an artifact has a {LOCK}; move it, or use another --out"
        return Problem(f"{folder} is there and is no artifact of peftc", hint=hint)
    hint = "a compile replaces the whole folder: move {}, or use another --out"
    files = locked_files(folder)
    if files is None:
        return Problem(f"{folder / LOCK} is no lock of peftc: whose the files are is unknown", hint=hint.format("it"))
    if more := ", ".join(added(folder, files)):
        return Problem(f"{folder} holds what no compile wrote: {more}", hint=hint.format("them"))
    return None


def locked_files(folder: Path) -> dict[str, str] | None:
    """file name -> sha256, as a lock has it; None where it is none of peftc's.  OSError where it cannot be read."""
    try:
        files = json.loads((folder / LOCK).read_text("utf-8"))["files"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    if not isinstance(files, dict) or any(Path(name).name != name for name in files):
        return None
    return {str(name): str(digest) for name, digest in files.items()}


def added(folder: Path, files: Mapping[str, str]) -> list[str]:
    """The names in an artifact that are not the files of its lock, nor what Python makes of them."""
    own = {LOCK, *(name for name in files if not (folder / name).is_dir())}
    return sorted({path.name for path in folder.iterdir()} - own - {"__pycache__"})
