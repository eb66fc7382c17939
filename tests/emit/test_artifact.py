"""Writing and checking: the old artifact or the new one, never a mixture, never another's folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peftc.emit.artifact import Artifact
from peftc.errors import PeftcError
from peftc.methods.call import Cost
from peftc.report.budget import Budget

FREE = Budget(0, 0, Cost(0, 0), ())


def artifact(text: str, version: str = "1", stale: tuple[str, ...] = ()) -> Artifact:
    files = dict.fromkeys(("modeling_one.py", "README.md", *stale), "")
    lock = json.dumps({"files": files, "versions": {"torch": version}})
    return Artifact("one", {"modeling_one.py": text, "README.md": text, "peftc.lock.json": lock}, FREE)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_written_and_replaced(tmp_path: Path) -> None:
    first, second = artifact("a", stale=("stale.md",)), artifact("b")
    folder = first.write(tmp_path / "deep" / "out")
    assert content(folder) == first.files and folder.name == "one"
    (folder / "stale.md").write_text("")
    (folder / "__pycache__").mkdir()
    assert content(second.write(tmp_path / "deep" / "out")) == second.files
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


@pytest.mark.parametrize(
    "make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/")], ids=["folder", "file", "link"]
)
def test_what_is_no_artifact_is_left_alone(tmp_path: Path, make: object) -> None:
    make(tmp_path / "one")  # type: ignore[operator]
    with pytest.raises(PeftcError, match="no artifact of peftc"):
        artifact("a").write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_put_into_an_artifact_is_not_lost(tmp_path: Path, broken: bool) -> None:
    """An adapter that was trained and saved beside the source, say."""
    folder = artifact("a").write(tmp_path)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter.safetensors").write_bytes(b"trained")
    if broken:
        (folder / "peftc.lock.json").write_text("[")
    said = "lock.json is no lock of peftc" if broken else "holds what no compile wrote: adapter"
    with pytest.raises(PeftcError, match=said):
        artifact("b").write(tmp_path)
    assert (folder / "adapter" / "adapter.safetensors").read_bytes() == b"trained"
    assert (folder / "README.md").read_text() == "a"


def test_a_failed_write_leaves_the_old_artifact(tmp_path: Path) -> None:
    first = artifact("a")
    first.write(tmp_path)
    broken = Artifact("one", {**artifact("b").files, "no/such/folder": ""}, FREE)
    with pytest.raises(OSError, match="no/such"):
        broken.write(tmp_path)
    assert content(tmp_path / "one") == first.files and len(list(tmp_path.iterdir())) == 1


KILLED = """
import os, signal, sys
from itertools import count
from pathlib import Path
from tests.emit.test_artifact import artifact, content

def killed(made, out, step):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    def trace(event, *_):
        nonlocal step
        if event != "os.kill" and event.startswith(("os.", "open", "shutil.", "ctypes.call")):
            step -= 1
            if step == -1:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(trace)
    made.write(out)
    os._exit(0)

old, new = artifact("a" * 9), artifact("b" * 9)
for step in count():
    out = Path(sys.argv[1]) / str(step)
    old.write(out)
    stopped = killed(new, out, step)
    assert content(out / "one") in (old.files, new.files), step
    new.write(out)
    assert content(out / "one") == new.files, step
    if not stopped:
        break
assert step > 10
"""


def test_killed_at_any_step(tmp_path: Path) -> None:
    """A write that is killed at its first step, the next at its second, until one is not; without threads, to fork."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, check=True)


def test_check_names_each_difference(tmp_path: Path) -> None:
    made = artifact("a")
    assert [p.message for p in made.check(tmp_path)] == [f"{tmp_path / 'one'} is not there"]
    folder = made.write(tmp_path)
    assert made.check(tmp_path) == []
    assert artifact("a", version="2").check(tmp_path) == []
    assert artifact("a", version="2").moved(folder) == "compiled with torch 1 (now 2)"
    (folder / "README.md").write_bytes(b"\xff")
    (folder / "more.txt").write_text("")
    (folder / "modeling_one.py").unlink()
    found = [p.message.removeprefix(f"{folder}{os.sep}") for p in made.check(tmp_path)]
    assert found == ["README.md is no text", "modeling_one.py is missing", "more.txt does not belong to the artifact"]
    assert {p.hint for p in made.check(tmp_path)} == {"compile the spec again", "move it"}
    (folder / "peftc.lock.json").unlink()
    assert {p.hint for p in made.check(tmp_path)} == {"move the folder, and compile the spec again", "move it"}
    shutil.rmtree(folder)
