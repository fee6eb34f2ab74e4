"""One run, with a log and checkpoints. It can be stopped at any moment, and continues to the same bits."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from modula_rs import checkpoint
from modula_rs.checks import size
from modula_rs.data import Dataset, fingerprint
from modula_rs.files import Busy, claimed, make_folder, write_whole
from modula_rs.norm.methods import Normed
from modula_rs.transfer.grids import learning_rate
from modula_rs.transfer.networks import OWN, joined
from modula_rs.transfer.optimizers import Optimizer, identity
from modula_rs.transfer.training import Lane, Lanes, Outcome, Program, Recipe, State

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.csv"


class Entry(NamedTuple):
    """A line of the log: a number of steps, the losses of the weights after them, and the seconds of training that they took."""

    step: int
    train_loss: float
    test_loss: float
    seconds: float


class RunError(ValueError):
    """A folder that holds another run, or none where one is expected."""


def train(
    module: Normed[Any],
    dataset: Dataset,
    optimizer: tuple[str, Optimizer],
    rate: float,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    every: int = 100,
    resume: bool = False,
    report: Callable[[Entry], None] = lambda entry: None,
    start: str = OWN,
) -> list[Entry]:
    """Trains one network. Every ``every`` steps it measures the losses, adds a line to ``log.csv`` and replaces ``checkpoint.safetensors``.

    Args:
        optimizer: its name, and the function from the module to an optax transformation.
        rate: the learning rate at the first step; it decays linearly to 0 over the steps of the recipe.
        every: the number of steps between checkpoints. It does not change the run.
        resume: whether to continue from the checkpoint in ``out``.
        start: where the weights of a traced network come from; see :func:`modula_rs.transfer.sweep`.

    Returns:
        The whole log, including the part before a resumption.

    Raises:
        RunError: ``resume`` is False and ``out`` holds a run, or it is True and ``out`` holds no run or another run.
    """
    recipe = recipe or Recipe()
    out = Path(out)
    name, make = optimizer
    every, seed = size("every", every, 1), size("seed", seed)
    lane = Lane(name, learning_rate(rate), seed)
    settings = {
        "optimizer": name, "rate": lane.rate, "seed": seed, "steps": recipe.steps, "batch_size": recipe.batch_size,
        "data": dataset.name, "content": fingerprint(dataset), "loss": recipe.identity, "optimizer's code": identity(name, make),
    }  # fmt: skip
    with _alone_in(out):
        if (out / CHECKPOINT).exists() != resume:
            expected = f"{out} holds no checkpoint to resume" if resume else f"{out} holds a run: resume it, or choose another folder"
            raise RunError(expected)
        run = Program(module, dataset, {name: make}, recipe, jax.local_devices()[0], start).begin([lane])
        entries = _restore(out / CHECKPOINT, module, run, settings) if resume else []
        run.program.compiled(run)
        begun = time.perf_counter() - (entries[-1].seconds if entries else 0.0)
        while run.step < recipe.steps:
            run.advance(min(recipe.steps, run.step + every - run.step % every))
            seconds = time.perf_counter() - begun
            outcome: Outcome = run.outcomes()[lane]
            entries.append(Entry(run.step, *outcome, seconds))
            _save(out, module, run, settings, entries)
            report(entries[-1])
    return entries


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """RunError if another process trains in this folder, because the two would replace each other's checkpoints."""
    make_folder(out)
    try:
        with claimed(out / ".lock"):
            yield
    except Busy:
        raise RunError(f"another process trains in {out}: choose another folder") from None


def _save(out: Path, module: Normed[Any], run: Lanes, settings: dict[str, Any], entries: list[Entry]) -> None:
    checkpoint.save(out / CHECKPOINT, module, _weights(run), _kept(run, settings, entries), step=run.step)
    log = io.StringIO()
    writer = csv.writer(log, lineterminator="\n")
    writer.writerow(Entry._fields)
    writer.writerows(entries)
    write_whole(out / LOG, log.getvalue().encode())


def _kept(run: Lanes, settings: dict[str, Any], entries: list[Entry]) -> dict[str, Any]:
    """The state that the checkpoint holds beside the weights. It includes the log, so that the log and the weights always agree."""
    states, diverged = _first(run.state.optimizers), _first(run.state.diverged)
    return {"settings": json.dumps(settings), "log": json.dumps(entries), "optimizer": states, "diverged": diverged}


def _restore(path: Path, module: Normed[Any], run: Lanes, settings: dict[str, Any]) -> list[Entry]:
    """Sets a run to the state in its checkpoint, and returns the log so far."""
    saved = checkpoint.load(path, module, _weights(run), _kept(run, settings, []))
    # Version 0.1 recorded neither the loss nor the optimizer's code. All its runs came from the command line, which uses the library's own.
    known = {"optimizer's code": settings["optimizer"], "loss": "cross_entropy"} | json.loads(saved.state["settings"])
    for setting, value in settings.items():
        if known.get(setting) != value:
            raise RunError(f"{path} is of a run with {setting} {known.get(setting)}, not {value}")
    lanes = jax.tree.map(lambda array: array[None], (*module.split(saved.weights), saved.state["optimizer"], saved.state["diverged"]))
    run.state, run.step = State(*lanes), saved.step
    return [Entry(*line) for line in json.loads(saved.state["log"])]


def _weights(run: Lanes) -> Any:
    return _first(joined(run.state.weights, run.state.frozen))


def _first(tree: Any) -> Any:
    """The first lane of each array, where there is only one."""
    return jax.tree.map(lambda array: array[0], tree)
