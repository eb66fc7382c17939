"""The saved bases that hand-written programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.emit.compiled import PROGRAMS


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved bases with weights that no default would give."""
    found = {}
    for program in PROGRAMS:
        torch.manual_seed(3)
        model: Any = program().program.plan.trace.model
        folder = tmp_path_factory.mktemp(program.__name__)
        type(model)(model.config).save_pretrained(folder)
        found[program.__name__] = folder
    return found
