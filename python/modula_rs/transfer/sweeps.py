"""Sweeps: the loss of every optimizer at every size, learning rate and seed."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modula_rs.data import Dataset, Text, fingerprint
from modula_rs.norm.methods import Normed
from modula_rs.transfer.executors import run_tasks, tasks_of
from modula_rs.transfer.grids import chosen_optimizers, chosen_rates, chosen_seeds, chosen_sizes
from modula_rs.transfer.networks import OWN, check_start, network, network_identity
from modula_rs.transfer.optimizers import Optimizer, identity
from modula_rs.transfer.progress import Progress
from modula_rs.transfer.store import FORMAT, Store
from modula_rs.transfer.table import Row, Size, Table
from modula_rs.transfer.training import Lane, Outcome, Recipe, train


class Stopped(Exception):
    """Raised in the workers when the sweep is to end early."""


@dataclass(frozen=True)
class _Job:
    """One size: its network, its data, and the runs that remain."""

    size: Size
    module: Normed[Any]
    dataset: Dataset
    lanes: list[Lane]
    work: float


def sweep(
    build: Callable[[Size], Any],
    dataset: Dataset,
    *,
    widths: Sequence[int],
    depths: Sequence[int],
    masses: Sequence[float | None] = (None,),
    contexts: Sequence[int | None] = (None,),
    optimizers: Sequence[str] | Mapping[str, Optimizer] = ("normed-adam", "normed-sgd", "adam"),
    rates: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    seeds: int | Sequence[int] = 1,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
    start: str = OWN,
    executor: Executor | None = None,
) -> Table:
    """Trains every combination and returns the table of losses.

    All learning rates, seeds and optimizers of one size run together in one compiled program; sizes run side by side on all devices.
    A run that diverges has infinite loss. With ``out``, each finished point is written to that folder at once, and skipped by later sweeps.
    Several processes of JAX (``jax.distributed``) that start the same sweep share its sizes out and write to one folder, and each returns
    the whole table.

    Args:
        build: a function from a size to a module, a traced network, or a model that :func:`modula_rs.trace` takes; it decides how width,
            depth, mass and context are used. A model is traced with a batch of the data; a module of Equinox takes single examples.
        dataset: from :mod:`modula_rs.data`, or anything with the same methods. Contexts need text.
        widths, depths, masses, contexts: the sizes are all combinations of these.
        optimizers: names from ``OPTIMIZERS``, or a mapping from names to functions from a module to an optax transformation whose updates
            contain no learning rate and no minus sign (they are multiplied by the rate and subtracted).
        rates: learning rates for all optimizers, or by name for each; the defaults are in ``RATES``.
        seeds: the number of seeds, or the seeds; a seed sets weights and data order.
        recipe: steps, batch size, loss.
        out: the folder for points and settings.
        devices: JAX devices of this process; by default all of its devices of the default platform.
        progress: whether to show progress on stderr.
        start: where the weights of a traced network come from: ``"own"``, its own initialisation where that is known, or ``"norm"``, its
            ``initialize``. Modules always start from ``initialize``.
        executor: where to run the points: any ``concurrent.futures.Executor``, such as Dask's ``client.get_executor()``, that of mpi4py, or
            a ``ProcessPoolExecutor`` (with the start method "spawn"). ``build`` and custom optimizers are sent to it, so they must be
            picklable: functions of a module. This process writes the points as they come. None: threads of this process, on ``devices``.

    Raises:
        TypeError, ValueError: an invalid grid, a folder with points of another sweep, or several processes without a folder.

    >>> import modula_rs as mr
    >>> from modula_rs import transfer
    >>> table = transfer.sweep(
    ...     lambda size: mr.ResMLP(size.width, size.depth, 1, 64, 10), mr.data.digits(), widths=[8, 16], depths=[2],
    ...     optimizers=["normed-adam"], rates=[0.25, 0.5], recipe=transfer.Recipe(steps=20, batch_size=32))
    >>> len(table), table.optimizers
    (4, ['normed-adam'])
    """
    import jax

    recipe = recipe or Recipe()
    made = chosen_optimizers(optimizers)
    grid = {name: chosen_rates(name, rates) for name in made}
    wanted_seeds = chosen_seeds(seeds)
    sizes = [Size(*values) for values in itertools.product(*chosen_sizes(widths, depths, masses, contexts))]
    modules = {size: network(build(size), _with_context(dataset, size.context), recipe.batch_size, size.mass) for size in sizes}
    check_start(start)
    if jax.process_count() > 1 and out is None:
        raise ValueError(f"a sweep by {jax.process_count()} processes needs out=: a folder that all of them write to")
    store = Store(out, {} if out is None else _settings(dataset, recipe, made, modules, start))
    known = store.keys

    jobs, works = [], {}
    for size, module in modules.items():
        every = [Lane(name, rate, seed) for name, own in grid.items() for seed in wanted_seeds for rate in own]
        lanes = [lane for lane in every if (lane.optimizer, size, lane.rate, lane.seed) not in known]
        own_data = _with_context(dataset, size.context)
        works[size] = _work(module, own_data, every, recipe)
        if lanes:
            jobs.append(_Job(size, module, own_data, lanes, _work(module, own_data, lanes, recipe)))
    # The sizes of a process do not depend on the points that others have finished meanwhile, so that none is computed twice or never.
    owned = shared_out(works, jax.process_count())[jax.process_index()]
    jobs = [job for job in jobs if job.size in owned]
    # The longest jobs run first, so that the workers end together and the time left is known early.
    jobs.sort(key=lambda job: -job.work)
    if executor is None:
        _run(jobs, made, recipe, store, list(devices or jax.local_devices()), progress, start)
    else:
        tasks = [task for job in jobs for task in tasks_of(build, job.size, job.module, job.dataset, made, job.lanes, recipe, start)]
        run_tasks(tasks, executor, store, progress, _summary)
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices("a sweep of modula_rs")
        store.refresh()

    wanted = {(name, size, rate, seed) for name, own in grid.items() for size in sizes for rate in own for seed in wanted_seeds}
    order = {name: place for place, name in enumerate(made)}
    rows = [row for row in store.rows if (row.optimizer, row.size, row.rate, row.seed) in wanted]
    return Table(sorted(rows, key=lambda row: (order[row.optimizer], sizes.index(row.size), row.seed, row.rate)))


def shared_out(works: Mapping[Size, float], processes: int) -> list[list[Size]]:
    """The sizes of each process: the longest first, each to the process with the least work so far.

    >>> shared_out({Size(8, 1): 3.0, Size(8, 2): 5.0, Size(8, 4): 2.0}, 2)
    [[Size(width=8, depth=2, mass=None, context=None)], [Size(width=8, depth=1, mass=None, context=None),
      Size(width=8, depth=4, mass=None, context=None)]]
    """
    shares: list[list[Size]] = [[] for _ in range(processes)]
    loads = [0.0] * processes
    for size in sorted(works, key=lambda size: (-works[size], str(size))):
        least = loads.index(min(loads))
        shares[least].append(size)
        loads[least] += works[size]
    return shares


def _cores() -> int:
    """The number of cores that this process may use, or of all cores if the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    jobs: list[_Job], optimizers: Mapping[str, Optimizer], recipe: Recipe, store: Store, devices: list[Any], shown: bool, start: str
) -> None:
    # While one program is compiled on one core, another runs on the other.
    each = min(2, _cores()) if devices[0].platform == "cpu" and len(devices) == 1 else 1
    places = [device for device in devices for _ in range(each)][: max(1, len(jobs))]
    free, stop = list(places), threading.Event()
    progress = Progress([str(job.size) for job in jobs], [job.work for job in jobs], len(places), shown)

    def work(at: int) -> None:
        job, best = jobs[at], {}
        if stop.is_set():
            return

        def tick(fraction: float) -> None:
            if stop.is_set():
                raise Stopped
            progress.update(at, fraction)

        def finished(outcomes: dict[Lane, Outcome]) -> None:
            store.add(Row(lane.optimizer, *job.size, lane.rate, lane.seed, *outcome) for lane, outcome in outcomes.items())
            best.update(outcomes)

        device = free.pop()
        try:
            progress.start(at)
            own = {name: optimizers[name] for name in dict.fromkeys(lane.optimizer for lane in job.lanes)}
            train(job.module, job.dataset, own, job.lanes, recipe, device, tick, finished, 1 / each, start)
            progress.finish(at, _summary(best))
        except Stopped:
            pass
        finally:
            free.append(device)

    with progress, ThreadPoolExecutor(len(places), "sweep") as pool:
        futures = [pool.submit(work, at) for at in range(len(jobs))]
        try:
            while True:  # short waits let an interrupt through
                done, rest = wait(futures, timeout=0.2)
                failed = next((future for future in done if future.exception()), None)
                if failed is not None or not rest:
                    break
        finally:
            stop.set()
        for future in futures:
            future.result()


