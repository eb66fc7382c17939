"""One child process per model type, with a limit of time and memory: one crash does not end the sweep."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from tests.sweep import build, laws, peers
from tests.sweep.inputs import inputs_of
from tests.sweep.parts import parts
from tests.sweep.registry import Type

SECONDS, WAIT, BYTES = 180, 600, 8 * 2**30  # of its own work; of the clock; of memory
Row = dict[str, Any]


def sweep(types: Iterable[Type]) -> Iterator[Row]:
    """One row per type, in order."""
    for kind in types:
        yield row(kind)


def row(kind: Type) -> Row:
    """The row of a type, made in a child of a server: this process may have threads, which a fork would lose."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sweep.laws"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(kind, sender))
    child.start()
    sender.close()
    found = _received(receiver, child)
    child.join(5)
    if child.is_alive():
        child.kill()
        child.join()
    return {"type": kind.label, "kind": kind.kind, **({"settings": kind.settings} if kind.variant else {}), **found}


def _received(receiver: Connection, child: Any) -> Row:
    """What the child said last: each part replaces what was there."""
    found: Row = {}
    deadline = time.monotonic() + WAIT
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            found |= receiver.recv()
        except EOFError:
            return found if "done" in found else {**found, "crash": f"the process ended with {_code(child)}"}
    child.kill()
    return {**found, "crash": f"more than {WAIT} seconds"}


def _code(child: Any) -> str:
    child.join(5)
    return f"exit code {child.exitcode}"


def _child(kind: Type, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        model = build.tiny(kind)
        inputs_of(model, kind)
    except build.Unbuilt as reason:
        sender.send({"unbuilt": str(reason), "done": True})
        return
    try:
        sender.send({"has": parts(model)})
        sender.send({"peft": peers.outcomes(kind, model)})
        sender.send({"peftc": {name: asdict(o) for name, o in laws.outcomes(kind, model).items()}})
        sender.send({"seconds": round(resource.getrusage(resource.RUSAGE_SELF).ru_utime, 1), "done": True})
    except Exception as error:
        sender.send({"error": "".join(traceback.format_exception(error)[-3:])[-600:], "done": True})


def text(rows: Iterable[Row]) -> str:
    """The rows as JSON, one line each."""
    return "[\n" + ",\n".join(json.dumps(r, sort_keys=True) for r in rows) + "\n]\n"
