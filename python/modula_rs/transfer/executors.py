"""The points of a sweep on any executor: Dask, Ray, MPI, Slurm or a pool of processes. This process alone writes them down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import jax

from modula_rs.data import Dataset
from modula_rs.norm.methods import Normed
from modula_rs.transfer.networks import network, network_identity
from modula_rs.transfer.optimizers import Optimizer
from modula_rs.transfer.progress import Progress
from modula_rs.transfer.store import Store
from modula_rs.transfer.table import Row, Size
from modula_rs.transfer.training import Lane, Outcome, Recipe, train

#: Seconds between two looks at the results, in which an interrupt waits.
_PATIENCE = 0.2


@dataclass(frozen=True)
class Task:
    """The runs of one size and seed. It can be pickled if ``build``, the optimizers and the loss can."""

    build: Callable[[Size], Any]
    size: Size
    identity: Any
    dataset: Dataset
    optimizers: Mapping[str, Optimizer]
    lanes: tuple[Lane, ...]
    recipe: Recipe
    start: str


def tasks_of(
    build: Callable[[Size], Any],
    size: Size,
    module: Normed[Any],
    dataset: Dataset,
    optimizers: Mapping[str, Optimizer],
    lanes: Sequence[Lane],
    recipe: Recipe,
    start: str,
) -> list[Task]:
    """One task for each seed."""
    identity, made = network_identity(module, start), []
    for seed in dict.fromkeys(lane.seed for lane in lanes):
        own = tuple(lane for lane in lanes if lane.seed == seed)
        named = {name: optimizers[name] for name in dict.fromkeys(lane.optimizer for lane in own)}
        made.append(Task(build, size, identity, dataset, named, own, recipe, start))
    return made


def perform(task: Task) -> list[tuple[float, ...]]:
    """Trains the runs of a task, where the executor has placed it, and returns their losses in order.

    The result is of plain values, because executors have ways of their own to send them: Dask makes a tuple of a named tuple.

    Raises:
        RuntimeError: ``build`` made another network here than in the process that began the sweep.
    """
    module = network(task.build(task.size), task.dataset, task.recipe.batch_size, task.size.mass)
    if network_identity(module, task.start) != task.identity:
        raise RuntimeError(f"{task.size}: the worker built another network than the process that began the sweep")
    found: dict[Lane, Outcome] = {}
    train(module, task.dataset, task.optimizers, task.lanes, task.recipe, jax.local_devices()[0], finished=found.update, start=task.start)
    return [tuple(found[lane]) for lane in task.lanes]


def run_tasks(
    tasks: Sequence[Task], executor: Executor, store: Store, shown: bool, summary: Callable[[Mapping[Lane, Outcome]], str]
) -> None:
    """Runs the tasks, and writes the points as they come; all that has come is written before the first error is raised.

    Tasks that have not begun are cancelled if one fails, and if this process is interrupted.
    """
    if not isinstance(executor, Executor):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {type(executor).__name__}")
    names = [f"{task.size}, seed {task.lanes[0].seed}" for task in tasks]
    progress = Progress(names, [float(len(task.lanes)) for task in tasks], 1, shown)
    futures: dict[Future[list[tuple[float, ...]]], int] = {}
    failed: BaseException | None = None
    with progress:
        try:
            for number, task in enumerate(tasks):
                futures[executor.submit(perform, task)] = number
                progress.start(number)
            waiting = set(futures)
            while waiting and failed is None:
                done, waiting = wait(waiting, timeout=_PATIENCE, return_when="FIRST_COMPLETED")
                for future in done:
                    failed = future.exception() or failed
                    if future.exception() is None:
                        task = tasks[futures[future]]
                        found = {lane: Outcome(*losses) for lane, losses in zip(task.lanes, future.result(), strict=True)}
                        store.add(Row(lane.optimizer, *task.size, lane.rate, lane.seed, *outcome) for lane, outcome in found.items())
                        progress.finish(futures[future], summary(found))
        finally:
            for future in futures:
                future.cancel()
    if failed is not None:
        raise failed
