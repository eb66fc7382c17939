"""Where an artifact goes: what may stand there, and whether it can be written."""

from __future__ import annotations

import json
import os
import tempfile
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
    added = sorted({path.name for path in folder.iterdir()} - _own(folder / LOCK))
    if not added:
        return None
    hint = "a compile replaces the whole folder: move them, or use another --out"
    return Problem(f"{folder} holds what no compile wrote: {', '.join(added)}", hint=hint)


def _own(lock: Path) -> set[str]:
    """The names in an artifact that a compile may replace: what its lock names, and what Python makes of it."""
    try:
        files = json.loads(lock.read_text("utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        files = ()
    return {*(files if isinstance(files, dict) else ()), LOCK, "__pycache__"}
