"""The life of a compiled model: made from its folder, trained for a few steps, kept, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig

import peftc
from peftc.spec.load import loads
from peftc.trace.record.model import build

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
SMALL: dict[str, object] = dict.fromkeys(("hidden_size", "n_embd"), 64)
SMALL |= dict.fromkeys(("num_attention_heads", "n_head"), 4) | {"num_key_value_heads": 2, "head_dim": 16}
SMALL |= dict.fromkeys(("max_position_embeddings", "n_positions"), 64) | {"vocab_size": 101, "intermediate_size": 96}
SMALL |= {"bos_token_id": 1, "eos_token_id": 2} | dict.fromkeys(("num_hidden_layers", "n_layer"), 9)

Given = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Kept:
    """Where a trained model was kept, and what it answers."""

    adapter: Path
    whole: Path
    answer: torch.Tensor


def small(spec: Path) -> str:
    """A spec on a narrow base of nine layers; without limits, which are for true sizes."""
    text: dict[str, Any] = yaml.safe_load(spec.read_text("utf-8"))
    config = text["base"]["config"]
    text["base"]["config"] = {key: SMALL.get(key, value) for key, value in config.items()}
    return yaml.safe_dump({key: value for key, value in text.items() if key != "budget"}, sort_keys=False)


def random_base(spec: str, folder: Path) -> Path:
    """Random weights for the base of a spec, as plain transformers saves them."""
    torch.manual_seed(3)
    written = loads(spec).base
    config: dict[str, Any] = dict(written.config or {})
    model = type(build(written))(AutoConfig.for_model(**config))
    model.save_pretrained(folder)
    return folder


def random_task(model: Any) -> dict[str, torch.Tensor]:
    """Token ids, the last of some rows padding, and a label for each row or each token."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 101, (6, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[:3, 7:] = 0
    labels = torch.arange(6) // 5 if "classifier" in dict(model.named_children()) else ids.clone()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def live(model: Any, given: Given, folder: Path, base: Path, steps: int = 8, rate: float = 5e-3) -> Kept:
    """Train, keep the adapter and the whole, and check that each step did what it promises."""
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, last = trained(model, given, steps, rate)
    assert last < first
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == trains
    model.save_adapter(folder / "adapter")
    model.save_pretrained(folder / "whole")
    again = type(model).from_base(base)
    again.load_adapter(folder / "adapter")
    expected, found = model.state_dict(), again.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert torch.equal(answered(model, given), answered(again, given))
    return Kept(folder / "adapter", folder / "whole", answered(model, given))


def trained(model: Any, given: Given, steps: int, rate: float) -> tuple[float, float]:
    """The loss before and after a few steps, without dropout."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    first = loss(model, given)
    model.train()
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**given).loss.backward()
        optimizer.step()
    return first, loss(model, given)


def loss(model: Any, given: Given) -> float:
    with torch.no_grad():
        return float(model.eval()(**given).loss)


def answered(model: Any, given: Given) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(**given).logits
    return answer


def of_folder(folder: Path, base: Path) -> Any:
    return peftc.load(folder, base=base)
