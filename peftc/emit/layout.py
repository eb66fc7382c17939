"""Lines of Python within the width of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

WIDTH = 112  # of a forward's own lines
INDENT = "    "
OPEN, CLOSE = "([{", ")]}"


def indented(lines: Sequence[str]) -> list[str]:
    return [INDENT + line if line else line for line in lines]


def commented(lines: list[str], comment: str | None, width: int = WIDTH) -> list[str]:
    """The comment behind the first line where it fits, above it otherwise."""
    if not comment:
        return lines
    if len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= width:
        return [f"{lines[0]}  # {comment}"]
    return [f"# {comment}", *lines]


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """A statement in one line; else a chain of calls in brackets, or broken inside its widest bracket."""
    if len(text) <= width or (span := _outermost(text)) is None:
        return [text]
    if chain := _chain(text, width):
        return chain
    start, end = span
    items, tuple_of_one = _split(text[start + 1 : end])
    head, tail = text[: start + 1], text[end:]
    bare = len(items) == 1 and not tuple_of_one and _changed_by_a_comma(text, start)
    one = INDENT + ", ".join(items) + ("," if tuple_of_one else "")
    if len(one) < width and not any("\n" in i for i in items):
        return [head, one, tail]
    *first, last = (wrapped(item, width - len(INDENT) - 1) for item in items)
    lines = [*(row for item in first for row in _with_comma(item)), *(last if bare else _with_comma(last))]
    return [head, *indented(lines), tail]


def _chain(text: str, width: int) -> list[str]:
    """An assigned chain of three calls or more: in brackets, on one line or on one for each call."""
    head, equals, value = text.partition(" = ")
    dots = [i for i, c, depth in _code(value) if c == "." and depth == 0 and value[i - 1] in CLOSE]
    alone = not any(c in " " and depth == 0 for _, c, depth in _code(value))
    if not equals or any(c in OPEN for c in head) or len(dots) < 2 or not alone:
        return []
    if len(value) + len(INDENT) <= width:
        return [f"{head} = (", INDENT + value, ")"]
    rows = [value[i:j] for i, j in zip([0, *dots], [*dots, len(value)], strict=True)]
    return [f"{head} = (", *indented([line for row in rows for line in wrapped(row, width - len(INDENT))]), ")"]


def _with_comma(lines: Sequence[str]) -> list[str]:
    return [*lines[:-1], lines[-1] + ","]


def _changed_by_a_comma(text: str, start: int) -> bool:
    """Whether a comma behind the one item of a bracket would make a tuple of it: a group's, or an index."""
    attached = start > 0 and (text[start - 1].isalnum() or text[start - 1] in "_)]")
    return text[start] == ("[" if attached else "(")


def _outermost(text: str) -> tuple[int, int] | None:
    """The widest bracket pair at depth zero, as (start, end)."""
    best, start = (0, 1), 0
    for i, c, depth in _code(text):
        if c in OPEN and depth == 0:
            start = i
        elif c in CLOSE and depth == 0 and i - start > best[1] - best[0]:
            best = (start, i)
    return best if best != (0, 1) else None


def _split(text: str) -> tuple[list[str], bool]:
    """The items of a bracket's content, split at its own commas; whether a comma makes the only one a tuple."""
    commas = [i for i, c, depth in _code(text) if c == "," and depth == 0]
    items = [text[start + 1 : end].strip() for start, end in zip([-1, *commas], [*commas, len(text)], strict=True)]
    return (items, False) if items[-1] else (items[:-1], len(items) == 2)


def _code(text: str) -> Iterator[tuple[int, str, int]]:
    """The characters outside of quotes, with their place and depth; a bracket has the depth of what is around it."""
    depth, quote = 0, ""
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[i - 1] != "\\" else quote
            continue
        quote = c if c in "\"'" else ""
        depth -= c in CLOSE
        if not quote:
            yield i, c, depth
        depth += c in OPEN
