"""The command line: the only file that prints or exits.

Exit codes: 0 done, 1 the spec or the artifact is wrong, 2 usage, 3 a defect of peftc, 130 interrupted.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar, get_args

import typer
from rich.console import Console

from peftc import __version__
from peftc.errors import PeftcError, Problem, raise_all

if TYPE_CHECKING:
    from peftc.emit.artifact import Artifact
    from peftc.spec.schema import Spec

Item = TypeVar("Item")
Made = TypeVar("Made")
SpecFile = Annotated[Path, typer.Argument(help="A spec, in YAML.", metavar="SPEC")]
SpecFiles = Annotated[list[Path], typer.Argument(help="One or more specs, in YAML.", metavar="SPEC...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        _print(f"peftc {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]

app = typer.Typer(
    name="peftc",
    help="Compiles a YAML spec of parameter-efficient methods into a plain Hugging Face model class.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit: a wrong spec ends in its messages, a defect of peftc in a traceback."""
    gc.set_threshold(50_000)  # nearly all objects are the imports', and stay
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _interrupts() as interrupts:
        try:
            typer.main.get_command(app)(prog_name="peftc")
        except PeftcError as error:
            _complain(str(error), 1)
        except SystemExit as ended:
            if ended.code == 130:
                _interrupted()
            raise
        except Exception as error:  # house: ok - the one handler of defects: it hides nothing
            if interrupts:
                _interrupted()
            if isinstance(error, OSError) and (full := _unwritten()):
                _complain(str(full), 1)
            _complain(f"{traceback.format_exc()}\nthis is a defect of peftc {__version__}, not of your spec", 3)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Every Ctrl-C from here on, also one that a library's lazy import turns into an error of its own."""
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@app.callback()
def _options(version: Version = False) -> None:
    pass


@app.command()
def compile(
    specs: SpecFiles,
    out: Annotated[Path, typer.Option(help="The folder that holds the artifacts.")] = Path("generated"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where an artifact differs.")] = False,
) -> None:
    """Write an artifact for each spec, or with --check compare them; nothing is written unless every spec compiles."""
    read = _read(specs)
    raise_all([] if check else _obstacles(read, out))
    artifacts, problems = _each(_compiled, read)
    raise_all(problems)
    finish = _check if check else _write
    finished = [finish(spec, artifact, out) for spec, artifact in zip(read, artifacts, strict=True)]
    raise_all(problem for found in finished for problem in found)


@app.command()
def plan(spec: SpecFile, as_json: Json = False) -> None:
    """Show every placement, unit by unit, with what it costs, and the expanded spec."""
    written = _read([spec])[0]
    with _progress(written.name) as stage:
        from peftc.compiler import planned
        from peftc.report import render
        from peftc.report.budget import count, over
        from peftc.report.text import plan_text

        resolved = planned(written, stage)
        cost = count(resolved)
    _print(render.as_json(render.plan_record(resolved, cost)) if as_json else plan_text(resolved, cost))
    raise_all(over(written, cost))


@app.command()
def budget(spec: SpecFile, as_json: Json = False) -> None:
    """Show what trains and what is stored; fails where the spec's limits are passed."""
    written = _read([spec])[0]
    with _progress(written.name) as stage:
        from peftc.compiler import planned
        from peftc.report import render
        from peftc.report.budget import count, over
        from peftc.report.text import budget_text

        cost = count(planned(written, stage))
    _print(render.as_json(render.budget_record(cost)) if as_json else budget_text(cost))
    raise_all(over(written, cost))


@app.command()
def show(
    spec: SpecFile,
    unit: Annotated[str | None, typer.Option(help="One class of the artifact; all of them if left out.")] = None,
    after: Annotated[str | None, typer.Option(metavar="PASS", help="The code after this pass, no difference.")] = None,
) -> None:
    """Show the difference between the rewritten units and the base's, or a unit's code after a pass."""
    written = _read([spec])[0]
    with _progress(written.name) as stage:
        from peftc.cli_show import shown

        text = shown(written, unit, after, stage)
    _print(text)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="An artifact.", metavar="DIR")]) -> None:
    """Compare an artifact with its lock, then prove its program again."""
    with _progress(folder.name or str(folder)) as stage:
        from peftc.cli_verify import verified

        lines = verified(folder, stage)
    _print("\n".join(lines))


