"""Fills the pages in: runs every command and program that they show, and writes what it printed behind it.

    python docs/render.py                # write all pages
    python docs/render.py docs/spec.md   # write one
    python docs/render.py --check        # write nothing; exit 1 where a page differs from what is printed today

What is run in a page, in its order, in one fresh folder that has a copy of specs/ and examples/:

    ```console             "$ " begins a command, what it prints stands behind it: stdout, and stderr if it fails
    ```python              a program of its own; if it does not say `import peftc`, it runs where that fails
    ```text                right behind a program: what it prints (numbers with decimals may differ by a tenth)
    ```python file=PATH    a file, written (any language)
    ```diff                an edit of a file, applied; the page then runs on a copy of peftc
    <!-- table NAME -->    a table of docs/tables.py, up to <!-- end -->
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import tables  # noqa: E402 - the line above makes it importable

BY_OTHERS = ("coverage.md",)  # written by tests, no page of commands
BLOCK = re.compile(r"^```(?P<kind>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.M | re.S)
TABLE = re.compile(r"^<!-- table (?P<name>[\w-]+) -->\n.*?^<!-- end -->$", re.M | re.S)
NUMBER = re.compile(r"\d+\.\d+")


def pages() -> list[Path]:
    """The pages that this file renders."""
    return [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in BY_OTHERS)]


def rendered(text: str) -> str:
    """The page as its commands print it today."""
    text = TABLE.sub(lambda found: tables.marked(found["name"]), text)
    with sandbox(copied="```diff" in text) as folder:
        return "".join(_blocks(text, folder))


@contextlib.contextmanager
def sandbox(copied: bool) -> Iterator[Path]:
    """A folder to run in, with the specs and examples; with a peftc and tests of its own where a page edits them."""
    with tempfile.TemporaryDirectory() as name:
        for part in ("specs", "examples", *(["peftc", "tests"] if copied else [])):
            shutil.copytree(ROOT / part, Path(name, part), ignore=shutil.ignore_patterns("__pycache__"))
        if copied:
            shutil.copy(ROOT / "pyproject.toml", name)
        with contextlib.chdir(name):
            yield Path(name)


def _blocks(text: str, folder: Path) -> Iterator[str]:
    end, printed = 0, None
    for found in BLOCK.finditer(text):
        between = text[end : found.start()]
        yield between
        shown = found["text"]
        if found["kind"] == "text" and printed is not None and not between.strip():
            shown = shown if close(shown, printed) else printed
        printed = None
        if found["file"]:
            written(folder / found["file"], shown)
        elif found["kind"] == "diff":
            edited(folder, shown)
        elif found["kind"] == "console":
            shown = "".join(_commands(shown, folder))
        elif found["kind"] == "python":
            printed = program(shown, folder)
        head = found[0].partition("\n")[0]
        yield f"{head}\n{shown}```"
        end = found.end()
    yield text[end:]


def close(shown: str, printed: str) -> bool:
    """Whether two texts are the same but for small differences of numbers with decimals, as between processors."""
    if NUMBER.sub("#", shown) != NUMBER.sub("#", printed):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= 0.1 * abs(float(b)) for a, b in pairs)


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def edited(folder: Path, diff: str) -> None:
    """Apply a diff that has one file, named by its `+++` line, and needs no line numbers."""
    name, *lines = [line for line in diff.splitlines() if not line.startswith(("--- ", "@@"))]
    path = folder / name.removeprefix("+++ ").removeprefix("b/")
    old, new = ("\n".join(line[1:] for line in lines if line[:1] in (" ", sign)) for sign in "-+")
    text = path.read_text("utf-8")
    if text.count(old) != 1:
        raise SystemExit(f"the diff of {path.name} does not apply")
    path.write_text(text.replace(old, new), encoding="utf-8")


def _commands(block: str, folder: Path) -> Iterator[str]:
    for line in block.splitlines():
        if line.startswith("$ "):
            output = "\n".join(part.rstrip() for part in command(line[2:], folder).splitlines()).rstrip()
            yield f"{line}\n{output}\n" if output else f"{line}\n"


def command(line: str, folder: Path) -> str:
    """What a command prints; peftc itself runs in this process, which has torch loaded already."""
    if not line.startswith("peftc ") or (folder / "peftc").exists():
        return shell(re.sub("^peftc ", "python -m peftc ", line))
    first, _, rest = line.partition(" | ")
    printed = peftc(shlex.split(first)[1:])
    return shell(rest, printed) if rest else printed


def peftc(arguments: list[str]) -> str:
    from peftc import cli

    out, err, code, before = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = ["peftc", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = before
    return out.getvalue() + (err.getvalue() if code else "")


def shell(line: str, given: str = "") -> str:
    run = subprocess.run(
        ["bash", "-c", line], input=given, env=environment(), capture_output=True, text=True, timeout=300
    )
    return run.stdout + (run.stderr if run.returncode else "")


def program(text: str, folder: Path) -> str:
    """What a program prints."""
    start = "" if "import peftc" in text else "import sys; sys.modules['peftc'] = None\n"
    run = subprocess.run(
        [sys.executable, "-"], input=start + text, env=environment(), capture_output=True, text=True, timeout=300
    )
    if run.returncode:
        raise SystemExit(f"a program of the page failed:\n{text}\n{run.stderr}")
    return run.stdout


def environment() -> dict[str, str]:
    """Offline, and with the peftc of the folder, or of this checkout."""
    paths: dict[str, list[str | Path]] = {
        "PATH": [Path(sys.executable).parent, os.environ["PATH"]],
        "PYTHONPATH": [Path.cwd(), ROOT],
    }
    joined = {name: os.pathsep.join(map(str, parts)) for name, parts in paths.items()}
    return {**os.environ, **joined, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def difference(page: Path) -> str:
    """What rendering would change in a page, as a diff."""
    text = page.read_text("utf-8")
    return "".join(
        difflib.unified_diff(text.splitlines(True), rendered(text).splitlines(True), page.name, "what is printed today")
    )


def main(arguments: list[str]) -> None:
    chosen = [Path(name).resolve() for name in arguments if name != "--check"] or pages()
    if "--check" in arguments:
        found = "".join(difference(page) for page in chosen)
        sys.stdout.write(found)
        raise SystemExit(1 if found else 0)
    for page in chosen:
        page.write_text(rendered(page.read_text("utf-8")), encoding="utf-8")
        sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
