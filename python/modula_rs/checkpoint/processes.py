"""Saving from several processes of JAX, each of which holds a part of the arrays: all gather, one writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modula_rs.checkpoint.values import spans_processes, stored


def save_together(named: Mapping[str, Any], finish: Callable[[dict[str, Any]], None]) -> None:
    """Gathers the values one after the other, and passes them to ``finish`` in the first process. It returns when all is done.

    Values that cannot be stored are refused before an array is gathered or anything is written, in every process that holds them.
    """
    import jax
    from jax.experimental.multihost_utils import process_allgather

    first = jax.process_index() == 0
    kept = {name: stored(name, value) for name, value in named.items() if not spans_processes(value)}
    for name, value in named.items():
        if spans_processes(value):
            gathered = stored(name, value)
            if first:  # other processes forget the array before the next one
                kept[name] = gathered
    failure: Exception | None = None
    if first:
        try:
            finish({name: kept[name] for name in named})
        except Exception as error:  # the other processes wait for the outcome, whatever it is
            failure = error
    failed = bool(np.any(process_allgather(np.array([failure is not None]))))
    if failure is not None:
        raise failure
    if failed:
        raise OSError("the first process could not write the checkpoint: its error says why")