@app.command()
def methods() -> None:
    """List the methods, where each stands if its spec says nothing, and the papers."""
    from peftc.methods import METHODS

    for method in METHODS:
        (name,) = get_args(method.model_fields["method"].annotation)
        summary = (method.__doc__ or "").strip().splitlines()[0]
        sites = ", ".join(method.model_validate({"method": name}).default_sites())
        _print(f"{name:<8} {sites:<24} {summary}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of specs, for editors."""
    from peftc.report.render import as_json
    from peftc.spec.schema import json_schema

    _print(as_json(json_schema()))


def _read(paths: list[Path]) -> list[Spec]:
    """Every spec, or every complaint about every spec."""
    from peftc.spec.collisions import collisions
    from peftc.spec.load import load

    read, problems = _each(load, paths)
    raise_all(problems + collisions(read))
    return read


def _each(make: Callable[[Item], Made], items: list[Item]) -> tuple[list[Made], list[Problem]]:
    """What is made of each, and every complaint about any."""
    made: list[Made] = []
    problems: list[Problem] = []
    for item in items:
        try:
            made.append(make(item))
        except PeftcError as error:
            problems += error.problems
    return made, problems


def _obstacles(specs: list[Spec], out: Path) -> list[Problem]:
    """What would keep the artifacts from being written, found before anything is compiled."""
    from peftc.emit.folder import obstacle

    return [problem for spec in specs if (problem := obstacle(out / spec.name))]


def _compiled(spec: Spec) -> Artifact:
    with _progress(spec.name) as stage:
        from peftc.compiler import compile as compiled

        return compiled(spec, stage)


def _write(spec: Spec, artifact: Artifact, out: Path) -> list[Problem]:
    try:
        artifact.write(out)
    except OSError as error:
        return [Problem(f"cannot write {out / spec.name}: {error.strerror or error}")]
    from peftc.cli_verify import proved

    total = artifact.budget.total
    _print(f"{out / spec.name}: trains {total.trained:,}, stores {total.stored:,}")
    _print("\n".join(f"  {line}" for line in proved(artifact)))
    return []


def _check(spec: Spec, artifact: Artifact, out: Path) -> list[Problem]:
    problems = list(artifact.check(out))
    if not problems:
        _print(f"{out / spec.name}: up to date" + (f", {moved}" if (moved := artifact.moved(out / spec.name)) else ""))
    return problems


@contextmanager
def _progress(name: str) -> Iterator[Callable[[str], None]]:
    """Says on stderr which stage runs: one line that changes on a terminal, a line per stage elsewhere."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda stage: console.print(f"{name}: {stage}", soft_wrap=True)
        return
    with console.status(f"{name}: loading torch and transformers") as status:
        yield lambda stage: status.update(f"{name}: {stage}")


def _print(text: str) -> None:
    """To stdout at once, so that a reader who went away is noticed here, where typer ends quietly."""
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error


def _unwritten() -> PeftcError | None:
    """Why stdout does not take what was printed into it, typer's own pages too."""
    try:
        print(end="", flush=True)
    except OSError as error:
        return _unwritable(error)
    return None


def _unwritable(error: OSError) -> PeftcError:
    return PeftcError(f"cannot write to stdout: {error.strerror or error}")


def _interrupted() -> NoReturn:
    """The end at once: where the interrupt passed through an `exec`, Python would die of the signal instead."""
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


def _complain(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr, flush=True)
    sys.exit(code)
