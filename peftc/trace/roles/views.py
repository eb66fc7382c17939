"""One traced module as the roles see it: its graph, its data flow, its linear maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from peftc.graph import dataflow, slots
from peftc.graph.features import features
from peftc.graph.sites import Projection
from peftc.trace.record.feeds import POINTS
from peftc.trace.roles.normalising import is_norm
from peftc.trace.tracer.values import fail


@dataclass(frozen=True)
class Matrix:
    """The matrix of a linear map and the module that has it; `bare`: the parameter that it is, or is a part of.

    `moves` say which part.
    """

    module: str
    inputs: int
    outputs: int
    bias: bool
    bare: bool = False
    moves: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """One traced module: its graph, the data flow of it, and whether its model turns out to be causal.

    `alike`: parameters that are always given the very value of another one, and that one.
    """

    module: nn.Module
    graph: fx.Graph
    flow: dataflow.Flow
    causal: Callable[[], bool]
    alike: Mapping[str, str]

    @classmethod
    def of(
        cls, module: nn.Module, graph: fx.Graph, causal: Callable[[], bool], alike: Mapping[str, str] | None = None
    ) -> View:
        return cls(module, graph, dataflow.flow(graph), causal, alike or {})

    def linears(self) -> list[fx.Node]:
        return [n for n in self.graph.nodes if self.is_linear(n)]

    def called(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def owner(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or a method of."""
        path = dataflow.own_method(node)
        return self.called(node) if path is None else self.module.get_submodule(path)

    def is_linear(self, node: fx.Node) -> bool:
        return self.size(node) > 0

    def size(self, node: fx.Node) -> int:
        """How many numbers a linear map's matrix has; 0 for anything else."""
        found = self.matrix(node)
        return found.inputs * found.outputs if found else 0

    def matrix(self, node: fx.Node) -> Matrix | None:
        """What a linear map multiplies by: a module's matrix where it calls one, or one that is handed to `linear`."""
        module = self.called(node)
        if module is None:
            return _handed(self.module, node)
        sizes = linear_shape(module, node)
        return Matrix(str(node.target), *sizes, getattr(module, "bias", None) is not None) if sizes else None


def linear_shape(module: nn.Module, node: fx.Node) -> tuple[int, int] | None:
    """(inputs, outputs) of a childless module with one matrix that maps the last axis of a float tensor; else None."""
    weight = getattr(module, "weight", None)
    if any(True for _ in module.children()) or not isinstance(weight, torch.Tensor) or not node.args:
        return None
    if weight.dim() != 2:
        return None
    source = node.args[0].meta["value"][0] if isinstance(node.args[0], fx.Node) else None
    result = node.meta["value"][0]
    if not isinstance(source, torch.Tensor) or not isinstance(result, torch.Tensor) or not source.is_floating_point():
        return None
    if weight.shape == source.shape[-2:] and is_norm(module):
        return None
    sizes = (source.shape[-1], result.shape[-1])
    return sizes if tuple(sorted(weight.shape)) == tuple(sorted(sizes)) else None


def _handed(unit: nn.Module, node: fx.Node) -> Matrix | None:
    """The matrix of a call of `linear`, where it is a parameter of two axes or some of its rows."""
    if node.op != "call_function" or node.target is not nn.functional.linear:
        return None
    weight = whole = node.kwargs.get("weight", *node.args[1:2])
    moves: list[str] = []
    while isinstance(whole, fx.Node) and dataflow.is_move(whole) and len(whole.all_input_nodes) == 1:
        moves.append(f"{dataflow.name_of(whole)}{whole.args[1:]}{whole.kwargs}")
        whole = whole.args[0]
    if not isinstance(whole, fx.Node) or whole.op != "get_attr" or whole.meta["value"][0].dim() != 2:
        return None
    owner, _, name = str(whole.target).rpartition(".")
    sizes = (width_of(slots.first(node)), width_of(node))
    if whole is weight and name == "weight" and owner:
        return Matrix(owner, *sizes, getattr(unit.get_submodule(owner), "bias", None) is not None)
    return Matrix(str(whole.target), *sizes, False, True, tuple(moves))


