"""Coordinate check and alignment: how far one step moves every output at every size, and what share of its bound each movement reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modula_rs import data
from modula_rs.data import Dataset
from modula_rs.forward.program import Apply, Repeat, Walk
from modula_rs.network.module import Module
from modula_rs.terminal import aligned
from modula_rs.tracing.observe import rms
from modula_rs.transfer.networks import OWN, joined, network, starting_weights
from modula_rs.transfer.optimizers import OPTIMIZERS
from modula_rs.transfer.pictures import MARKERS, PALETTE, label, new_figure, plain, save, tidy
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
    build: Callable[[Size], Any],
    dataset: Dataset,
    sizes: Iterable[Size],
    *,
    optimizers: Sequence[str] = ("normed-adam", "adam"),
    rates: Sequence[float] = (0.25, 2.0**-7),
    steps: int = 5,
    batch_size: int = 32,
    loss: Callable[[Any, Any], Any] = cross_entropy,
    seed: int = 0,
    start: str = OWN,
) -> list[Movement]:
    """Trains a few steps at every size, at a constant rate for each optimizer, and measures the change of every output in each step.

    In a network that scales well the changes do not depend on the size. ``build`` and ``start`` are those of
    :func:`modula_rs.transfer.sweep`. In a traced network the outputs of an array are the results of the lines of the program at which it
    meets data, for instance of a product of matrices, before a bias is added. Sources: Yang et al., "Tensor Programs V" (2022), for the
    check; Large et al. (2024), limitations, for the alignment.

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
        module = network(build(size), dataset, batch_size, size.mass)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            found += _check(module, size, dataset, (optimizer, rate, steps), batch_size, loss, (start, seed))
    return found


def _check(
    module: Any, size: Size, dataset: Dataset, run: tuple[str, float, int], batch_size: int, loss: Any, begin: tuple[str, int]
) -> list[Movement]:
    import jax
    import jax.numpy as jnp

    (optimizer, rate, steps), (start, seed) = run, begin
    transform = OPTIMIZERS[optimizer](module)
    on_device = jax.device_put(dataset.arrays)

    @jax.jit
    def step(w: Any, state: Any, index: Any) -> Any:
        x, y = dataset.batch(on_device, index)
        update, state = transform.update(jax.grad(lambda w: loss(module.forward(x, joined(w, frozen)), y))(w), state, w)
        return jax.tree.map(lambda u: -rate * u, update), state

    probe, _ = dataset.batch(dataset.arrays, data.order(dataset.test, seed, [0], batch_size)[0])
    w, frozen = module.split(starting_weights(module, start, seed))
    state = jax.jit(transform.init)(jax.tree.map(jnp.asarray, w))
    watched: Any = _Watched(module, probe, w, frozen) if isinstance(module, Module) else _Observed(module, probe, w, frozen)
    before = watched.watch(w)
    found = []
    for at, index in enumerate(data.order(dataset.train, seed, range(steps), batch_size)):
        update, state = step(w, state, index)
        moved = jax.tree.map(lambda a, u: a + np.asarray(u), w, update)
        after = watched.watch(moved)
        for path, calls in before.items():
            change = float(np.mean([rms(b.output - a.output) for a, b in zip(calls, after[path], strict=True)]))
            came, went = (float(np.mean(values)) for values in zip(*map(_sizes, calls), strict=True))
            if path == NETWORK:
                own = [_over(change, module.norm(jax.tree.map(lambda a, b: b - a, w, moved)))]
            else:
                own = watched.alignments(path, calls, after[path], w, moved)
            found.append(Movement(optimizer, size, at, path, change, float(np.mean(own)), came, went))
        w, before = moved, after
    return found


class _Watched:
    """The outputs of the atoms and powers of a module, for one input."""

    def __init__(self, module: Module, x: Any, w: Any, frozen: Any) -> None:
        self.module, self.x = module, x

    def watch(self, w: Any) -> dict[str, list[Call]]:
        """The runs of every part."""
        return watch(self.module, self.x, w)

    def alignments(self, path: str, before: list[Call], after: list[Call], w: Any, moved: Any) -> list[float]:
        """The alignment of each run of a part."""
        if isinstance(before[0].part, Repeat):
            return [_power_alignment(self.module, call, call.part, w, moved) for call in before]
        return [_alignment(a, b) for a, b in zip(before, after, strict=True)]


