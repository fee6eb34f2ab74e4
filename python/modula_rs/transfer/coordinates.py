"""Coordinate check and alignment: how far one step moves every output at every size, and what share of its bound each movement reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modula_rs import data
from modula_rs.data import Dataset
from modula_rs.forward.program import Apply, Repeat, Walk
from modula_rs.network.module import Module
from modula_rs.transfer.optimizers import OPTIMIZERS
from modula_rs.transfer.pictures import MARKERS, PALETTE, label, new_figure, plain, save, tidy
from modula_rs.transfer.report import aligned
from modula_rs.transfer.table import Size
from modula_rs.transfer.training import cross_entropy

#: The name that stands for the output of the whole network.
NETWORK = "network"


class Movement(NamedTuple):
    """The effect of one step on one output, on a fixed batch.

    ``change``: RMS of the change of the output of an atom (mean over the copies of a power), of a power, or of the whole network;
    everything before it changes too. ``alignment``: for an atom, the change that the update of its own weights makes on unchanged input,
    divided by ``norm(update) * RMS(input)``; for a power, the change that the update of its own weights makes, divided by the norm of the
    update; for the network, its change divided by the norm of the whole update. In a well-normed network no alignment exceeds 1 as long as
    inputs and weights have norm at most 1 and sensitivities are bounds. The sensitivity of RMSDivide, 1, is an estimate, which inputs of
    RMS below 1 can exceed.

    ``input`` and ``output``: the RMS of what the part gets and gives before the step (mean over the copies of a power; NaN for tokens). The
    norm assumes inputs of RMS 1: an atom whose input is smaller moves its output less than its share of the update allows for.
    """

    optimizer: str
    size: Size
    step: int
    path: str
    change: float
    alignment: float
    input: float = math.nan
    output: float = math.nan


def coordinate_check(
    build: Callable[[Size], Module],
    dataset: Dataset,
    sizes: Iterable[Size],
    *,
    optimizers: Sequence[str] = ("normed-adam", "adam"),
    rates: Sequence[float] = (0.25, 2.0**-7),
    steps: int = 5,
    batch_size: int = 32,
    loss: Callable[[Any, Any], Any] = cross_entropy,
    seed: int = 0,
) -> list[Movement]:
    """Trains a few steps at every size, at a constant rate for each optimizer, and measures the change of every output in each step.

    In a network that scales well the changes do not depend on the size. Sources: Yang et al., "Tensor Programs V" (2022), for the check;
    Large et al. (2024), limitations, for the alignment.

    >>> import modula_rs as mr
    >>> from modula_rs import transfer
    >>> digits = mr.data.digits()
    >>> found = transfer.coordinate_check(
    ...     transfer.architecture("resmlp", digits), digits, [transfer.Size(8, 2)], optimizers=["normed-sgd"], rates=[0.1], steps=1)
    >>> [(entry.path, entry.alignment <= 1.01) for entry in found if entry.path == "input"]
    [('input', True)]
    """
    unknown = [name for name in optimizers if name not in OPTIMIZERS]
    if unknown or len(rates) != len(optimizers):
        raise ValueError(
            f"one rate for each of the optimizers ({', '.join(OPTIMIZERS)}) is expected, got {list(optimizers)} and {list(rates)}"
        )
    found = []
    for size in sizes:
        for optimizer, rate in zip(optimizers, rates, strict=True):
            found += _check(build(size), size, dataset, optimizer, rate, steps, batch_size, loss, seed)
    return found


def _check(
    module: Module, size: Size, dataset: Dataset, optimizer: str, rate: float, steps: int, batch_size: int, loss: Any, seed: int
) -> list[Movement]:
    import jax
    import jax.numpy as jnp

    transform = OPTIMIZERS[optimizer](module)
    on_device = jax.device_put(dataset.arrays)

    @jax.jit
    def step(w: Any, state: Any, index: Any) -> Any:
        x, y = dataset.batch(on_device, index)
        update, state = transform.update(jax.grad(lambda w: loss(module.forward(x, w), y))(w), state, w)
        return jax.tree.map(lambda u: -rate * u, update), state

    probe, _ = dataset.batch(dataset.arrays, data.order(dataset.test, seed, [0], batch_size)[0])
    w: list[NDArray[Any]] = module.initialize(seed)
    state = jax.jit(transform.init)([jnp.asarray(a) for a in w])
    before = watch(module, probe, w)
    found = []
    for at, index in enumerate(data.order(dataset.train, seed, range(steps), batch_size)):
        update, state = step(w, state, index)
        moved = [a + np.asarray(u) for a, u in zip(w, update, strict=True)]
        after = watch(module, probe, moved)
        for path, calls in before.items():
            change = float(np.mean([_rms(b.output - a.output) for a, b in zip(calls, after[path], strict=True)]))
            came, went = (
                float(np.mean([_rms_of_numbers(value) for value in values])) for values in zip(*(c[:2] for c in calls), strict=True)
            )
            found.append(Movement(optimizer, size, at, path, change, math.nan, came, went))
            if path == NETWORK:
                own = [_over(change, module.norm([b - a for a, b in zip(w, moved, strict=True)]))]
            elif isinstance(calls[0].part, Repeat):
                own = [_power_alignment(module, call, call.part, w, moved) for call in calls]
            else:
                own = [_alignment(a, b) for a, b in zip(calls, after[path], strict=True)]
            found[-1] = found[-1]._replace(alignment=float(np.mean(own)))
        w, before = moved, after
    return found


class Call(NamedTuple):
    """One run of a part: its input and output, with the atom and its weight, or the power."""

    input: Any
    output: Any
    part: Any = None
    weight: Any = None


def watch(module: Module, x: Any, w: Sequence[Any]) -> dict[str, list[Call]]:
    """The runs of every atom, every power that is not inside another power, and the whole network, for NumPy input and weights.

    An atom inside powers has one run for each copy.
    """
    watcher = _Watcher(module.program.paths)
    output = watcher.run(module.program.steps, x, dict(enumerate(w)))
    return {**watcher.seen, NETWORK: [Call(x, output)]}


class _Watcher(Walk):
    """The walk that records the runs of every atom and every outermost power."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        self.seen: dict[str, list[Call]] = {}

    def apply(self, step: Apply, x: Any, weight: Any, copy: tuple[int, ...]) -> Any:
        """Runs one copy of an atom."""
        output = super().apply(step, x, weight, copy)
        self.seen.setdefault(self.paths[step.leaf], []).append(Call(x, output, step.atom, weight))
        return output

    def repeat(self, power: Repeat, x: Any, weights: Mapping[int, Any], copy: tuple[int, ...]) -> Any:
        """Runs a power."""
        name = _common([self.paths[leaf] for leaf in power.stacked]) if power.stacked and not copy else None
        if name:
            self.seen.setdefault(name, [])  # the power is listed before the atoms in it
        output = super().repeat(power, x, weights, copy)
        if name:
            self.seen[name].append(Call(x, output, power))
        return output


