"""The same spec, the same bytes: whatever the environment, the folder, the threads, and what ran before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import peftc

ROOT = Path(__file__).parents[1]
CONFIG = "vocab_size: 97, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 48"
SPEC = f"""\
name: same-bytes
base:
  config: {{model_type: bert, {CONFIG}, max_position_embeddings: 64, num_labels: 3}}
  task: sequence-classification
methods:
  - {{preset: unipelt-aplb, adapter: {{bottleneck: 6}}, lora: {{rank: 2}}}}
  - {{method: ia3, layers: even}}
  - {{method: norm, layers: last 1}}
train: [head]
"""
COMPILE = "import sys, torch, peftc; peftc.compile(sys.argv[1]).write(sys.argv[2])"
PLAIN = {"PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
OTHER = {"PYTHONHASHSEED": "4242", "LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu", "COLUMNS": "33", "OMP_NUM_THREADS": "2"}


def compiled(folder: Path, environment: dict[str, str], before: str = "") -> dict[str, bytes]:
    """Every file of the artifact, from a process of its own that runs in a folder of its own."""
    folder.mkdir()
    spec = folder / "spec.yaml"
    spec.write_text(SPEC, encoding="utf-8")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", before + COMPILE, str(spec), str(folder / "out")]
    run = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return written(folder / "out")


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_environment(tmp_path: Path) -> None:
    one = compiled(tmp_path / "one", PLAIN)
    other = compiled(tmp_path / "other", OTHER, "import torch; torch.manual_seed(7); torch.set_num_threads(2)\n")
    assert one == other
    assert len(one) == 7


def test_what_ran_before(tmp_path: Path) -> None:
    """A second compile in one process; the first one leaves no trace, in the random numbers neither."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = peftc.compile(spec).files
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert dict(peftc.compile(spec).files) == dict(one)