def biases(view: View) -> Iterator[str]:
    """The parameters of a unit that it hands to `linear` as what is added."""
    for node in view.graph.nodes:
        bias = node.kwargs.get("bias", *node.args[2:3]) if node.target is nn.functional.linear else None
        if isinstance(bias, fx.Node) and bias.op == "get_attr":
            yield str(bias.target)


def in_one_list(module: nn.Module, one: str, other: str) -> bool:
    """Whether two paths differ in their place in one list of modules alone."""
    parts, others = one.split("."), other.split(".")
    places = [i for i, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b]
    if len(parts) != len(others) or len(places) != 1:
        return False
    return isinstance(module.get_submodule(".".join(parts[: places[0]])), nn.ModuleList)


def projection(view: View, node: fx.Node, way: list[fx.Node]) -> Projection:
    """A linear, or the part of it whose features arrive at the end of a way that starts at it."""
    matrix = view.matrix(node)
    assert matrix is not None
    held = features(way, matrix.outputs)
    if held is None:
        fail(f"what {node} makes arrives in one axis with examples or positions, or changed")
    whole = len(held.rows) == matrix.outputs
    flat, turned = axes(node.meta["value"])
    again = (n.name for n in view.linears() if n is not node and view.matrix(n) == matrix)
    return Projection(
        name="", module=matrix.module, node=node.name, output=node.name if whole else held.node.name,
        inputs=matrix.inputs, outputs=len(held.rows), rows=None if whole else held.rows,
        dims=() if whole else held.dims, order=() if whole else held.order, ones=() if whole else held.ones,
        bias=matrix.bias, bare=matrix.bare, flat=flat, turned=turned, again=tuple(again),
    )  # fmt: skip


def output_projection(view: View, node: fx.Node) -> Iterator[Projection]:
    """The linear that alone comes first behind a node."""
    linears = dataflow.downstream(view.flow, node, view.is_linear)
    behind = {n for linear in linears for n in dataflow.reached(view.flow, linear) - {linear}}
    first = [linear for linear in linears if linear not in behind]
    if len(first) == 1:
        yield projection(view, first[0], [first[0]])


def read_by(view: View, name: str) -> fx.Node:
    return slots.first(find(view.graph, name))


def find(graph: fx.Graph, name: str) -> fx.Node:
    node: fx.Node = next(n for n in graph.nodes if n.name == name)
    return node


def width_of(node: fx.Node) -> int:
    return int(node.meta["value"][0].shape[-1])


def has_features(node: fx.Node) -> bool:
    """Whether the last axis is as long at both examples."""
    one, other = node.meta["value"]
    return bool(one.shape[-1] == other.shape[-1])


def is_flat(node: fx.Node) -> bool:
    """Whether batch and length are one axis."""
    value = node.meta["value"][0]
    return isinstance(value, torch.Tensor) and value.dim() == 2


def axes(values: Sequence[object]) -> tuple[bool, bool]:
    """Whether a tensor, at both points, lacks an axis for batch or length; whether the length stands first."""
    sizes = [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]
    if any(len(size) != 3 for size in sizes):
        return True, False
    first, second, _ = zip(*sizes, strict=True) if len(set(sizes)) > 1 else ((), (), ())
    batches = tuple(point.batch for point in POINTS)
    folded = set(first) == {1} and not any(both % batch for both, batch in zip(second, batches, strict=True))
    turned = first != second == batches
    return folded and not turned, turned


def parameter_behind(view: View, node: fx.Node) -> fx.Node | None:
    """The one parameter that a value is made from."""
    if node.op == "placeholder":
        return node
    before = dataflow.upstream(view.flow, node, lambda n: n.op == "placeholder")
    return before[0] if len(before) == 1 else None
