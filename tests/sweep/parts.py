"""Which parts a model has, by what its classes and modules are called and map: no word of peftc's."""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel

ATTENDS = re.compile(r"Attention|Attn|MLA$")
FEEDS = re.compile(r"MLP|Mlp|FeedForward|FFN|FFW|Intermediate|Dense(Gated)?ActDense|Experts|MoE|Moe")
FEEDING = re.compile(r"(^|\.)(fc1|fc_in|c_fc|lin1|up_proj|dense_h_to_4h|ffn\w*|mlp|linear_1|ff\w*)($|\.)")


def parts(model: PreTrainedModel) -> list[str]:
    """Which of attention and feed-forward a model has, by what its classes and modules are called and map."""
    classes = [type(module).__name__ for module in model.modules()]
    attends = any(ATTENDS.search(name) for name in classes)
    feeds = any(map(FEEDS.search, classes)) or any(FEEDING.search(name) for name, _ in model.named_modules())
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    feeds = feeds or any(_feeds(block) for blocks in lists for block in blocks)
    return [name for name, has in (("attention", attends), ("feed-forward", feeds)) if has]


def _feeds(block: torch.nn.Module) -> bool:
    """Whether a block maps to another width and back, outside of what attends."""
    modules = {f".{path}." if path else ".": module for path, module in block.named_modules()}
    inside = tuple(path for path, module in modules.items() if ATTENDS.search(type(module).__name__))
    outer = (module for path, module in modules.items() if not path.startswith(inside))
    sizes = {size for module in outer if (size := _widths(module)) is not None}
    return any(one != other and (other, one) in sizes for one, other in sizes)


def _widths(module: torch.nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, a convolution over single positions among them."""
    if isinstance(module, torch.nn.Conv1d):
        return module.in_channels, module.out_channels
    return (module.in_features, module.out_features) if isinstance(module, torch.nn.Linear) else None
