"""Checkpoints: weights, optimizer state and data order in one safetensors file, from which a run goes on to the same bits.

A file holds a checksum and the network's fingerprint: a flipped bit is refused, and so is a network that differs in a stride. Files of
version 0.1 had neither. They are read as before, with a warning where their network has arguments that they do not tell.

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

from modula_rs.checkpoint import network
from modula_rs.checkpoint.file import Run, library, read, write
from modula_rs.checkpoint.nested import filled, named
from modula_rs.checkpoint.values import Value, restored, signature, stored
from modula_rs.checks import size
from modula_rs.files import sweep_out
from modula_rs.network.fingerprint import description
from modula_rs.network.module import Module
from modula_rs.norm.checks import check_weights


class Checkpoint(NamedTuple):
    """What :func:`load` gives: weights and state in the libraries of the examples it was given, and the step."""

    weights: list[Any]
    state: Any
    step: int


def save(path: str | os.PathLike[str], m: Module, weights: Sequence[Any], state: Any = None, *, step: int = 0) -> None:
    """Writes a run to a file; if that fails, or the machine does, the file that was there before is still whole.

    Any number of threads, processes and hosts may save to one path: the file is whole at every moment, and the last one's in the end. A
    link at the path is followed.

    Args:
        path: the file. It is written beside itself first, brought to the disk, and then renamed. What a killed process left of its
            attempt is removed.
        m: the module; its tree is kept with the weights.
        weights: one array for each of ``m.leaves``, saved under ``weights/`` and the leaf's path.
        state: whatever else the run needs to go on: nested tuples, named tuples, lists, deques, dicts of all kinds, dataclasses and
            whatever JAX knows as a tree, of arrays, JAX keys, NumPy generators, numbers, strings, bytes and sets. The state of any optax
            optimizer is of that kind.
        step: how many steps were taken; any integer of Python, NumPy or JAX.

    Raises:
        TypeError: for a state that holds something else, and a step that is no integer.
        ValueError: for weights that do not fit ``m``, a negative step, and two values of one name, as those of ``{"1": x, 1: y}``.
        OSError: if the file cannot be written.
    """
    library()
    taken = size("step", step)
    check_weights(m.leaves, weights, "weight")
    paths = [leaf.path for leaf in m.leaves]
    kept = {name: stored(name, value) for name, value in _all_named(weights, state, paths).items()}
    values = {name: list(value) for name, value in kept.items() if isinstance(value, Value)}
    tensors = {name: value for name, value in kept.items() if not isinstance(value, Value)}
    lines = tuple(islice(description(m.norm_table, m.program), network.LINES))
    write(Path(path), tensors, Run(taken, m._tree.table(), [list(leaf) for leaf in m.leaves], values, m.fingerprint, lines))


def load(path: str | os.PathLike[str], m: Module, weights: Sequence[Any], state: Any = None) -> Checkpoint:
    """Reads a run from a file, exactly as it was saved, and all from one version of it, even while another process saves.

    Args:
        path: the file.
        m: the module; it must be the one that was saved, masses and all arguments of atoms and bonds included.
        weights: an example of the weights, such as fresh ones: what comes back is in its library and on its devices.
        state: an example of the state, such as the one before the first step. NumPy generators come back as new ones.

    Raises:
        ValueError: if the file is no whole checkpoint, or the trees, names, shapes or dtypes differ; the message says how.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    sweep_out(path)
    tensors, run = read(path)
    network.expect(path, m, run)
    check_weights(m.leaves, weights, "weight")
    paths = [leaf.path for leaf in m.leaves]
    found = {**tensors, **{name: Value(*pair) for name, pair in run.values.items()}}
    examples = _all_named(weights, state, paths)
    differences = [line for name in {**examples, **found} for line in _difference(name, examples, found)]
    if differences:
        raise ValueError(f"{path} does not fit:\n  " + network.shortened(differences))
    try:
        values = {name: restored(name, found[name], example) for name, example in examples.items()}
    except ValueError as error:
        raise ValueError(f"{path} is no whole checkpoint: {error}") from error
    return Checkpoint(filled("weights", list(weights), paths, values), filled("state", state, paths, values), run.step)


def _all_named(weights: Sequence[Any], state: Any, paths: Sequence[str]) -> dict[str, Any]:
    return {**named("weights", list(weights), paths), **named("state", state, paths)}


def _difference(name: str, examples: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    here = signature(examples[name]) if name in examples else "nothing"
    there = signature(found[name]) if name in found else "nothing"
    if here != there:
        yield f"{name}: the file has {there}, expected {here}"
