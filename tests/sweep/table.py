"""docs/coverage.md: model type x method, a reason for every gap, and percentages."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def brief(row: Row) -> str:
    """One line for the terminal."""
    if "unbuilt" in row:
        return f"{row['type']:28} not built: {row['unbuilt'][:120]}"
    if "crash" in row or "error" in row:
        return f"{row['type']:28} {row.get('crash') or row['error'][-200:]!r}"
    marks = " ".join(f"{name}={found['state']}" for name, found in row["peftc"].items())
    worst = next((f"{v['reason'][:150]} @ {v['place']}" for v in row["peftc"].values() if v["state"] == "fails"), "")
    return f"{row['type']:28} {row['seconds']:5} {marks} {worst}"


def page(rows: list[Row]) -> str:
    return ""
