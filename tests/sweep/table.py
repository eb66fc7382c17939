"""docs/coverage.md: model type x method, a reason for every gap, and percentages."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.sweep.registry import TEXT

Row = dict[str, Any]
METHODS = {
    "lora": "LoRA", "adapter": "adapter", "prefix": "prefix", "ia3": "(IA)³", "bitfit": "BitFit", "all": "all together",
    "load": "loaded",
}  # fmt: skip
THREE = ("lora", "adapter", "prefix")
PEERS = {"lora": "peft: LoRA", "prefix": "peft: prefix"}
EVERYWHERE = ("lora", "adapter", "prefix", "all", "load")  # where there are attention and a feed-forward
MARKS = {"ok": "yes", "none": "no place", "fails": "**no**"}
HEADER = """# Coverage

Every model type that transformers' registry has a model class for, built tiny from its config class with random
weights.  The command

    python -m tests.sweep                 # all of them; or: text, decoder, llama bert …

updates `docs/coverage.json` row by row and writes this page from it.  The types are listed in `tests/sweep/types.txt`.

**yes**: `peftc.attach` keeps the laws.  At initialisation the output is the base's (prefix apart); after the additions
moved it is another; every addition in every layer has a gradient; as many parameters train as the formula says; greedy
generation is the same with and without a cache (where the base's is); a step of training along the gradients lowers a
loss and leaves what is frozen as it is.  LoRA stands on q and v, an adapter after the feed-forward, a prefix on every
attention; **all three** holds where each of them does.  **all together**: every method that has a place, in one model,
with the proof that a compile runs.  **loaded**: the emitted files, loaded from a folder on the saved base, are the
attached model.  **no place**: the model has no such site (no attention, no bias, …).  **peft** is huggingface/peft with
its own defaults on the same model: attached, with an effect, and with a gradient in everything that it trains.

A row is as old as its last run, which may be older than the compiler beside it; types without a row have not run yet.
"""


def brief(row: Row) -> str:
    """One line for the terminal."""
    if "peftc" not in row:
        return f"{row['type']:28} {_whole(row)[:160]}"
    marks = " ".join(f"{name}={found['state']}" for name, found in row["peftc"].items())
    worst = next((f"{v['reason'][:150]} @ {v['place']}" for v in row["peftc"].values() if v["state"] == "fails"), "")
    return f"{row['type']:28} {row.get('seconds', ''):5} {marks} {worst}"


def page(rows: Iterable[Row]) -> str:
    """The whole page; a function of the rows alone."""
    ordered = sorted(rows, key=lambda row: (row["kind"], row["type"]))
    built = [row for row in ordered if "unbuilt" not in row]
    types, variants = ([row for row in built if ("settings" in row) is varies] for varies in (False, True))
    tables = [_table("Types", types), *([_variants(variants)] if variants else [])]
    return "\n".join([HEADER, _summary(built), *tables, _gaps(built), _peer_gaps(built), _unbuilt(ordered)])


def _variants(rows: list[Row]) -> str:
    """The rows that released checkpoints ask for, and what each sets."""
    lines = [f"- {row['type']}: `{json.dumps(row['settings'], sort_keys=True)}`" for row in rows]
    text = "What released checkpoints set, where their config class's defaults go another way through the code."
    return "\n".join([_table("Variants", rows), text, "", *lines, ""])


def _whole(row: Row) -> str:
    """Why a type has no cells of its own."""
    return str(row.get("unbuilt") or row.get("crash") or row.get("error", "").strip().rpartition("\n")[2])


def _cell(row: Row, method: str) -> str:
    return MARKS[row["peftc"][method]["state"]] if "peftc" in row else MARKS["fails"]


def _peer(row: Row, method: str) -> str:
    return MARKS["ok" if row.get("peft", {}).get(method) == "" else "fails"]


def complete(row: Row) -> bool:
    """Whether a model has both attention and a feed-forward."""
    return set(row.get("has", ())) >= {"attention", "feed-forward"}


def _summary(rows: list[Row]) -> str:
    lines = ["## Summary", "", "Types with attention and a feed-forward:", ""]
    names = ["all three", *METHODS.values(), *PEERS.values()]
    lines += [f"| | types | {' | '.join(names)} |", "|---|---:|" + "---:|" * len(names)]
    groups: dict[str, list[Row]] = {"text": []}
    for row in sorted(rows, key=lambda row: "settings" in row):
        kind = "text" if row["kind"] in TEXT else row["kind"]
        groups.setdefault("variants" if "settings" in row else kind, []).append(row)
    for label, members in groups.items():
        whole = [row for row in members if complete(row)]
        if whole:
            lines.append(f"| {label} | {len(whole)} | {' | '.join(_shares(whole))} |")
    return "\n".join([*lines, ""])


def _shares(rows: list[Row]) -> list[str]:
    cells = {method: [_cell(row, method) for row in rows] for method in METHODS}
    peers = [[_peer(row, method) for row in rows] for method in PEERS]
    three = [MARKS["ok" if {_cell(row, method) for method in THREE} == {MARKS["ok"]} else "fails"] for row in rows]
    return [
        _share(three, True),
        *(_share(column, method in EVERYWHERE) for method, column in cells.items()),
        *(_share(p, True) for p in peers),
    ]


def _share(column: list[str], everywhere: bool) -> str:
    """Those that hold: of all, or of those that have a place."""
    possible = [cell for cell in column if everywhere or cell != MARKS["none"]]
    held = possible.count(MARKS["ok"])
    return f"{held} of {len(possible)} ({100 * held / len(possible):.0f}%)" if possible else "–"


def _table(title: str, rows: list[Row]) -> str:
    names = [*METHODS.values(), *PEERS.values()]
    lines = [f"## {title}", "", f"| type | kind | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        cells = [*(_cell(row, m) for m in METHODS), *(_peer(row, m) for m in PEERS)]
        lines.append(f"| {row['type']} | {row['kind']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _gaps(rows: list[Row]) -> str:
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if "peftc" not in row:
            found[_plain(_whole(row))][row["type"]].append("everything")
        for method, outcome in sorted(row.get("peftc", {}).items()):
            whole = method in ("all", "load")
            if outcome["state"] == "fails" and (not whole or _alone(row, method)):
                found[_plain(outcome["reason"])][row["type"]].append(METHODS[method])
            if outcome["state"] == "none" and not whole:
                found[_plain(outcome["reason"])][row["type"]].append(METHODS[method])
    return _listed("Gaps", found)


def _alone(row: Row, method: str) -> bool:
    """Whether this failure is not said by a method alone already."""
    others = [name for name in row["peftc"] if name != method and name != "load"]
    return all(row["peftc"][name]["state"] != "fails" for name in others)


def _peer_gaps(rows: list[Row]) -> str:
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for method, reason in sorted(row.get("peft", {}).items()):
            if reason:
                found[_plain(reason)][row["type"]].append(PEERS[method].removeprefix("peft: "))
    return _listed("Gaps of peft", found)


def _plain(reason: str) -> str:
    """A reason without the names and numbers of one model."""
    text = re.sub(r"/tmp/\S+", "…", reason)
    text = re.sub(r"\b[A-Z]\w+(Attention|Layer|Block|MLP|Mixer|Model|Config|LM)\w*", "…", text)
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", text)[:160].replace("|", "\\|").replace("`", "'")


def _listed(title: str, found: dict[str, dict[str, list[str]]]) -> str:
    lines = [f"## {title}", ""]
    for reason, types in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        places = defaultdict(list)
        for name, methods in sorted(types.items()):
            places[", ".join(methods)].append(name)
        told = "; ".join(f"{methods}: {', '.join(names)}" for methods, names in places.items())
        lines.append(f"- {reason} — {told}")
    return "\n".join([*lines, ""])


def _unbuilt(rows: list[Row]) -> str:
    missing = [f"- {row['type']}: {_plain(row['unbuilt'])}" for row in rows if "unbuilt" in row]
    return "\n".join([f"## Not built ({len(missing)})", "", *missing, ""])
