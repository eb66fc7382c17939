"""A part of a fused projection that no node holds alone: taken from among the others, and put back."""

from __future__ import annotations

from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from peftc.graph.branches import end_of

if TYPE_CHECKING:
    from peftc.graph.editor import Editor
    from peftc.graph.sites import Projection


def taken(edit: Editor, site: Projection) -> tuple[fx.Node, fx.Node]:
    """The part's features alone, and the whole with them in their place, which all that follows reads."""
    assert site.rows is not None
    start, end = site.rows[0], site.rows[-1] + 1
    here: Any = (..., slice(start or None, end))
    whole, values = edit.edited(site.node), edit.node(site.node).meta["value"]
    guard = {"guard": whole.meta["guard"]} if "guard" in whole.meta else {}
    with edit.graph.inserting_after(end_of(whole)):
        part = edit.graph.call_function(getitem, (whole, here))
    with edit.graph.inserting_after(part):
        put = edit.graph.call_function(torch.slice_scatter, (whole, part, -1, start, end))
    whole.replace_all_uses_with(put, delete_user_cb=lambda user: put < user)
    part.meta.update(guard, names=[site.label], value=tuple(value[..., start:end] for value in values))
    put.meta.update(guard)
    edit.take_over(put, whole)
    return part, put
