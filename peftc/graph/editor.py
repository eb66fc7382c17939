"""call, apply, replace, gated: the only way a method may change a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from operator import getitem, mul
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.fx.node import Argument, Target

from peftc import modules
from peftc.errors import Defect
from peftc.graph import joints, norms, parts, slots
from peftc.graph.branches import end_of, leave
from peftc.graph.sites import Attention, Embedding, Projection, Site, Sublayer
from peftc.graph.together import start_of

if TYPE_CHECKING:
    from peftc.methods.call import ModuleCall

Arguments = tuple[Argument, ...]
Options = dict[str, Argument]

# What changes one tensor, from the inside out: deltas of the weights, scales of the activation, modules beside the
# sublayer, modules after it.  A later edit of an inner level is seen by the outer ones, so order does not matter.
WEIGHT, SCALE, BESIDE, AFTER = range(4)


@dataclass(frozen=True)
class Gating:
    """The gate of a placement: its attribute, the call that builds it, and what it reads ("x", "mask").

    A gate that returns one value for each of several members has this placement as its `member`.
    """

    name: str
    call: ModuleCall
    reads: tuple[str, ...] = ("x",)
    member: int | None = None


class Editor:
    """A graph under edit.  `additions` are the attributes that the edits need, with the calls that build them."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.additions: dict[str, ModuleCall] = {}
        self._nodes: dict[str, fx.Node] = {node.name: node for node in graph.nodes}
        self._levels: dict[tuple[str, int], fx.Node] = {}
        self.keys: dict[str, fx.Node] = {}
        self._gates: dict[str, fx.Node] = {}
        self._owned: dict[str, set[fx.Node]] = {}
        self._fresh: set[fx.Node] = set()

    @contextmanager
    def at(self, site: Site, name: str, label: str, gating: Gating | None = None) -> Iterator[None]:
        """Edit for one placement: `name` is its attribute, `label` its method's name in comments."""
        self._site, self._name, self._label, self._gating = site, name, label, gating
        self._comment = f"{label} on {site.name}" + (", gated" if gating else "")
        self._fresh = set()
        if isinstance(site, Projection) and site.among and _output(site) not in self._nodes:
            self._nodes[_output(site)], self._levels[site.node, AFTER] = parts.taken(self, site)
        yield
        if isinstance(site, Projection):
            self._owned.setdefault(site.node, set()).update(self._fresh)

    def input(self, site: Site) -> fx.Node:
        """What the site reads: x of a projection, an attention or a sublayer, the ids of an embedding."""
        if isinstance(site, (Projection, Embedding)):
            return slots.first(self.node(site.node))
        return self.edited(site.input, AFTER)

    def residual(self, site: Sublayer) -> fx.Node:
        """What the sublayer's output is added to; its input, where that lies outside the unit."""
        return self.edited(site.residual or site.input, AFTER)

    def output(self, site: Projection | Sublayer | Embedding) -> fx.Node:
        """What the site computes, with every edit so far."""
        return self._at_level(site, AFTER)

    def normed(self, site: Sublayer) -> fx.Node:
        """LN(output + residual) of a post-norm sublayer; without a norm, or a residual in the unit, what there is."""
        if site.sum is None:
            return self.output(site)
        normed = norms.once_more(self, site, self.node(site.sum))
        normed.meta.update(name=f"{self._name}_input", names=[])
        return normed

    def call(self, call: ModuleCall, *args: Argument) -> fx.Node:
        """A call of the placement's own module on these arguments."""
        self.additions[self._name] = call
        return self._insert("call_module", self._name, args)

    def apply(self, function: str, *args: Argument, **options: Argument) -> fx.Node:
        """A call of a function of peftc.modules."""
        return self._insert("call_function", getattr(modules, function), args, options)

    def gate(self, on: fx.Node) -> fx.Node | None:
        """The placement's gate, computed once from the x of the first placement that it scales; None without a gate.

        It is (batch, ...) for an attention, and lies as what it scales does everywhere else.
        """
        if self._gating is None:
            return None
        name, member = self._gating.name, self._gating.member
        if name not in self._gates:
            self._gates[name] = self._call_gate(self._gating, on)
        if member is not None and f"{name}.{member}" not in self._gates:
            gate = self._gates[name]
            part = self._follow(gate, "call_function", getitem, (gate, member))
            part.meta.update(name=f"{self._label}_gate", names=[f"{self._name}_gate"])
            self._gates[f"{name}.{member}"] = part
        gate = self._gates[name if member is None else f"{name}.{member}"]
        return gate if isinstance(self._site, Attention) else self._turned(self._gating, gate)

    def gated(self, delta: fx.Node, on: fx.Node) -> fx.Node:
        """The delta times the placement's gate, whose x is `on`; the delta itself without a gate."""
        gate = self.gate(on)
        return delta if gate is None else self._insert("call_function", mul, (gate, delta))

    def add(self, site: Projection | Sublayer | Embedding, delta: fx.Node) -> None:
        """site + delta: to W x before anything scales it, to a sublayer's output before anything follows it."""
        level = BESIDE if isinstance(site, Sublayer) else WEIGHT
        if isinstance(site, Projection) and site.ones:
            delta = self._insert("call_method", "squeeze", (delta, *site.ones))
        x = self._at_level(site, level)
        self._change(site, level, self.apply("added", x, self._shaped(site, delta, x)))

    def add_after(self, site: Sublayer, delta: fx.Node) -> None:
        """output + delta, after every edit so far."""
        self._change(site, AFTER, self.apply("added", self.output(site), delta))

    def scale_output(self, site: Projection, call: ModuleCall, gate: fx.Node | None) -> None:
        """What the projection computes, deltas of its weights included, through a module that keeps its shape."""
        x = self._at_level(site, SCALE)
        if site.dims:
            back = tuple(site.order.index(axis) for axis in range(len(site.order)))
            x = joints.permuted(self, x, back)
            x = self._insert("call_method", "flatten", (x, -len(site.dims)))
        made = self.call(call, *((x, gate) if gate else (x,)))
        self._change(site, SCALE, self._shaped(site, made, self._at_level(site, SCALE)))

    def scale_input(self, site: Projection, call: ModuleCall, gate: fx.Node | None) -> None:
        """x of the projection through a module that keeps its shape: for the projection and all that attached to it."""
        x = self.input(site)
        self.additions[self._name] = call
        scaled = self._follow(x, "call_module", self._name, (x, gate) if gate else (x,))
        readers = ({self.node(site.node)} | self._owned.get(site.node, set())) - set(_ancestors(scaled, x))
        x.replace_all_uses_with(scaled, delete_user_cb=lambda user: user in readers)
        self._mark(scaled, x)

    def join(self, site: Attention, tables: fx.Node, gate: fx.Node | None) -> None:
        """Let the attention, and nothing else, read the keys and values of `tables` before its own."""
        joints.join(self, site, tables, gate)

    # -- what joints build with ----------------------------------------------------------------------------------

    def insert(self, op: str, target: Target, args: Arguments, before: fx.Node | None = None) -> fx.Node:
        """A node in front of another; or behind all that it reads, where the placement begins."""
        if before is None:
            return self._insert(op, target, args)
        with self.graph.inserting_before(before):
            return self._made(self.graph.create_node(op, target, args), before)

    def again(self, node: fx.Node, instead: dict[fx.Node, fx.Node]) -> fx.Node:
        """A node once more, with `instead` of some arguments: where the placement begins, or in its branch."""
        anchor, like = self._anchor()
        same = node.meta.get("guard") == like.meta.get("guard")
        with self._behind(anchor if same else node, [instead.get(read, read) for read in node.all_input_nodes]):
            copy = self._made(self.graph.node_copy(node, lambda n: instead.get(n, n)), node)
        for key in ("names", "name", "comment"):
            copy.meta.pop(key, None)
        return copy

    def copied(self, node: fx.Node, instead: dict[fx.Node, fx.Node]) -> fx.Node:
        """The same call once more, next to what the placement changes, on other arguments where `instead` says so."""
        anchor, like = self._anchor()
        with self._behind(anchor, [instead.get(read, read) for read in node.all_input_nodes]):
            copy = self._made(self.graph.node_copy(node, lambda n: instead.get(n, n)), like)
        copy.meta.pop("names", None)
        return copy

    def comment(self, node: fx.Node) -> None:
        """Name the placement beside a node."""
        node.meta["comment"] = self._comment

    def take_over(self, new: fx.Node, old: Argument) -> None:
        """Let a value have the name and the example of one whose place it takes."""
        _inherit(new, old)

    def node(self, name: str) -> fx.Node:
        """A node of the unit."""
        if name not in self._nodes:
            raise Defect(f"the graph has no node {name}, which a site names")
        return self._nodes[name]

    def edited(self, name: str, level: int = AFTER) -> fx.Node:
        """A node of the unit with the edits of this level and of those inside it."""
        found = [self._levels[name, inner] for inner in range(level + 1) if (name, inner) in self._levels]
        return found[-1] if found else self.node(name)

    def _at_level(self, site: Projection | Sublayer | Embedding, level: int) -> fx.Node:
        return self.edited(_output(site), level)

    def _change(self, site: Projection | Sublayer | Embedding, level: int, new: fx.Node) -> None:
        old = self._at_level(site, level)
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in self._fresh and new < user)
        self._mark(new, old)
        self._levels[_output(site), level] = new

    def _mark(self, new: fx.Node, old: fx.Node) -> None:
        """The new value takes over the name of the old one, which folds into the new where nothing else reads it."""
        _inherit(new, old)
        new.meta["comment"] = self._comment
        folds = old.op != "placeholder" and old.target is not getitem and "comment" not in old.meta
        if folds and all(user is new or user.target is leave for user in old.users):
            old.meta.pop("name", None)
            old.meta.pop("names", None)

    def _shaped(self, site: Projection | Sublayer | Embedding, delta: fx.Node, like: fx.Node) -> fx.Node:
        """Features as the site holds them: the heads of an interleaved projection apart, its axes in their order."""
        if not isinstance(site, Projection) or not site.dims:
            return delta
        if site.order == tuple(range(len(site.order))):
            return self._insert("call_method", "view_as", (delta, like))
        inner = range(len(site.order) - len(site.dims) + 1, len(site.order))
        sizes = [self._insert("call_method", "size", (like, site.order.index(a) - len(site.order))) for a in inner]
        apart = self._insert("call_method", "unflatten", (delta, -1, (-1, *sizes)))
        return joints.permuted(self, apart, site.order)

    def _call_gate(self, gating: Gating, x: fx.Node) -> fx.Node:
        self.additions[gating.name] = gating.call
        mask = self.node(self._site.mask) if self._site.mask else None
        readable: dict[str, Argument] = {"x": self._turned(gating, x), "mask": mask}
        args = tuple(readable[name] for name in gating.reads)
        return self._follow(x, "call_module", gating.name, args)

    def _turned(self, gating: Gating, value: fx.Node) -> fx.Node:
        """What a gate reads or makes, (length, batch, ...) as (batch, length, ...) and back, where the site is so."""
        turned = gating.reads and not isinstance(self._site, Embedding) and self._site.turned
        return self._follow(value, "call_method", "transpose", (value, 0, 1)) if turned else value

    def _anchor(self) -> tuple[fx.Node, fx.Node]:
        """The node to stand behind, and the node whose guard to share."""
        if isinstance(self._site, Attention):
            start = self.node(start_of(self._site))
            return start.prev, start
        output = self._at_level(self._site, BESIDE if isinstance(self._site, Sublayer) else WEIGHT)
        return output, output

    def _insert(self, op: str, target: Target, args: Arguments, options: Options | None = None) -> fx.Node:
        """A node next to what it changes, behind all that it reads."""
        anchor, like = self._anchor()
        with self._behind(anchor, (*args, *(options or {}).values())):
            return self._made(self.graph.create_node(op, target, args, options), like)

    def _follow(self, node: fx.Node, op: str, target: Target, args: Arguments) -> fx.Node:
        """A node right behind the last of what it reads."""
        with self._behind(end_of(node), args):
            return self._made(self.graph.create_node(op, target, args), node)

    def _behind(self, anchor: fx.Node, args: Iterable[Argument]) -> AbstractContextManager[None]:
        reads = [anchor]
        fx.node.map_arg(tuple(args), reads.append)
        last: fx.Node = max(reads)
        while last.next.op == "placeholder":
            last = last.next
        return self.graph.inserting_after(end_of(last) if isinstance(self._site, Sublayer) else last)

    def _made(self, node: fx.Node, like: fx.Node) -> fx.Node:
        if "guard" in like.meta:
            node.meta["guard"] = like.meta["guard"]
        self._fresh.add(node)
        return node


def _output(site: Projection | Sublayer | Embedding) -> str:
    """The node that holds what the site computes: of a part among others, one that an edit takes from them."""
    if isinstance(site, Embedding):
        return site.node
    return f"{site.node}:{site.name}" if isinstance(site, Projection) and site.among else site.output


def _ancestors(node: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    """What a node reads, down to `end`."""
    for read in node.all_input_nodes:
        if read is not end:
            yield read
            yield from _ancestors(read, end)


def _inherit(new: fx.Node, old: Any) -> None:
    """The variable's name and the example values of a node whose place another one takes."""
    if not isinstance(old, fx.Node):
        return
    new.meta.update(names=list(old.meta.get("names", ())), replaces=old.name)
    new.meta.update({key: old.meta[key] for key in ("name", "stored", "value") if key in old.meta})