class _Observed:
    """The outputs of the arrays of a traced network, for one input. An array that meets no data by itself is left out."""

    def __init__(self, net: Any, x: Any, w: Any, frozen: Any) -> None:
        self.net, self.x, self.frozen = net, x, frozen
        self.observer = net.observer(x, joined(w, frozen))
        self.numbers = {leaf.path: number for number, leaf in enumerate(net.leaves)}

    def watch(self, w: Any) -> dict[str, list[Any]]:
        """The meetings of every array with data."""
        import jax

        results, met = self.observer.run(jax.tree.leaves(joined(w, self.frozen)))
        return {path: found for path, found in met.items() if found} | {NETWORK: [Call(self.x, np.asarray(results[0]))]}

    def alignments(self, path: str, before: list[Any], after: list[Any], w: Any, moved: Any) -> list[float]:
        """The alignment of each meeting. The update counts with the largest norm among its copies."""
        number = self.numbers[path]
        old, new = (self.net.opened(joined(given, self.frozen))[0][number] for given in (w, moved))
        leaf = self.net.leaves[number]
        size = leaf.target * float(self.net.part([number]).norm([new - old]))
        # What a vector or a row adds to data does not depend on the size of the data.
        sizes = [size * a.input_size if leaf.kind in ("Linear", "Conv2D", "Scale") else size for a in before]
        return [_over(a.own_change(b), bound) for a, b, bound in zip(before, after, sizes, strict=True)]


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
    size = 1.0 if before.input.dtype.kind in "iu" else rms(before.input)
    moved = rms(before.part.apply(before.input, after.weight) - before.output)
    return _over(moved, size * before.part.norm([after.weight - before.weight]))


def _power_alignment(module: Module, before: Call, power: Repeat, w: Sequence[Any], moved: Sequence[Any]) -> float:
    """The change that the power's own leaves make in its output, divided by the norm of their update in the power's own norm."""
    own = [b if index in power.stacked else a for index, (a, b) in enumerate(zip(w, moved, strict=True))]
    change = rms(Walk(module.program.paths).run([power], before.input, dict(enumerate(own))) - before.output)
    return _over(change, power.target * module.norm([b - a for a, b in zip(w, own, strict=True)]))


def _over(change: float, bound: Any) -> float:
    return change / float(bound) if float(bound) > 0 else math.nan


def _sizes(call: Any) -> tuple[float, float]:
    """The RMS of what a part gets and of what it gives, in one run of it or at one meeting of an array with data."""
    return _rms_of_numbers(call.input) if isinstance(call, Call) else call.input_size, rms(call.output)


def _rms_of_numbers(x: Any) -> float:
    """The RMS of an array, or of the members of a tuple together; NaN for tokens, which have none."""
    if isinstance(x, tuple):
        return math.sqrt(sum(_rms_of_numbers(member) ** 2 for member in x) / len(x))
    return math.nan if x.dtype.kind in "iu" else rms(x)


def coordinate_report(movements: Sequence[Movement]) -> str:
    """The check in words: the RMS of the stream before the head, of all inputs and outputs at the start, and how far each output moves.

    The head is the last atom. Its input has RMS 1 in a network that starts as the norm assumes.

    >>> from modula_rs import data, transfer
    >>> digits = data.digits()
    >>> found = transfer.coordinate_check(
    ...     transfer.architecture("resmlp", digits, final_norm=False), digits, [transfer.Size(32, 2), transfer.Size(32, 16)],
    ...     optimizers=["normed-sgd"], rates=[0.1], steps=1)
    >>> for line in transfer.coordinate_report(found).splitlines()[:2]: print(line)
    RMS at the start                  width 32, 2 blocks  width 32, 16 blocks
      stream before the head, output                0.39                 0.28
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
