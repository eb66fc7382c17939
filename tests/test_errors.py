"""A bad spec and the exact text that it must print, side by side in tests/errors.

The first line of a spec may name the base that it is resolved on: `# base: causal`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftc.errors import PeftcError
from peftc.graph.sites import Trace
from peftc.plan import resolve
from peftc.spec.load import loads
from tests.byhand import by_hand, fused

FOLDER = Path(__file__).parent / "errors"
BASES: dict[str, Callable[[], Trace]] = {
    "encoder": by_hand,
    "causal": lambda: by_hand(causal=True),
    "headless": lambda: by_hand(head=False),
    "without biases": lambda: by_hand(bias=False),
    "two towers": lambda: by_hand({"encoder": 4, "decoder": 2}),
    "fused": lambda: fused(by_hand()),
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_error(path: Path) -> None:
    text = path.read_text("utf-8")
    first = text.partition("\n")[0]
    base = BASES[first.removeprefix("# base: ") if first.startswith("# base: ") else "encoder"]
    with pytest.raises(PeftcError) as caught:
        resolve(loads(text, path.name), base())
    assert f"{caught.value}\n" == path.with_suffix(".txt").read_text("utf-8")


def test_every_message_belongs_to_a_spec() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {path.stem for path in FOLDER.glob("*.txt")}
