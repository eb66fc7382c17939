"""Models that run on the meta device: what they ask of values that are not there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from transformers import masking_utils
from transformers.integrations import moe
from transformers.modeling_utils import PreTrainedModel

from peftc.trace.record.nested import tensors_in

TENSOR = torch.tensor
READS = ("item", "__bool__", "__int__", "__float__", "__index__", "__format__")
DISTINCT = ("unique", "unique_consecutive")
FILLS = ("masked_fill", "masked_fill_")

LARGEST = 250_000_000  # numbers in a module that is made real to see what it returns
SKIPS = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name = value` inside the block, and exactly what it was afterwards."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models that run on the meta device: no look at the values of masks or ids, no kernel without a shape rule."""
    with ExitStack() as stack:
        stack.enter_context(patched(masking_utils, "is_tracing", lambda tensor=None: True))
        stack.enter_context(patched(masking_utils, "is_torchdynamo_exporting", lambda: True))
        stack.enter_context(patched(moe, "_can_use_grouped_mm", lambda *tensors: False))
        stack.enter_context(patched(torch.backends.mha, "get_fastpath_enabled", lambda: False))
        stack.enter_context(patched(PreTrainedModel, "warn_if_padding_and_no_attention_mask", lambda *given: None))
        for name in FILLS:
            stack.enter_context(patched(torch.Tensor, name, _filled(getattr(torch.Tensor, name))))
        yield


class SingleNumbers(TorchFunctionMode):
    """Keeps `torch.tensor(number)` that names no device on the CPU, so that it has its value."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        single = func is TENSOR and len(args) == 1 and isinstance(args[0], int | float)
        return func(*args, **({"device": "cpu"} if single else {}) | given)


@contextmanager
def made_on(device: torch.device) -> Iterator[None]:
    """Tensors that name no device are made on this one, but for single numbers."""
    with device, SingleNumbers():
        yield


@contextmanager
def values_as(number: int) -> Iterator[None]:
    """A number that is read out of a meta tensor is this one, zero as the ids of the examples are; all is nonzero.

    Only where nothing is traced: a number that a trace reads would become a constant.
    """
    with ExitStack() as stack:
        stack.enter_context(_config.patch(meta_nonzero_assume_all_nonzero=True))  # type: ignore[attr-defined]
        stack.enter_context(patched(Distribution, "_validate_args", False))
        for name in READS:
            stack.enter_context(patched(torch.Tensor, name, _read(name, number)))
        stack.enter_context(patched(torch.Tensor, "__getitem__", _item(number)))
        for name in DISTINCT:
            stack.enter_context(patched(torch, name, _distinct(getattr(torch, name))))
        yield


@contextmanager
def calls_answered() -> Iterator[None]:
    """Calls of modules that depend on numbers are those of real copies."""
    call = nn.Module.__call__
    with patched(nn.Module, "__call__", lambda module, *args, **kwargs: answered(module, args, kwargs, call)):
        yield


@contextmanager
def nothing_padded() -> Iterator[None]:
    """A mask that a model makes where it was given none hides nothing, and is left out wherever none would be.

    Nor do the positions that it counts itself tell several sequences in one example apart.
    """

    def without(skips: Any) -> Any:
        return lambda mask, *sizes: skips(None, *sizes)

    with ExitStack() as stack:
        stack.enter_context(patched(masking_utils, "is_torchdynamo_exporting", lambda: False))
        for name in SKIPS:
            stack.enter_context(patched(masking_utils, name, without(getattr(masking_utils, name))))
        stack.enter_context(patched(masking_utils, "find_packed_sequence_indices", lambda positions: None))
        yield


def noted(function: Callable[..., Any], note: Callable[[Any], None]) -> Callable[..., Any]:
    """A function that tells what it returns."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        note(result)
        return result

    return noting


def answered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[..., Any]) -> Any:
    """What a call of a module returns; where that depends on numbers that are not there, what a real copy returns."""
    try:
        return call(module, *args, **kwargs)
    except RuntimeError as refusal:
        sizes = [p.numel() for p in module.parameters() if p.is_meta]
        if not 0 < sum(sizes) <= LARGEST:
            raise
        try:
            return _of_real_copy(module, args, kwargs, call)
        except RuntimeError:
            raise refusal from None


def _of_real_copy(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[..., Any]) -> Any:
    real = real_copy(module, numbers)
    with torch.no_grad(), torch.device("cpu"):
        answer = call(real, *_each(numbers, args), **_each(numbers, kwargs))
    behind = [t for t in (*tensors_in((args, kwargs)), *module.parameters()) if t.requires_grad]
    return _each(lambda tensor: _made_from(tensor.to("meta"), behind), answer)


def real_copy(module: nn.Module, number: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of a meta module on the CPU that holds, for each parameter and then each buffer, other numbers."""
    real = copy.deepcopy(module).to_empty(device="cpu")
    for tensor in (*real.parameters(), *real.buffers()):
        tensor.data = number(tensor)
    return real


def _made_from(tensor: torch.Tensor, sources: list[torch.Tensor]) -> torch.Tensor:
    """The tensor, as far as autograd knows computed from these."""
    return tensor + sum((s * 0).sum() for s in sources) if sources and tensor.is_floating_point() else tensor


_each = partial(tree_map_only, torch.Tensor)


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """A real tensor of the same shape: random where it holds fractions, zeros elsewhere."""
    made = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    return made.normal_(generator=torch.Generator().manual_seed(0)) if tensor.is_floating_point() else made


def _read(name: str, number: int) -> Any:
    read = getattr(torch.Tensor, name)

    def reading(tensor: torch.Tensor, *args: Any) -> Any:
        is_number = tensor.device.type == "meta" and tensor.numel() == 1
        return read(torch.full((), number, dtype=tensor.dtype, device="cpu") if is_number else tensor, *args)

    return reading


def _item(number: int) -> Any:
    """Reads of one row: torch takes its number out of a tensor by itself."""
    read = torch.Tensor.__getitem__

    def reading(tensor: torch.Tensor, key: Any) -> Any:
        is_number = isinstance(key, torch.Tensor) and key.is_meta and key.dim() == 0 and key.dtype != torch.bool
        return read(tensor, number if is_number else key)

    return reading


def _filled(fill: Callable[..., torch.Tensor]) -> Any:
    """A fill with a tensor of one number, which every other device takes from the CPU."""

    def filling(tensor: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
        return fill(tensor, mask, value.to("meta") if tensor.is_meta and isinstance(value, torch.Tensor) else value)

    return filling


def _distinct(read: Callable[..., Any]) -> Any:
    """The distinct numbers of a tensor: all of them are one."""

    def reading(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        is_one = tensor.device.type == "meta" and not args and not kwargs
        return tensor.flatten()[:1] if is_one else read(tensor, *args, **kwargs)

    return reading
