"""Where an artifact goes: what may stand there, and whether it can be written."""

from __future__ import annotations

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
    """The complaint about what stands there and is no artifact, which nothing may replace."""
    if not os.path.lexists(folder):
        return None
    if not folder.is_symlink() and folder.is_dir() and (folder / LOCK).is_file():
        return None
    return Problem(
        f"{folder} is there and is no artifact of peftc",
        hint=f"an artifact has a {LOCK}; move it, or use another --out",
    )
