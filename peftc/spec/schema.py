"""The spec: its file model, and the frozen value that the later stages read."""

from __future__ import annotations

import json
import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from peftc.errors import Place, Problem, raise_all
from peftc.methods import METHODS
from peftc.methods.base import Method, Names
from peftc.methods.gate import Gate
from peftc.spec import layers, presets
from peftc.spec.complaints import complaints
from peftc.spec.document import Node, Origin, shown
from peftc.spec.limits import Limits

TASKS = {
    "audio-classification": "AudioClassification",
    "causal-lm": "CausalLM",
    "image-classification": "ImageClassification",
    "image-text-to-text": "ImageTextToText",
    "masked-lm": "MaskedLM",
    "multiple-choice": "MultipleChoice",
    "next-sentence-prediction": "NextSentencePrediction",
    "pretraining": "PreTraining",
    "question-answering": "QuestionAnswering",
    "seq2seq-lm": "Seq2SeqLM",
    "sequence-classification": "SequenceClassification",
    "speech-seq2seq": "SpeechSeq2Seq",
    "text-encoding": "TextEncoding",
    "token-classification": "TokenClassification",
}  # task -> what its Auto class is an AutoModelFor

if TYPE_CHECKING:
    Entry = Method
    Task = str
else:
    Entry = Annotated[Union[METHODS], Field(discriminator="method")]  # noqa: UP007
    Task = Literal[tuple(TASKS)]

Text = Annotated[str, Field(min_length=1, max_length=500)]
Dtype = Literal["float32", "bfloat16", "float16", "base"]

_NAME = r"^[A-Za-z][A-Za-z0-9-]{0,63}$"
_CENTRAL = "as in gate: {kind: central, shared: g}"
_RUNS_CODE = ("auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation", "experts_implementation")


class Base(BaseModel):
    """The pretrained model: exactly one of `model` and `config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Text | None = Field(None, description="a hub id or a local folder; its config is enough to compile")
    config: dict[str, JsonValue] | None = Field(None, description="a config written out, with its model_type: no files")
    revision: Text | None = Field(None, description="branch, tag or commit of the hub model")
    task: Task | None = Field(None, description="which AutoModelFor… class; AutoModel if left out")

    @field_validator("model", "revision")
    @classmethod
    def _printable(cls, text: str | None) -> str | None:
        if text is not None and not text.isprintable():
            raise ValueError("a name of characters that can be printed is needed here")
        return text

    @field_validator("config")
    @classmethod
    def _plain(cls, config: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if config is None:
            return None
        if not isinstance(config.get("model_type"), str):
            raise ValueError("a config needs its model_type, as in {model_type: bert, num_hidden_layers: 4}")
        for key in _RUNS_CODE:
            if key in config:
                raise ValueError(f"a config written out cannot have {key}: it chooses code, not sizes")
        return config

    @model_validator(mode="after")
    def _one_source(self) -> Base:
        if (self.model is None) == (self.config is None):
            raise ValueError("a base has either model or config")
        if self.revision is not None and self.model is None:
            raise ValueError("a revision belongs to a model; a config written out has none")
        return self


class SpecFile(BaseModel):
    """A spec for peftc: a base model, and the methods that make it trainable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME, description="letters, digits and hyphens; the artifact is generated/<name>/")
    base: Base = Field(description="the pretrained model")
    seed: int = Field(0, ge=0, lt=2**63, description="what the additions are initialised from")
    dtype: Dtype = Field("float32", description="of the added parameters; base: as the base")
    methods: tuple[Entry, ...] = Field(max_length=500, description="what is added to the base, or trained in it")
    train: Names = Field((), description="parts of the base that stay trainable: head, or globs over module names")
    budget: Limits = Field(Limits(), description="a compile over budget is an error")

    @field_validator("name")
    @classmethod
    def _no_keyword(cls, name: str) -> str:
        if keyword.iskeyword(name.replace("-", "_")):
            raise ValueError(f"{name!r} is a word of Python and cannot name a module")
        return name


@dataclass(frozen=True, eq=False)
class Spec:
    """What the user wrote, presets expanded.  `digest`: sha256 of the text; `origin`: where each value stands."""

    name: str
    base: Base
    methods: tuple[Method, ...]
    seed: int = 0
    dtype: Dtype = "float32"
    train: tuple[str, ...] = ()
    budget: Limits = field(default_factory=Limits)
    digest: str = ""
    origin: Origin = field(default_factory=Origin)


