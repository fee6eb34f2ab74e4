"""Checkpoints: weights, optimizer state and data order in one safetensors file, from which a run goes on to the same bits.

A file holds a checksum and the network's fingerprint, so a flipped bit is refused, and so is a network that differs in a stride. Files of
version 0.1 have neither. They can be read, with a warning if their network has arguments that the file does not record.

>>> import numpy as np, tempfile, modula_rs as mr
>>> m = mr.MLP(1, 2, width=8, depth=2)
>>> w, rng = m.initialize(0), np.random.default_rng(0)
>>> state = mr.optim.adam_init(w)
>>> with tempfile.TemporaryDirectory() as folder:
...     mr.checkpoint.save(f"{folder}/run.safetensors", m, w, (state, rng), step=7)
...     saved = mr.checkpoint.load(f"{folder}/run.safetensors", m, w, (state, rng))
>>> saved.step, bool((saved.weights[0] == w[0]).all())
(7, True)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from modula_rs.checkpoint import network, processes
from modula_rs.checkpoint.file import Run, library, read, write
from modula_rs.checkpoint.nested import filled, named
from modula_rs.checkpoint.values import Value, restored, signature, spans_processes, stored
from modula_rs.checks import size
from modula_rs.files import sweep_out
from modula_rs.norm.methods import Normed


class Checkpoint(NamedTuple):
    """The result of :func:`load`: weights and state in the structure and the libraries of the examples passed to it, and the step."""

    weights: Any
    state: Any
    step: int


def save(path: str | os.PathLike[str], m: Normed[Any], weights: Any, state: Any = None, *, step: int = 0) -> None:
    """Writes a run to a file. If writing fails, or the machine does, the earlier file is still whole.

    Any number of threads, processes and hosts may save to one path: the file is whole at every moment, and the last writer's in the end. A
    link at the path is followed.

    If an array lies in parts on the devices of several processes (``jax.distributed``), every process must call ``save``. Arrays are then
    gathered one after the other, the first process writes, and the call returns in every process when the file is on the disk.

    Args:
        path: the file. A temporary file beside it is written first, brought to the disk, and then renamed. Temporary files of killed
            processes are removed.
        m: the module, or a traced network; its table is saved with the weights.
        weights: the weights of ``m``: a list of arrays, or the pytree of a traced network. Each array is saved under ``weights/`` and the
            path of its row in ``m.leaves``.
        state: everything else that the run needs to go on: nested tuples, named tuples, lists, deques, dicts of all kinds, dataclasses
            and classes that JAX knows as trees, which hold arrays, JAX keys, NumPy generators, numbers, strings, bytes and sets. The state
            of any optax optimizer is such a value.
        step: the number of steps taken; any integer of Python, NumPy or JAX.

    Raises:
        TypeError: no network, a state that holds another kind of value, or a step that is no integer.
        ValueError: weights that do not fit ``m``, a negative step, or two values with one name, such as those of ``{"1": x, 1: y}``.
        OSError: the file cannot be written, by this process or by the one that writes.
    """
    library()
    network.check(m)
    taken = size("step", step)
    arrays, _ = m.opened(weights)
    paths = [leaf.path for leaf in m.leaves]
    lines = tuple(islice(m.description(), network.LINES))
    named_values = _all_named(arrays, state, paths)

    def finish(kept: dict[str, Any]) -> None:
        values = {name: list(value) for name, value in kept.items() if isinstance(value, Value)}
        tensors = {name: value for name, value in kept.items() if not isinstance(value, Value)}
        write(Path(path), tensors, Run(taken, m.drawing(), network.rows(m), values, m.fingerprint, lines))

    if any(map(spans_processes, named_values.values())):
        processes.save_together(named_values, finish)
    else:
        finish({name: stored(name, value) for name, value in named_values.items()})


def load(path: str | os.PathLike[str], m: Normed[Any], weights: Any, state: Any = None) -> Checkpoint:
    """Reads a run from a file, exactly as it was saved, and all of it from one version of the file, even while another process saves.

    Args:
        path: the file.
        m: the module or the traced network; it must equal the saved one, with all masses and all arguments of atoms and bonds.
        weights: an example of the weights, such as fresh ones. The result is in the example's library and on its devices.
        state: an example of the state, such as the state before the first step. NumPy generators are returned as new objects.

    Raises:
        TypeError: no network.
        ValueError: the file is no whole checkpoint, or trees, names, shapes or dtypes differ; the message names the difference.
        OSError: the file cannot be read.
    """
    network.check(m)
    path = Path(path)
    sweep_out(path)
    tensors, run = read(path)
    network.expect(path, m, run)
    arrays, structured = m.opened(weights)
    paths = [leaf.path for leaf in m.leaves]
    found = {**tensors, **{name: Value(*pair) for name, pair in run.values.items()}}
    examples = _all_named(arrays, state, paths)
    differences = [line for name in {**examples, **found} for line in _difference(name, examples, found)]
    if differences:
        raise ValueError(f"{path} does not fit:\n  " + network.shortened(differences))
    try:
        values = {name: restored(name, found[name], example) for name, example in examples.items()}
    except ValueError as error:
        raise ValueError(f"{path} is no whole checkpoint: {error}") from error
    return Checkpoint(structured(filled("weights", list(arrays), paths, values)), filled("state", state, paths, values), run.step)


def _all_named(weights: Sequence[Any], state: Any, paths: Sequence[str]) -> dict[str, Any]:
    return {**named("weights", list(weights), paths), **named("state", state, paths)}


def _difference(name: str, examples: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    here = signature(examples[name]) if name in examples else "nothing"
    there = signature(found[name]) if name in found else "nothing"
    if here != there:
        yield f"{name}: the file has {there}, expected {here}"
