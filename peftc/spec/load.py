"""YAML text -> Spec: the only place that reads YAML, and it reads it with limits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import yaml

from peftc.errors import PeftcError, Place, Problem
from peftc.spec.document import Node, Scalar, shown
from peftc.spec.schema import Spec, checked

FILE_BYTES = 256 * 1024
DEPTH = 40
VALUES = 20_000
INTEGER = 2**63

_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|0o[0-7][0-7_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 1e-3 is a number, `on` is a word, a date is text."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth >= DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEPTH} deep", problem_mark=self.get_mark())
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INTEGER.pattern, list("-+0123456789")),
    ("float", _FLOAT.pattern, list("-+.0123456789")),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


def load(path: str | Path) -> Spec:
    """The spec in a file.  Raises PeftcError with every complaint."""
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"cannot read {shown(file)}: {(reason or 'unreadable').lower()}"
        raise PeftcError(Problem(message, hint=_near(Path(path)))) from None
    if len(data) > FILE_BYTES:
        raise PeftcError(f"{file} is larger than {FILE_BYTES // 1024} KiB, which no spec is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text: this byte is 0x{data[error.start]:02x}"
        place = _place_of(data, error.start, file)
        raise PeftcError(Problem(message, place, "a spec is a text file, in YAML")) from None
    return loads(text, file)


def _place_of(data: bytes, position: int, file: str) -> Place:
    """Where a byte stands, in lines of what can be shown."""
    before, line = data[:position].rpartition(b"\n")[2], data[position:].partition(b"\n")[0]
    text = f"{before.decode('utf-8', 'replace')}{line.decode('utf-8', 'replace')}"
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return Place(file, data.count(b"\n", 0, position) + 1, len(before.decode("utf-8", "replace")) + 1, shown)


def _near(path: Path) -> str | None:
    """A hint: the spec that was probably meant, in a folder or beside a name that nothing has."""
    folder = path if path.is_dir() else path.parent
    found = sorted(str(near) for near in folder.glob("*.yaml") if near.is_file()) if folder.is_dir() else []
    if folder is path:
        return f"name a file in it, as {found[0]}" if found else "a spec is a file"
    return f"did you mean {near[0]}?" if (near := get_close_matches(str(path), found, 1, 0.75)) else None


def written(spec: Spec | Mapping[str, object] | str | Path) -> Spec:
    """A spec as whoever calls has it: one that is read, what its YAML would hold, or the path of its file."""
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, str | Path):
        return load(spec)
    try:
        text = yaml.safe_dump(dict(spec), sort_keys=False)
    except (TypeError, ValueError, yaml.YAMLError) as error:
        message = f"no spec, nor the path of one: {str(error).partition(chr(10))[0]}"
        raise PeftcError(Problem(message, hint="a dict holds what its YAML would")) from None
    return loads(text)


def loads(text: str, file: str = "<spec>") -> Spec:
    """The spec in a text.  `file` is what messages call it."""
    if len(text) > FILE_BYTES:
        raise PeftcError(f"{file} is larger than {FILE_BYTES // 1024} KiB, which no spec is")
    builder = _Builder(file, text)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return checked(builder.document(), tuple(builder.problems), digest)


class _Builder:
    """Composed YAML -> Node, aliases expanded and counted, merge keys merged; complaints are kept in `problems`."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.lines = ["".join(c if c.isprintable() else " " for c in line) for line in _BREAK.split(text)]
        self.values = 0
        self.problems: list[Problem] = []

    def document(self) -> Node:
        root = self._composed()
        if root is None:
            hint = "a spec needs name, base and methods"
            raise PeftcError(Problem(f"{self.file} is empty", self._at(0, 0, 1), hint))
        return self._node(root, ())

    def _composed(self) -> yaml.Node | None:
        try:
            return _Loader(self.text).get_single_node()
        except yaml.MarkedYAMLError as error:
            raise PeftcError(self._invalid(error)) from None
        except yaml.reader.ReaderError as error:
            before = _BREAK.split(self.text[: error.position])
            place = self._at(len(before) - 1, len(before[-1]), 1)
            code = ord(self.text[error.position])
            raise PeftcError(Problem(f"a character that YAML does not allow: U+{code:04X}", place)) from None
        except ValueError as error:
            raise PeftcError(f"{self.file} is not YAML: {error}") from None

    def _invalid(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        place = self._at(mark.line, mark.column, 1) if mark else None
        problem = (error.problem or error.context or "cannot be read").replace("\n", " ")
        if "another document" in problem:
            return Problem("a second document starts here", place, "a file holds one spec; write two files")
        hint = "indent with spaces, not tabs" if "'\\t'" in problem else None
        return Problem(f"not YAML: {problem}", place, hint)

    def _at(self, line: int, column: int, width: int) -> Place:
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.file, line + 1, column + 1, text, max(1, min(width, len(text) - column)))

    def _place(self, node: yaml.Node) -> Place:
        """A node's own characters, or the rest of its first line where it has several."""
        start, end = node.start_mark, node.end_mark
        if start.line == end.line:
            return self._at(start.line, start.column, end.column - start.column)
        line = self.lines[start.line]
        return self._at(start.line, start.column, len(line.split(" #")[0].rstrip()) - start.column)

    def _node(self, node: yaml.Node, above: tuple[int, ...]) -> Node:
        place = self._place(node)
        self.values += 1
        if id(node) in above:
            raise PeftcError(Problem("an alias that contains itself", place))
        if self.values > VALUES or len(above) > DEPTH:
            raise PeftcError(
                Problem(f"too much: aliases included, a spec has at most {VALUES} values and is {DEPTH} deep", place)
            )
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, place, above)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Node(tuple(self._node(item, above) for item in node.value), place)
        return Node(self._scalar(node, place), place)

    def _mapping(self, node: yaml.MappingNode, place: Place, above: tuple[int, ...]) -> Node:
        own: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            key, at = self._key(key_node), self._place(key_node)
            value = self._node(value_node, above)
            if key in keys:
                message = f"the key {shown(key)} stands here twice, first in line {keys[key].line}"
                self.problems.append(Problem(message, at))
                continue
            if key is not None:
                keys[key] = at
            if key_node.tag == _TAG + "merge":
                merged += self._merged(value)
            elif key is not None:
                own[key] = value
        for other in merged:
            own = {**_mapping_of(other), **own}
            keys = {**other.keys, **keys}
        return Node(own, place, keys)

    def _merged(self, value: Node) -> list[Node]:
        """The mappings that a merge key names, the first being the strongest."""
        found = list(value.value) if isinstance(value.value, tuple) else [value]
        if all(_is_mapping(item) for item in found):
            return found
        self.problems.append(Problem("`<<` merges a mapping, or a list of mappings", value.place))
        return []

    def _key(self, node: yaml.Node) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag in {_TAG + "str", _TAG + "int", _TAG + "merge"}:
            text = str(node.value)
            return text if self._encodable(text, node) else None
        self.problems.append(Problem("a key must be text", self._place(node)))
        return None

    def _scalar(self, node: yaml.Node, place: Place) -> Scalar:
        kind = node.tag.removeprefix(_TAG)
        if not isinstance(node, yaml.ScalarNode) or kind not in {"str", "null", "bool", "int", "float", "merge"}:
            tag = shown(node.tag.replace(_TAG, "!!"))
            self.problems.append(Problem(f"the tag {tag} is not allowed", place, "a spec is plain YAML"))
            return None
        text = str(node.value)
        if kind in {"str", "merge"}:
            return text if self._encodable(text, node) else None
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in {"true", "false"}:
            return text.lower() == "true"
        number = _integer(text) if kind == "int" else _float(text) if kind == "float" else None
        if number is None:
            self.problems.append(Problem(f"{shown(text)} is not a number that a spec can hold", place))
        return number

    def _encodable(self, text: str, node: yaml.Node) -> bool:
        if not any("\ud800" <= c <= "\udfff" for c in text):
            return True
        self.problems.append(Problem("half of a surrogate pair is not text", self._place(node)))
        return False


def _is_mapping(node: Node) -> bool:
    return isinstance(node.value, dict)


def _mapping_of(node: Node) -> dict[str, Node]:
    return dict(node.value) if isinstance(node.value, dict) else {}


def _integer(text: str) -> int | None:
    """The integer, or None where it is none or larger than 64 bits."""
    if len(text) > 80 or not _INTEGER.fullmatch(text):
        return None
    digits = text.replace("_", "")
    base = {"0x": 16, "0o": 8}.get(digits[:2], 10)
    number = int(digits, base)
    return number if abs(number) < INTEGER else None


def _float(text: str) -> float | None:
    """The number, or None where it is none or overflows."""
    if len(text) > 80 or not _FLOAT.fullmatch(text):
        return None
    number = float(text.replace("_", ""))
    return number if abs(number) != float("inf") else None