def _common(paths: list[str]) -> str:
    """The names in the paths, without the last, that all paths share."""
    parts = [path.split("/") for path in paths]
    shared = [names[0] for names in zip(*(part[:-1] for part in parts), strict=False) if len(set(names)) == 1]
    return "/".join(shared) or "power of " + parts[0][-1]


def _alignment(before: Call, after: Call) -> float:
    size = 1.0 if before.input.dtype.kind in "iu" else _rms(before.input)
    moved = _rms(before.part.apply(before.input, after.weight) - before.output)
    return _over(moved, size * before.part.norm([after.weight - before.weight]))


def _power_alignment(module: Module, before: Call, power: Repeat, w: Sequence[Any], moved: Sequence[Any]) -> float:
    """The change that the power's own leaves make in its output, divided by the norm of their update in the power's own norm."""
    own = [b if index in power.stacked else a for index, (a, b) in enumerate(zip(w, moved, strict=True))]
    change = _rms(Walk(module.program.paths).run([power], before.input, dict(enumerate(own))) - before.output)
    return _over(change, power.target * module.norm([b - a for a, b in zip(w, own, strict=True)]))


def _over(change: float, bound: Any) -> float:
    return change / float(bound) if float(bound) > 0 else math.nan


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _rms_of_numbers(x: Any) -> float:
    """The RMS of an array, or of the members of a tuple together; NaN for tokens, which have none."""
    if isinstance(x, tuple):
        return math.sqrt(sum(_rms_of_numbers(member) ** 2 for member in x) / len(x))
    return math.nan if x.dtype.kind in "iu" else _rms(x)


