"""modeling_<name>.py: the program as one file that needs torch and transformers only."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

from torch import nn

from peftc.emit.imports import arranged, of_module
from peftc.emit.literal import literal
from peftc.emit.sources import Pasted, digest, paste, stood_on
from peftc.emit.units import Class, call_text, class_text, classes, docstring, placed
from peftc.errors import PeftcError, Problem
from peftc.rewrite.program import Program
from peftc.spec.patterns import compress

if TYPE_CHECKING:
    from peftc.emit.statements import Forward

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Heading:
    """What the first lines say: the methods, and how many parameters train and are stored."""

    methods: tuple[str, ...]
    trained: int
    stored: int


# What the model's class has beside its `share` where torch would otherwise pass by its units.
_SLOWLY = """\
    def attach(self):
        for module in self.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0  # or torch passes by the units above in evaluation
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # which no unit above can read
        super().attach()""".splitlines()
NOTHING = Heading((), 0, 0)


@dataclass(frozen=True, eq=False)
class Source:
    """The text of an artifact's module, and the sha256 of all of the base that it stands on, by "module:name"."""

    text: str
    stands_on: Mapping[str, str]


def module_source(
    program: Program,
    forwards: Mapping[str, Forward],
    heading: Heading,
    auto_classes: tuple[str, ...],
    config: Mapping[str, object],
) -> Source:
    """The artifact's module.  `forwards` by the body's name; `config` is the base's without its defaults."""
    units, model = classes(program.bodies), type(program.plan.trace.model)
    basis, names = stood_upon(program), aliases(program)
    pasted = _pasted(program, forwards.values())
    shared = tuple(s.name for s in program.shared)
    blocks = [
        _docstring(program, heading, model.__name__),
        arranged(_imports(pasted, forwards.values(), names)),
        _facts(program, basis, names),
        _own("guard"),
        *(() if heading is NOTHING else ("check_sources(SOURCES)",)),
        *(_plain(piece.text) for piece in pasted.pieces),
        *(class_text(u, _name(u.body.unit.base, names), forwards[u.body.name].lines, shared) for u in units),
        _places(program, units, auto_classes, config),
        _own("machinery"),
        _own("compiled"),
        _model_class(program, _name(model, names)),
    ]
    return Source(_joined(blocks), {f"{m}:{n}": d for m, found in basis.items() for n, d in found.items()})


def stood_upon(program: Program) -> dict[str, dict[str, str]]:
    """module -> name -> sha256 of what was rewritten or inlined, and of the model's class."""
    model = program.plan.trace.model
    found: dict[str, type | FunctionType] = {f"{type(model).__module__}:{type(model).__qualname__}": type(model)}
    for body in program.bodies:
        found |= stood_on(body.unit, body.paths[0], model)
    hashes: dict[str, dict[str, str]] = {}
    for key in sorted(found):
        module, _, name = key.partition(":")
        if "." not in name and (value := digest(found[key])):
            hashes.setdefault(module, {})[name] = value
    return hashes


def aliases(program: Program) -> dict[str, str]:
    """module -> the name that the artifact has for it: `base` for the model's own, its last name for any other."""
    own = type(program.plan.trace.model).__module__
    names = {own, *(body.unit.base.__module__ for body in program.bodies), *stood_upon(program)}
    return {name: "base" if name == own else name.rpartition(".")[2] for name in sorted(names)}


def _name(base: type[nn.Module], names: Mapping[str, str]) -> str:
    try:
        found = attrgetter(base.__qualname__)(sys.modules[base.__module__])
    except AttributeError:
        found = None
    if found is not base:
        said = f"no import finds {base.__module__}.{base.__qualname__}, which the emitted file builds on"
        raise PeftcError(Problem(said, hint="define it at the top level of a module, or of a notebook"))
    return f"{names[base.__module__]}.{base.__qualname__}"


def _pasted(program: Program, forwards: Iterable[Forward]) -> Pasted:
    added = {call.name for body in program.bodies for addition in body.additions for call in addition.calls.values()}
    trunks = {shared.module.call.name for shared in program.shared}
    return paste(added | trunks | {name for forward in forwards for name in forward.functions})


