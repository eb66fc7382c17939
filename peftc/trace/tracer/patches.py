"""What the tracer needs patched while it runs, each inside a `with` that always restores it."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import AttentionInterface

from peftc.graph.branches import Lifted, LiftedStr, attribute, lifted, lookup
from peftc.graph.sites import dotted
from peftc.trace.record.meta import answered, made_on, patched, shapes_only
from peftc.trace.tracer import torchs_attention
from peftc.trace.tracer.builtin_functions import flat, on_proxies
from peftc.trace.tracer.frames import is_user
from peftc.trace.tracer.tracer import Tracer
from peftc.trace.tracer.values import Value, fail

FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
UNDISPATCHED = (*FACTORIES, "finfo", "where")  # torch does not hand these on to an argument that is a proxy
CRASHING = ("clamp", "clip")  # of a number and a proxy as their bounds, torch's reading of arguments crashes


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands for any attention function while tracing: the shapes of its two outputs."""
    batch, heads, length, _ = query.shape
    weights = query.new_empty(batch, heads, length, key.shape[2])
    return query.new_empty(batch, length, heads, value.shape[-1]), weights


@dataclass
class Session:
    """The tracer that runs now, which the patches of `installed` ask; None between two traces."""

    tracer: Tracer | None = None

    @property
    def active(self) -> Tracer | None:
        return self.tracer if self.tracer is not None and not self.tracer.paused else None

    @contextmanager
    def tracing(self, tracer: Tracer) -> Iterator[None]:
        """Let `tracer` see its unit run, on the meta device."""
        with ExitStack() as stack:
            stack.enter_context(made_on(torch.device("meta")))
            stack.enter_context(_lifted(tracer.unit))
            for module in _source_modules(tracer.unit):
                stack.enter_context(_leaf_functions(tracer, module))
            for own, name, function in list(_own_methods(tracer)):
                stack.enter_context(patched(own, name, _method(tracer, name, function)))
            self.tracer = tracer
            try:
                yield
            finally:
                self.tracer = None


@contextmanager
def installed() -> Iterator[Session]:
    """What every trace needs patched, once for many: setting an attribute of nn.Module is slow."""
    with torch.device("meta"):
        torch.empty(0)  # torch looks its factories up once, and must not find the patched ones
    session = Session()
    with ExitStack() as stack:
        stack.enter_context(shapes_only())
        stack.enter_context(patched(nn.Module, "__call__", _module_call(session)))
        stack.enter_context(patched(nn.Module, "__getattr__", _module_getattr(session)))
        stack.enter_context(patched(AttentionInterface, "get_interface", _get_interface(session)))
        stack.enter_context(patched(torch.autograd.Function, "apply", classmethod(_function_apply(session))))
        stack.enter_context(patched(math, "sqrt", _root(math.sqrt)))
        for asked, name in ((torch.autocast, "__init__"), (torch, "is_autocast_enabled")):
            stack.enter_context(patched(asked, name, _unrecorded(session, getattr(asked, name))))
        for owner, name, own in torchs_attention.REPLACED:
            stack.enter_context(patched(owner, name, torchs_attention.replaced(getattr(owner, name), own)))
        for name in (*UNDISPATCHED, *CRASHING):
            stack.enter_context(patched(torch, name, _factory(session, getattr(torch, name))))
        yield session


def _root(sqrt: Callable[[float], float]) -> Callable[[float], float]:
    """The square root of a number that remembers its source remembers that, too."""

    def traced(number: float) -> Any:
        root = sqrt(number)
        return lifted(root, f"math.sqrt({number.source})") if isinstance(number, Lifted) else root

    return traced


