"""Verifying an artifact from another folder than it was compiled in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from peftc.cli_verify import verified
from peftc.compiler import compile
from peftc.errors import PeftcError
from peftc.spec.load import loads
from tests.laws import emitted, trace
from tests.zoo import named


def test_a_base_that_is_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says where to run; a folder that is named from the root is never guessed at."""
    tiny = named("bert")
    AutoConfig.for_model(**tiny.config()).save_pretrained(tmp_path / "here" / "base")
    (tmp_path / "elsewhere").mkdir()
    for base, hinted in (("base", True), (str(tmp_path / "nothere"), False)):
        text = {"name": "far", "base": {"model": base, "task": tiny.task}, "methods": [{"method": "lora"}]}
        folder = emitted(loads(json.dumps(text)), trace(tiny))[1].write(tmp_path / "out")
        monkeypatch.chdir(tmp_path / "elsewhere")
        with pytest.raises(PeftcError, match="the base's config cannot be read") as caught:
            verified(folder, lambda stage: None)
        (problem,) = caught.value.problems
        assert problem.place is not None and problem.place.file == str(folder / "spec.json")
        assert ("if base is a folder, verify in the working directory" in (problem.hint or "")) == hinted


def test_what_no_compile_wrote_is_named(tmp_path: Path) -> None:
    tiny = named("bert")
    text = {"name": "near", "base": {"config": tiny.config(), "task": tiny.task}, "methods": [{"method": "lora"}]}
    folder = emitted(loads(json.dumps(text)), trace(tiny))[1].write(tmp_path / "out")
    (folder / "extra.py").write_text("")
    (folder / ".git").mkdir()
    with pytest.raises(PeftcError, match=r"extra\.py is not in peftc\.lock\.json"):
        verified(folder, lambda stage: None)


def test_what_the_lock_says_is_compared_too(tmp_path: Path) -> None:
    """But for the hash of the YAML, which is no part of an artifact, and for versions, which are a hint."""
    tiny = named("bert")
    text = {"name": "kept", "base": {"config": tiny.config(), "task": tiny.task}, "methods": [{"method": "lora"}]}
    folder = compile(loads(json.dumps(text))).write(tmp_path / "out").rename(tmp_path / "moved")
    lock = folder / "peftc.lock.json"
    written = json.loads(lock.read_text())
    lock.write_text(json.dumps({**written, "spec": "", "versions": 7}))
    verified(folder, lambda stage: None)
    proof = {"lines": ["equal to anything"], "cases": 42}
    lock.write_text(json.dumps({**written, "proof": proof, "versions": {"torch": "1"}}))
    with pytest.raises(PeftcError, match=r"lock\.json is not what the spec compiles to\nhint: compiled with torch 1 "):
        verified(folder, lambda stage: None)
