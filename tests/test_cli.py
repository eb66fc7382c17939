"""The command line as a user meets it: exit codes, messages without tracebacks, nothing heavy loaded for nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = """\
name: tiny
base:
  config: {model_type: bert, vocab_size: 97, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4,
    intermediate_size: 64, max_position_embeddings: 64, num_labels: 3}
  task: sequence-classification
methods:
  - {method: lora, at: [q, v], rank: 2}
train: [head]
"""
TYPO = TINY.replace("rank: 2", "rnak: 2")
HEAVY = "sorted({'torch', 'transformers'} & set(sys.modules))"


def peftc(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, away from any terminal."""
    command = [sys.executable, "-m", "peftc", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def spec(folder: Path, text: str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def loaded_after(*arguments: str) -> str:
    """Which heavy libraries a command has imported when it ends."""
    code = f"import sys, atexit\nfrom peftc.cli import main\nsys.argv[1:] = {list(arguments)!r}\n"
    code += f"atexit.register(lambda: sys.stderr.write('heavy:' + str({HEAVY})))\n"
    command = [sys.executable, "-c", f"{code}main()"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return run.stderr.rpartition("heavy:")[2]


def test_importing_peftc_loads_nothing_heavy() -> None:
    command = [sys.executable, "-c", f"import sys, peftc; print({HEAVY})"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["--help", "--version", "schema", "methods", "compile --help"])
def test_what_asks_for_no_model_loads_none(command: str) -> None:
    assert loaded_after(*command.split()) == "[]"


@pytest.mark.parametrize("command", ["compile", "plan", "budget", "show"])
def test_a_typo_is_told_before_torch_is_loaded(command: str, tmp_path: Path) -> None:
    assert loaded_after(command, str(spec(tmp_path, TYPO))) == "[]"


def test_a_typo_is_told_with_its_place_and_no_traceback(tmp_path: Path) -> None:
    run = peftc("compile", spec(tmp_path, TYPO), cwd=tmp_path)
    assert run.returncode == 1
    assert "tiny.yaml:7:" in run.stderr
    assert "^^^^" in run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]


def test_every_spec_is_read_before_one_is_refused(tmp_path: Path) -> None:
    run = peftc(
        "compile", spec(tmp_path, TYPO, "a.yaml"), spec(tmp_path, TINY.replace("seed", "sed") + "sed: 1\n", "b.yaml")
    )
    assert run.returncode == 1
    assert "a.yaml:7:" in run.stderr
    assert "b.yaml:9:" in run.stderr


def test_every_spec_is_compiled_before_one_is_refused(tmp_path: Path) -> None:
    """What its base alone tells counts too; then nothing is written for the others."""
    wrong, right = TINY.replace("[q, v]", "[cross.v]"), TINY.replace("name: tiny", "name: right")
    texts = {"a": wrong, "b": right, "c": wrong.replace("name: tiny", "name: other")}
    run = peftc("compile", *(spec(tmp_path, text, name) for name, text in texts.items()), cwd=tmp_path)
    assert run.returncode == 1
    told = [line for line in run.stderr.splitlines() if "has no site 'cross.v'" in line]
    assert [Path(line.partition(":")[0]).name for line in told] == ["a", "c"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


@pytest.mark.parametrize("other", ["tiny", "Tiny"])
def test_two_specs_of_one_name_collide(other: str, tmp_path: Path) -> None:
    run = peftc(
        "compile", spec(tmp_path, TINY), spec(tmp_path, TINY.replace("name: tiny", f"name: {other}"), "other.yaml")
    )
    assert run.returncode == 1
    assert "other.yaml:1:7: error: two specs of this run" in run.stderr


def test_one_spec_twice_is_one_complaint(tmp_path: Path) -> None:
    run = peftc("compile", spec(tmp_path, TINY), tmp_path / "." / "tiny.yaml")
    assert (run.returncode, run.stderr) == (1, f"error: {tmp_path}/tiny.yaml is given twice\nhint: name it once\n")


@pytest.mark.parametrize("arguments", [["compile"], ["nothing"], ["plan", "a", "b"], ["budget", "x", "--jsn"]])
def test_a_wrong_call_is_usage(arguments: list[str]) -> None:
    assert peftc(*arguments).returncode == 2


def test_a_spec_that_is_not_there(tmp_path: Path) -> None:
    there = spec(tmp_path, TINY)
    for name, hint in (("tny.yaml", "did you mean"), (".", "name a file in it, as")):
        run = peftc("plan", tmp_path / name)
        assert run.returncode == 1
        assert run.stderr.startswith("error: cannot read")
        assert run.stderr.splitlines()[1].startswith(f"hint: {hint} {there}")


def test_version_and_schema() -> None:
    assert peftc("--version").stdout == "peftc 0.1.0\n"
    assert "properties" in json.loads(peftc("schema").stdout)


def test_methods_are_all_there() -> None:
    words = {line.split()[0] for line in peftc("methods").stdout.splitlines()}
    assert {"lora", "adapter", "prefix", "ia3", "bitfit", "norm"} <= words


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m peftc schema | head -c 1"
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stderr == ""


@pytest.mark.parametrize("arguments", ["schema", "--help", "compile --help"])
def test_a_full_disk_is_no_defect(arguments: str) -> None:
    command = f"{sys.executable} -m peftc {arguments} > /dev/full"
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "cannot write to stdout: No space left on device" in run.stderr


def test_compile_check_and_verify(tmp_path: Path) -> None:
    path = spec(tmp_path, TINY)
    first = peftc("compile", path, "--out", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    assert "trains 867, stores 867" in first.stdout
    assert "tracing the base" in first.stderr
    assert (tmp_path / "out/tiny/modeling_tiny.py").is_file()
    assert peftc("compile", path, "--out", tmp_path / "out", "--check").returncode == 0
    verified = peftc("verify", tmp_path / "out/tiny")
    assert verified.returncode == 0, verified.stderr
    with (tmp_path / "out/tiny/modeling_tiny.py").open("a") as file:
        file.write("# changed\n")
    commands: list[list[str | Path]] = [
        ["compile", path, "--out", tmp_path / "out", "--check"],
        ["verify", tmp_path / "out/tiny"],
    ]
    for command in commands:
        changed = peftc(*command)
        assert changed.returncode == 1
        assert "modeling_tiny.py" in changed.stderr


def test_check_of_what_was_never_compiled(tmp_path: Path) -> None:
    run = peftc("compile", spec(tmp_path, TINY), "--out", tmp_path / "out", "--check")
    assert run.returncode == 1
    assert not (tmp_path / "out").exists()


def test_verify_of_no_artifact(tmp_path: Path) -> None:
    run = peftc("verify", tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("out", "said"),
    [("file", "is no folder"), ("file/deep", "is no folder"), ("full", "no artifact"), ("/proc/x", "/proc")],
)
def test_an_out_that_cannot_be_written_is_found_before_the_compile(out: str, said: str, tmp_path: Path) -> None:
    spec(tmp_path, "", "file")
    (tmp_path / "full/tiny").mkdir(parents=True)
    path = spec(tmp_path, TINY)
    before = sorted(tmp_path.rglob("*"))
    run = peftc("compile", path, "--out", tmp_path / out)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ") and said in run.stderr and "tracing" not in run.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("stage", ["tracing the base", "printing the source"])
def test_an_interrupt_prints_one_line_and_leaves_nothing(stage: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "peftc", "compile", str(spec(tmp_path, TINY)), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if stage in line:
                break
        run.send_signal(signal.SIGINT)
        assert run.stderr.read().splitlines()[-1] == "interrupted"
    assert run.returncode == 130
    assert not (tmp_path / "out").exists()


def test_an_interrupt_that_a_library_takes_for_its_own_is_one(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, peftc.compiler as compiler\n"
        "def broken(*_):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt as error: raise ImportError('a lazy import') from error\n"
        "compiler.rewrite = broken\n"
        f"sys.argv[1:] = ['compile', {str(spec(tmp_path, TINY))!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "from peftc.cli import main\nmain()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 130
    assert run.stderr.splitlines()[-1] == "interrupted" and "Traceback" not in run.stderr


def test_plan_and_budget_print_text_and_json(tmp_path: Path) -> None:
    path = spec(tmp_path, TINY)
    plan, budget = (json.loads(peftc(command, path, "--json").stdout) for command in ("plan", "budget"))
    assert len(plan["placements"]) == 6
    assert budget["by_method"] == {"lora": {"trained": 768, "stored": 768}}
    assert budget["trained_parameters"] == 768 + 99
    assert "lora at q" in peftc("plan", path).stdout
    assert "867" in peftc("budget", path).stdout


def test_over_budget_the_count_is_shown_and_the_exit_is_one(tmp_path: Path) -> None:
    path = spec(tmp_path, TINY + "budget: {trained: < 10}\n")
    run = peftc("budget", path)
    assert run.returncode == 1
    assert "867" in run.stdout
    assert "tiny.yaml:9:19: error: 867 parameters are trained" in run.stderr
    assert peftc("compile", path, cwd=tmp_path).returncode == 1


def test_show_is_a_diff_against_the_base(tmp_path: Path) -> None:
    path = spec(tmp_path, TINY)
    run = peftc("show", path)
    assert run.returncode == 0, run.stderr
    assert any(line.startswith("+") and "lora" in line for line in run.stdout.splitlines())
    unknown = peftc("show", path, "--unit", "Nothing")
    assert unknown.returncode == 1
    assert "Nothing" in unknown.stderr
    assert peftc("show", path, "--after", "nothing").returncode == 1


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("RuntimeError('a fault')", 3, "defect of peftc"),
        ("OSError('a fault')", 3, "defect of peftc"),
        ("KeyboardInterrupt", 130, "interrupted"),
    ],
)
def test_what_breaks_inside_a_pass_is_not_hidden(fault: str, code: int, said: str, tmp_path: Path) -> None:
    program = (
        "import sys, peftc.compiler as compiler\n"
        f"def broken(*_): raise {fault}\n"
        "compiler.rewrite = broken\n"
        f"sys.argv[1:] = ['compile', {str(spec(tmp_path, TINY))!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "from peftc.cli import main\nmain()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == code
    assert said in run.stderr
    assert ("a fault" in run.stderr) == (code == 3)
    assert not (tmp_path / "out").exists()