def _module_call(session: Session) -> Callable[..., Any]:
    call = nn.Module.__call__

    @functools.wraps(call)
    def traced(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tracer = session.active
        return tracer.call_module(module, args, kwargs) if tracer else answered(module, args, kwargs, call)

    return traced


def _module_getattr(session: Session) -> Callable[..., Any]:
    read = nn.Module.__getattr__

    @functools.wraps(read)
    def traced(module: nn.Module, name: str) -> Any:
        value, tracer = read(module, name), session.active
        if tracer is None or not isinstance(value, torch.Tensor) or module not in tracer.paths:
            return value
        path = tracer.paths[module]
        return tracer.create_proxy("get_attr", f"{path}.{name}" if path else name, (), {})

    return traced


def _get_interface(session: Session) -> Callable[..., Any]:
    get = AttentionInterface.get_interface

    @functools.wraps(get)
    def traced(interface: AttentionInterface, implementation: str, default: Callable[..., Any]) -> Any:
        tracer = session.active
        if tracer is None:
            return get(interface, implementation, default)
        name = LiftedStr(implementation)
        frame = sys._getframe(1)
        name.source = _config_source(tracer, frame.f_locals.get(frame.f_code.co_varnames[0]))
        return tracer.create_proxy("call_function", lookup, (name, default, attend), {})

    return traced


def _function_apply(session: Session) -> Callable[..., Any]:
    apply: Any = vars(torch.autograd.Function)["apply"].__func__

    @functools.wraps(apply)
    def traced(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        tracer = session.active
        if tracer is None or not any(type(a) is Value for a in flat((args, kwargs))):
            return apply(function, *args, **kwargs)
        return tracer.create_proxy("call_method", "apply", (function, *args), kwargs)

    return traced


def _unrecorded(session: Session, autocast: Callable[..., Any]) -> Callable[..., Any]:
    """What makes the rest of a forward depend on autocast: where it is on, a graph would compute otherwise."""

    def traced(*args: Any, **kwargs: Any) -> Any:
        if session.active:
            fail("it enters torch.autocast, or asks for it, which a trace does not record")
        return autocast(*args, **kwargs)

    return traced


def _factory(session: Session, make: Callable[..., Any]) -> Callable[..., Any]:
    """A function that torch does not dispatch on its arguments: a node where any is a proxy, or a tensor is made."""

    def traced(*args: Any, **kwargs: Any) -> Any:
        tracer = session.active
        if tracer is None or not (any(type(a) is Value for a in flat((args, kwargs))) or _makes(make)):
            return make(*args, **kwargs)
        return tracer.create_proxy("call_function", make, args, kwargs)

    return traced


def _makes(make: Callable[..., Any]) -> bool:
    """Whether a model's own forward makes a tensor: torch's functions may make one for themselves."""
    return make.__name__ in FACTORIES and is_user(sys._getframe(2).f_code)


def _config_source(tracer: Tracer, owner: Any) -> str:
    path = tracer.paths.get(owner, "") if isinstance(owner, nn.Module) else ""
    return attribute(path, "config._attn_implementation")


@contextmanager
def _lifted(unit: nn.Module) -> Iterator[None]:
    """Scalar attributes of the unit's modules, and of their configs, as numbers that remember where they came from."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for path, owner in _owners(unit):
        for name, value in list(vars(owner).items()):
            if type(value) in (int, float) and not name.startswith("_"):
                source = attribute(path, name)
                before.append((vars(owner), name, value))
                vars(owner)[name] = lifted(value, source)
    try:
        yield
    finally:
        for attributes, name, value in before:
            attributes[name] = value


def _owners(unit: nn.Module) -> Iterator[tuple[str, object]]:
    """Path and object: every module, and each config once, where the outermost module has it."""
    seen = set[int]()
    for path, module in unit.named_modules():
        yield path, module
        for name, value in vars(module).items():
            if isinstance(value, PreTrainedConfig) and id(value) not in seen:
                seen.add(id(value))
                yield dotted(path, name), value


def _source_modules(unit: nn.Module) -> list[Any]:
    names = {type(m).__module__ for m in unit.modules()}
    return [sys.modules[n] for n in sorted(names) if not n.startswith("torch.")]


@contextmanager
def _leaf_functions(tracer: Tracer, module: Any) -> Iterator[None]:
    """Functions that the module's forwards call become one node each; Python's own see through proxies."""
    with ExitStack() as stack:
        for name, value in list(vars(module).items()):
            if isinstance(value, (FunctionType, torch.jit.ScriptFunction)) and not name.startswith("__"):
                stack.enter_context(patched(module, name, _leaf(tracer, value)))
        for name, function in on_proxies(tracer).items():
            stack.enter_context(patched(module, name, function))
        yield


def _own_methods(tracer: Tracer) -> Iterator[tuple[type[nn.Module], str, FunctionType]]:
    """What the unit's classes define beside their forwards, each as the class itself would find it."""
    for own in dict.fromkeys(type(m) for m in tracer.unit.modules() if not type(m).__module__.startswith("torch.")):
        theirs = {
            name: value
            for base in reversed(own.__mro__[: own.__mro__.index(nn.Module)])
            for name, value in vars(base).items()
        }
        for name, value in theirs.items():
            if isinstance(value, FunctionType) and name != "forward" and not name.startswith("__"):
                yield own, name, value


def _method(tracer: Tracer, name: str, function: FunctionType) -> Callable[..., Any]:
    """A method inlined between markers, as a module is."""

    @functools.wraps(function)
    def traced(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if tracer.paused or module not in tracer.paths or not any(type(a) is Value for a in flat((args, kwargs))):
            return function(module, *args, **kwargs)
        return tracer.call_own(module, name, function, args, kwargs)

    return traced


def _leaf(tracer: Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    """One node for a call on proxies; inlined where it is handed code to run, attends, or drops out inside."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        given = list(flat((args, kwargs)))
        if tracer.paused or not any(type(a) is Value for a in given):
            return function(*args, **kwargs)
        if any(type(a) is not Value and (isinstance(a, nn.Module) or callable(a)) for a in given):
            return function(*args, **kwargs)
        if _opens(tracer, function, args, kwargs):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    vars(traced)["leaf_of"] = function
    return traced


def _opens(tracer: Tracer, function: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a function attends or drops out inside, seen by running it on the example values."""
    seen: list[bool] = []

    def watching(own: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*a: Any, **k: Any) -> Any:
            seen.append(True)
            return own(*a, **k)

        return watch

    with ExitStack() as stack:
        for name in ("scaled_dot_product_attention", "dropout"):
            stack.enter_context(patched(nn.functional, name, watching(getattr(nn.functional, name))))
        tracer.evaluate_quietly(function, args, kwargs)
    return bool(seen)