def _imports(pasted: Pasted, forwards: Iterable[Forward], names: Mapping[str, str]) -> Iterator[str]:
    yield from pasted.imports
    for forward in forwards:
        yield from forward.globals.values()
    for name, alias in names.items():
        yield of_module(sys.modules[name], alias)
    for own in ("guard", "machinery", "compiled"):
        found = [s for s in _parsed(own).body if isinstance(s, ast.Import | ast.ImportFrom)]
        yield from (line for line in map(ast.unparse, found) if not line.startswith("from peftc"))


@cache
def _parsed(own: str) -> ast.Module:
    return ast.parse((HERE / f"{own}.py").read_text("utf-8"))


@cache
def _own(own: str) -> str:
    """The part of one of this folder's files that is pasted: from its first class or function on."""
    text = (HERE / f"{own}.py").read_text("utf-8")
    first = next(s.lineno for s in ast.parse(text).body if isinstance(s, ast.ClassDef | ast.FunctionDef))
    return _plain("\n".join(text.splitlines()[first - 1 :]))


def _plain(text: str) -> str:
    """Source text without the remarks to a type checker."""
    return re.sub(r"  # type: [^\n]*", "", text)


def _docstring(program: Program, heading: Heading, model: str) -> str:
    spec = program.plan.spec
    methods = listed(heading.methods) or "no method"
    rows = [
        f"{spec.name}: {model} with {methods}.",
        "",
        f"Compiled by peftc from the spec {spec.name}: edit that, not this file.  Needs torch and transformers only.",
        f"Trains {heading.trained:,} parameters, stores {heading.stored:,}.  See budget.md.",
    ]
    return "\n".join(['"""' + rows[0], *rows[1:], '"""'])


def listed(names: tuple[str, ...]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _facts(program: Program, basis: Mapping[str, Mapping[str, str]], names: Mapping[str, str]) -> str:
    spec = program.plan.spec
    rows = ["# What this file was compiled against: sha256 of each source text.", "SOURCES = {"]
    for module, hashes in basis.items():
        digests = [f'        "{name}": "{value}",' for name, value in hashes.items()]
        rows += [f"    {names[module]}: {{", *digests, "    },"]
    dtype = "None  # as the base" if spec.dtype == "base" else f"torch.{spec.dtype}"
    name = literal(spec.name.replace("-", "_"))
    return "\n".join([*rows, "}", f"NAME = {name}", f"SEED = {spec.seed}", f"DTYPE = {dtype}"])


def _places(
    program: Program, units: tuple[Class, ...], auto_classes: tuple[str, ...], config: Mapping[str, object]
) -> str:
    found = placed(units)
    raw = "{" + ", ".join(f"{literal(k)}: {v}" for k, v in found.items()) + "}"
    if len(raw) > 100:
        raw = "\n".join(["{", *(f"    {literal(k)}: {v}," for k, v in found.items()), "}"])
    trained = literal(compress(program.trained), used=len("TRAINED = "))
    return "\n".join(
        [
            "# Which class goes where, and which parameters train; {0-2, 5} stands for 0, 1, 2 and 5.",
            f"UNITS = {raw}",
            f"TRAINED = {trained}",
            "",
            "# The plan that this file implements, the base's config without its defaults, and what loads the model.",
            f'PLAN = "{program.plan.hash}"',
            f"CONFIG = {literal(dict(config), used=len('CONFIG = '))}",
            f"AUTO_CLASSES = {literal(auto_classes, used=len('AUTO_CLASSES = '))}",
        ]
    )


def _model_class(program: Program, base: str) -> str:
    model = type(program.plan.trace.model).__name__
    about = docstring("The base with the units above: from_base, from_pretrained, save_adapter, load_adapter, …")
    rows = [f"class {model}(Compiled, {base}):", *(f"    {row}" for row in about)]
    if any(isinstance(module, nn.TransformerEncoderLayer) for module in program.plan.trace.model.modules()):
        rows += ["", *_SLOWLY]
    if not program.shared:
        return "\n".join(rows)
    rows += ["", "    def share(self):"]
    for shared in program.shared:
        head = f"self.{shared.name} = "
        rows.append(f"        {head}{call_text({'': shared.module.call}, (), len(head))}")
        rows.append(f"        self.{shared.name}.once_per_forward(self)")
    return "\n".join(rows)


def _joined(blocks: Iterable[str]) -> str:
    """Blocks with one blank line after the docstring and the imports, two elsewhere."""
    first, imports, *rest = blocks
    text = f"{first}\n\n{imports}\n\n" + "\n\n\n".join(block.strip("\n") for block in rest) + "\n"
    return text