def checked(root: Node, found: tuple[Problem, ...], digest: str) -> Spec:
    """The spec in a document.  Raises PeftcError with what was `found` before and every complaint about the values."""
    expansion, problems = presets.expand(root)
    problems += _layer_problems(expansion)
    try:
        file = SpecFile.model_validate_json(json.dumps(expansion.plain()), strict=True)
    except ValidationError as error:
        file = None
        problems += complaints(error, expansion, _file_schema())
    if file is not None:
        problems += _shared_problems(file.methods, Origin(expansion))
    known = {_position(problem.place) for problem in found}
    raise_all(_sorted([*found, *(problem for problem in problems if _position(problem.place) not in known)]))
    assert file is not None
    return Spec(
        name=file.name, base=file.base, methods=file.methods, seed=file.seed, dtype=file.dtype,
        train=file.train, budget=file.budget, digest=digest, origin=Origin(expansion),
    )  # fmt: skip


def _sorted(problems: Sequence[Problem]) -> list[Problem]:
    """In the order of the file, what has no place at the end."""
    return sorted(dict.fromkeys(problems), key=lambda problem: _position(problem.place))


def _position(place: Place | None) -> tuple[int, int]:
    return (place.line, place.column) if place else (sys.maxsize, 0)


def _layer_problems(root: Node) -> list[Problem]:
    """Layer selectors that cannot be read; what is no selector at all is the file model's to say."""
    methods = root.child("methods")
    entries = methods.value if methods and isinstance(methods.value, tuple) else ()
    return [problem for entry in entries if (problem := _layer_problem(entry.child("layers")))]


def _layer_problem(node: Node | None) -> Problem | None:
    value = node.plain() if node else None
    terms = value if isinstance(value, list) else [value]
    if node is None or not all(isinstance(term, str | int) and not isinstance(term, bool) for term in terms):
        return None
    written: list[layers.Layers] = [str(term) for term in terms] or [()]
    for position, term in enumerate(written):
        try:
            layers.check(term)
        except layers.LayersError as error:
            return Problem(str(error), node.nearest((position,)).place)
    return None


def _shared_problems(methods: tuple[Method, ...], origin: Origin) -> list[Problem]:
    """What a gate's `shared` says must be the name of an attribute, and only a central gate has it."""
    problems = []
    for index, gate in ((i, m.gate) for i, m in enumerate(methods) if m.gate):
        fault = _shared_fault(gate)
        if fault is not None:
            problems.append(Problem(fault, origin.place("methods", index, "gate", "shared"), _CENTRAL))
    return problems


def _shared_fault(gate: Gate) -> str | None:
    if gate.shared is None:
        return "a central gate needs the name under which it is shared" if gate.kind == "central" else None
    if gate.kind != "central":
        return f"a {gate.kind} gate is not shared, only a central one is"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", gate.shared) or keyword.iskeyword(gate.shared):
        return f"{shown(gate.shared)} is no name for a gate: small letters, digits and underscores, a letter first"
    return None


def json_schema() -> dict[str, Any]:
    """A JSON Schema of the file, for editors: presets included."""
    schema = _file_schema()
    definitions = schema["$defs"]
    definitions["Base"]["oneOf"] = [{"required": ["model"]}, {"required": ["config"]}]
    entries = schema["properties"]["methods"]["items"]
    own = {tag: ref.rsplit("/", 1)[-1] for tag, ref in entries["discriminator"]["mapping"].items()}
    offered = presets.schemas({tag: definitions[name] for tag, name in own.items()})
    for name in own.values():
        definitions[name]["required"] = ["method"]
    schema["properties"]["methods"]["items"] = {"oneOf": [*entries["oneOf"], *offered]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _file_schema() -> dict[str, Any]:
    """The schema of a file whose presets are expanded, with the short form of a gate."""
    schema = SpecFile.model_json_schema()
    definitions, gate = schema["$defs"], schema["$defs"]["Gate"]
    definitions["Gate"] = _with_short_form(gate)
    definitions["GateOverride"] = _with_short_form({**gate, "required": []})
    return schema


def _with_short_form(gate: dict[str, Any]) -> dict[str, Any]:
    return {"description": gate["description"], "anyOf": [gate["properties"]["kind"], gate]}