def _summary(outcomes: Mapping[Lane, Outcome]) -> str:
    """The best result of each optimizer."""
    parts = []
    for name in dict.fromkeys(lane.optimizer for lane in outcomes):
        own = {lane: outcome for lane, outcome in outcomes.items() if lane.optimizer == name}
        rates: dict[float, list[float]] = {}
        for lane, outcome in own.items():
            rates.setdefault(lane.rate, []).append(outcome.train_loss)
        rate = min(rates, key=lambda value: float(np.mean(rates[value])))
        loss = float(np.mean(rates[rate]))
        parts.append(f"{name} {loss:.3f} at {show_rate(rate)}" if math.isfinite(loss) else f"{name} diverged")
    return ", ".join(parts)


def show_rate(rate: float) -> str:
    """A learning rate, as a power of two if it is one.

    >>> show_rate(0.25), show_rate(0.3)
    ('2^-2', '0.3')
    """
    mantissa, exponent = math.frexp(rate)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{rate:g}"


def _work(module: Normed[Any], dataset: Dataset, lanes: Sequence[Lane], recipe: Recipe) -> float:
    """The approximate number of floating point operations of these runs: six for each weight and position, and some for each weight."""
    weights = sum(math.prod(leaf.shape) for leaf in module.leaves)
    positions = dataset.context if isinstance(dataset, Text) else 1
    return float(len(lanes) * recipe.steps * weights * (6 * recipe.batch_size * positions + 200))


def _with_context(dataset: Dataset, context: int | None) -> Dataset:
    if context is None:
        return dataset
    if not isinstance(dataset, Text):
        raise ValueError(f"contexts need text, got {dataset.name}")
    return dataset.with_context(context)


def _settings(
    dataset: Dataset, recipe: Recipe, optimizers: Mapping[str, Optimizer], modules: Mapping[Size, Normed[Any]], start: str
) -> dict[str, Any]:
    """Everything besides its own row that a point depends on."""
    return {
        "format": FORMAT,
        "data": dataset.name,
        "content": fingerprint(dataset),
        "steps": recipe.steps,
        "batch size": recipe.batch_size,
        "measured batches": recipe.measured,
        "loss": recipe.identity,
        "optimizers": {name: identity(name, make) for name, make in optimizers.items()},
        "networks": {str(size): network_identity(module, start) for size, module in modules.items()},
    }
