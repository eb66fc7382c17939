"""Failures grouped by their cause: the reason without its numbers and names, and the place in peftc."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
Cause = tuple[str, str]


def groups(rows: Iterable[Row]) -> dict[Cause, dict[str, list[str]]]:
    """(reason, place) -> model type -> the methods that fail so; the most frequent first."""
    found: dict[Cause, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for method, outcome in row.get("peftc", {}).items():
            if outcome["state"] == "fails":
                found[cause(outcome)][row["type"]].append(method)
        for key in ("crash", "error"):
            if key in row:
                found[row[key][-160:], key][row["type"]].append("all")
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def cause(outcome: dict[str, str]) -> Cause:
    reason = re.sub(r"/tmp/\S+", "…", outcome["reason"])
    reason = re.sub(r"\b[A-Z]\w+(Attention|Layer|Block|MLP|Mixer|Moe|Experts)\w*", "Unit", reason)
    reason = re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", reason)
    reason = re.sub(r"no gradient: .*", "no gradient in some additions", reason)
    place = re.sub(r"( < modeling_|peftc_emitted_|:\d+:).*", "", outcome["place"])
    return reason[:100], place


def report(rows: list[Row]) -> str:
    """Every group with an example of its full reason, its types and methods."""
    lines = [f"{len(rows)} types: {tally(rows)}", ""]
    examples = {cause(o): (r["type"], o["reason"]) for r in rows for o in r.get("peftc", {}).values()}
    for (reason, place), types in groups(rows).items():
        lines.append(f"## {len(types)} types: {reason}")
        lines.append(f"at: {place}")
        if (reason, place) in examples:
            lines.append("e.g. {}: {}".format(*examples[reason, place]))
        parts = (name + ("" if len(m) > 6 else f" [{' '.join(m)}]") for name, m in sorted(types.items()))
        lines += ["types: " + ", ".join(parts), ""]
    unbuilt = [f"- {row['type']}: {row['unbuilt']}" for row in rows if "unbuilt" in row]
    return "\n".join([*lines, f"## not built: {len(unbuilt)}", *unbuilt, ""])


def tally(rows: list[Row]) -> str:
    """Counts of each state per method."""
    built = [row for row in rows if "peftc" in row]
    counts = []
    for method in built[0]["peftc"] if built else ():
        states = [row["peftc"][method]["state"] for row in built]
        counts.append(f"{method} {states.count('ok')} ok {states.count('none')} none {states.count('fails')} fail")
    for method in ("lora", "prefix"):
        counts.append(f"peft's {method} {sum(row.get('peft', {}).get(method) == '' for row in built)}")
    return f"{len(built)} ran; " + "; ".join(counts)
