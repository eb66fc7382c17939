"""`python -m tests.sweep [TYPE or KIND …]`: sweep these, or all; update docs/coverage.json, rewrite docs/coverage.md.

A type comes with its variants; `variants` are those of all types, and "falcon (alibi)" is one.

With --gaps only those that are new or have a failure; with --causes nothing runs: the failures found, by their cause.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.sweep import groups, run, table
from tests.sweep.registry import TEXT, Type, listed, registered, variants

FOUND = Path(__file__).parents[2] / "docs" / "coverage.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types, kinds, `text`, `variants`; all if left out")
    parser.add_argument("--out", type=Path, default=FOUND, help="the results; the page is written beside them")
    parser.add_argument("--gaps", action="store_true", help="only types that are new or have a failure")
    parser.add_argument("--causes", action="store_true", help="run nothing: the failures found, by their cause")
    given = parser.parse_args()
    rows = {row["type"]: row for row in json.loads(given.out.read_text("utf-8"))} if given.out.is_file() else {}
    names = {kind for name in given.names for kind in (TEXT if name == "text" else (name,))}
    every = {**registered(), **variants()}
    ordered = [*(name for _, name in listed() if name in every), *variants()]
    chosen = [name for name in ordered if not names or names & every[name].called]
    if given.causes:
        sys.stdout.write(groups.report([rows[name] for name in chosen if name in rows]))
        return
    _sweep([every[name] for name in chosen if not given.gaps or gap(rows.get(name))], rows, given.out)


def gap(row: dict[str, Any] | None) -> bool:
    """Whether a type is new, crashed, or has a failure."""
    return row is None or any(
        outcome["state"] == "fails" for outcome in row.get("peftc", {"": {"state": "fails"}}).values()
    )


def _sweep(types: list[Type], rows: dict[str, Any], out: Path) -> None:
    """Run these types; every row is written as soon as it is there."""
    torch.set_num_threads(1)
    for row in run.sweep(types):
        rows[row["type"]] = row
        sys.stderr.write(table.brief(row) + "\n")
        out.write_text(run.text(rows[name] for name in sorted(rows)), "utf-8")
    out.with_suffix(".md").write_text(table.page(list(rows.values())), "utf-8")


if __name__ == "__main__":
    main()