def coordinate_report(movements: Sequence[Movement]) -> str:
    """The check in words: the RMS of the stream before the head, of all inputs and outputs at the start, and how far each output moves.

    The head is the last atom. Its input has RMS 1 in a network that starts as the norm assumes.

    >>> from modula_rs import data, transfer
    >>> digits = data.digits()
    >>> found = transfer.coordinate_check(
    ...     transfer.architecture("resmlp", digits, final_norm=False), digits, [transfer.Size(32, 2), transfer.Size(32, 16)],
    ...     optimizers=["normed-sgd"], rates=[0.1], steps=1)
    >>> for line in transfer.coordinate_report(found).splitlines()[:2]: print(line)
    RMS at the start                            width 32, 2 blocks  width 32, 16 blocks
      stream before the head, output                           0.5                 0.39
    """
    sizes = list(dict.fromkeys(entry.size for entry in movements))
    paths = list(dict.fromkeys(entry.path for entry in movements))
    start = {(entry.size, entry.path): entry for entry in reversed(movements) if entry.step == min(e.step for e in movements)}
    atoms = [path for path in paths if path != NETWORK]
    rows = [["RMS at the start", *map(str, sizes)]]
    rows += [[f"  stream before the head, {path}", *(_short(start[size, path].input) for size in sizes)] for path in atoms[-1:]]
    rows += [
        [f"  {path}, input -> output", *(f"{_short(start[size, path].input)} -> {_short(start[size, path].output)}" for size in sizes)]
        for path in paths
    ]
    for optimizer in dict.fromkeys(entry.optimizer for entry in movements):
        rows.append([f"Change in a step, {label(optimizer)}", *[""] * len(sizes)])
        for path in paths:
            own = [
                [entry.change for entry in movements if (entry.optimizer, entry.path, entry.size) == (optimizer, path, size)]
                for size in sizes
            ]
            rows.append([f"  {path}", *(_short(float(np.mean(changes))) for changes in own)])
    return "\n".join(aligned(rows))


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"


def plot_coordinates(
    movements: Sequence[Movement], path: str | Path, *, quantity: str = "change", axis: str = "width", title: str | None = None
) -> None:
    """Draws the change (or the ``alignment``) of every output against size, a column for each optimizer, averaged over steps.

    In a network that scales well the lines are level. The format follows the path: ``.png``, ``.svg``, ``.pdf``.
    """
    if quantity not in ("change", "alignment"):
        raise ValueError(f"quantity must be 'change' or 'alignment', got {quantity!r}")
    optimizers = list(dict.fromkeys(entry.optimizer for entry in movements))
    figure = new_figure(3.2 * len(optimizers) + 2.0, 3.4)
    panels = figure.subplots(1, len(optimizers), squeeze=False, sharey=True)[0]
    paths = list(dict.fromkeys(entry.path for entry in movements if math.isfinite(getattr(entry, quantity))))
    for panel, optimizer in zip(panels, optimizers, strict=True):
        for place, name in enumerate(paths):
            values: dict[float, list[float]] = {}
            for entry in movements:
                if entry.optimizer == optimizer and entry.path == name:
                    values.setdefault(getattr(entry.size, axis), []).append(getattr(entry, quantity))
            style = {
                "color": PALETTE[place % len(PALETTE)],
                "marker": MARKERS[place % len(MARKERS)],
                "ls": ("-", "--", ":")[place // len(PALETTE) % 3],
            }
            panel.plot(sorted(values), [float(np.mean(values[size])) for size in sorted(values)], label=plain(name), lw=1.4, ms=4, **style)
        tidy(panel)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
        panel.set_xlabel(axis if axis != "depth" else "blocks")
        panel.set_title(plain(label(optimizer)), fontsize=10)
    panels[0].set_ylabel("RMS change of output per step" if quantity == "change" else "change over bound")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=7)
    save(figure, path, title)
