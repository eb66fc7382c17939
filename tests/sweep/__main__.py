"""`python -m tests.sweep [TYPE or KIND …]`: sweep these, or all; update docs/coverage.json, rewrite coverage.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from tests.sweep import run, table
from tests.sweep.registry import TEXT, listed, registered

FOUND = Path(__file__).parents[2] / "docs" / "coverage.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types, kinds, or `text`; all if left out")
    parser.add_argument("--out", type=Path, default=FOUND, help="the results; the table is written beside them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = {kind for name in given.names for kind in (TEXT if name == "text" else (name,))}
    registry = registered()
    chosen = [registry[name] for kind, name in listed() if not names or name in names or kind in names]
    rows = {row["type"]: row for row in json.loads(given.out.read_text())} if given.out.is_file() else {}
    for row in run.sweep(chosen):
        rows[row["type"]] = row
        sys.stderr.write(table.brief(row) + "\n")
        given.out.write_text(run.text(rows[name] for name in sorted(rows)))
    given.out.with_suffix(".md").write_text(table.page(list(rows.values())))


if __name__ == "__main__":
    main()
