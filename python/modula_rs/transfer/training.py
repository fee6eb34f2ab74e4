"""One size, trained with every optimizer, learning rate and seed at once, in a single compiled program."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from modula_rs import data
from modula_rs.checks import shown, size
from modula_rs.data import Dataset
from modula_rs.describe import digest
from modula_rs.norm.methods import Normed
from modula_rs.transfer.networks import OWN, joined, starting_weights
from modula_rs.transfer.optimizers import Optimizer

#: Seconds that compiled code runs before it checks whether it should stop. Each call's memory is new to the process: with calls of half a
#: second, the first writes to it took a quarter of the processor time of a wide network.
_PATIENCE = 2.0
#: The share of the device's memory that the runs of one size may fill.
_MEMORY_SHARE = 0.2
#: The bytes that they may fill at most on a CPU: 54 lanes of 28 MB together took 1.5 times as long per lane as six at a time.
_CPU_MEMORY = 2.0**28


class Lane(NamedTuple):
    """One run: an optimizer, its learning rate, and a seed for weights and data order."""

    optimizer: str
    rate: float
    seed: int


class State(NamedTuple):
    """Weights, optimizer states (one for each optimizer), and whether each lane has diverged. Lanes are the first axis of every array.

    ``weights`` and ``frozen`` are pytrees of one structure; each array is in one of them, and the other has None in its place.
    """

    weights: Any
    frozen: Any
    optimizers: list[Any]
    diverged: Any


#: The number of lanes of each optimizer, in order.
Counts = tuple[tuple[str, int], ...]


class Outcome(NamedTuple):
    """Losses at the end of a run; infinite where it diverged."""

    train_loss: float
    test_loss: float


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The negative log-likelihood of integer targets, in nats: the mean over all axes but the classes, which are the outputs' last axis."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs.astype(jnp.float32), targets))


@dataclass(frozen=True)
class Recipe:
    """How every run is trained: ``w -= rate * (1 - step/steps) * update`` on batches drawn with replacement.

    Attributes:
        steps: number of updates.
        batch_size: examples (windows of text) in a batch.
        loss: a function from outputs and targets to a scalar.
        measured: number of batches on which the final weights are measured, spread evenly over the training data, and the same number (or
            as many as there are) over the held-out data. They are the same for every run, so that runs differ by their weights alone.
    """

    steps: int = 100
    batch_size: int = 64
    loss: Callable[[Any, Any], Any] = cross_entropy
    measured: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "measured"):
            try:
                whole = size(name, getattr(self, name), 1)
            except (TypeError, ValueError):
                whole = 2**31
            if whole >= 2**31:  # batches are counted in 32-bit integers
                raise ValueError(f"{name} must be a whole number of at least 1, got {shown(getattr(self, name))}")
            object.__setattr__(self, name, whole)
        if not callable(self.loss):
            raise TypeError(f"loss must be a function of outputs and targets, got {shown(self.loss)}")

    @property
    def identity(self) -> str:
        """A text that identifies the loss: the name of the library's own, else a hash of its code and of the values that the code uses."""
        if self.loss is cross_entropy:
            return "cross_entropy"
        return f"{getattr(self.loss, '__qualname__', type(self.loss).__name__)} {digest(self.loss, code=True)}"

    def schedule(self) -> NDArray[np.float32]:
        """The factor of the rate in each step: linear decay."""
        return (1.0 - np.arange(self.steps) / self.steps).astype(np.float32)

    def samples(self, *parts: range) -> list[NDArray[np.int32]]:
        """Batches of indices, evenly spread, on which each part of the data is measured: arrays (batches, size of a batch).

        If the numbers allow it, a batch here is as large as two or four batches of training, for which the forward pass alone has the
        memory, and which are faster.
        """
        if not all(parts):
            raise ValueError("there must be examples to train on and others that are held out")
        counts = [max(1, min(self.measured, len(indices) // self.batch_size)) for indices in parts]
        size = self.batch_size * math.gcd(4, *counts)
        spread = [np.linspace(own.start, own.stop - 1, n * self.batch_size) for own, n in zip(parts, counts, strict=True)]
        return [indices.astype(np.int32).reshape(-1, size) for indices in spread]


def train(
    module: Normed[Any],
    dataset: Dataset,
    optimizers: Mapping[str, Optimizer],
    lanes: Sequence[Lane],
    recipe: Recipe,
    device: Any,
    tick: Callable[[float], None] = lambda fraction: None,
    finished: Callable[[dict[Lane, Outcome]], None] = lambda outcomes: None,
    share: float = 1.0,
    start: str = OWN,
) -> None:
    """Trains all lanes, as many at a time as fit in memory, and passes the outcomes of each batch of lanes to ``finished``.

    ``tick`` is called with the fraction done about every two seconds, and may raise to stop the training. ``share`` is the share of the
    device's memory allowance that this training may use. ``start``: where the weights of a traced network come from.
    """
    program = Program(module, dataset, optimizers, recipe, device, start)
    own = {name: [lane for lane in lanes if lane.optimizer == name] for name in dict.fromkeys(lane.optimizer for lane in lanes)}
    room = share * _memory(device) / program.bytes_per_lane(list(own), lanes[0].seed)
    batches = _batches([len(all_) for all_ in own.values()], max(1, int(room)))
    widths = {name: math.ceil(len(all_) / batches) for name, all_ in own.items()}
    done: dict[Lane, Outcome] = {}
    for at in range(batches):
        # Every batch has the same shape, so that one compiled program serves all; lanes are repeated to fill the last batch.
        chosen = [all_[place % len(all_)] for name, all_ in own.items() for place in range(at * widths[name], (at + 1) * widths[name])]
        outcomes = program.begin(chosen).run(lambda fraction, at=at: tick((at + fraction) / batches))  # type: ignore[misc]
        finished({lane: outcome for lane, outcome in outcomes.items() if lane not in done})
        done |= outcomes


def _batches(lanes: Sequence[int], room: int) -> int:
    """The number of batches for these numbers of lanes, ``room`` lanes at a time: the choice with the fewest repeated lanes.

    >>> _batches([15, 15, 24], 54), _batches([15, 15, 24], 9)
    (1, 8)
    """
    least = min(math.ceil(sum(lanes) / room), max(lanes))
    return min(range(least, min(2 * least, max(lanes)) + 1), key=lambda number: number * sum(math.ceil(own / number) for own in lanes))


class Program:
    """The compiled training of one module or network: it prepares batches of lanes, trains them and measures them."""

    def __init__(
        self, module: Any, dataset: Dataset, optimizers: Mapping[str, Optimizer], recipe: Recipe, device: Any, start: str = OWN
    ) -> None:
        self.module, self.dataset, self.recipe, self.device = module, dataset, recipe, device
        self.transforms = {name: make(module) for name, make in optimizers.items()}
        self.arrays = jax.device_put(dataset.arrays, device)
        self.schedule = jax.device_put(recipe.schedule(), device)
        self.samples = recipe.samples(dataset.train, dataset.test)
        self._fresh = functools.cache(functools.partial(starting_weights, module, start))
        self._init = jax.jit(self._initial_states, static_argnums=0)
        # On a CPU a convolution with six sets of taps takes twice as long as six convolutions (benches/README.md).
        self._in_turn = device.platform == "cpu" and any(leaf.kind == "Conv2D" for leaf in module.leaves)
        self._programs: tuple[Any, Any, Any] | None = None

    def begin(self, lanes: Sequence[Lane]) -> Lanes:
        """The lanes before their first step; they are sorted by optimizer."""
        put = functools.partial(jax.device_put, device=self.device)
        seeds = sorted({lane.seed for lane in lanes})
        orders = {seed: data.order(self.dataset.train, seed, range(self.recipe.steps), self.recipe.batch_size) for seed in seeds}
        counts = {name: sum(lane.optimizer == name for lane in lanes) for name in dict.fromkeys(lane.optimizer for lane in lanes)}
        stacked = jax.tree.map(lambda *arrays: put(np.stack(arrays)), *(self._fresh(lane.seed) for lane in lanes))
        weights, frozen = self.module.split(stacked)
        order = put(np.stack([orders[lane.seed] for lane in lanes]))
        rates = put(np.array([lane.rate for lane in lanes], np.float32))
        state = State(weights, frozen, self._init(tuple(counts.items()), weights), put(np.zeros(len(lanes), bool)))
        return Lanes(self, list(lanes), tuple(counts.items()), order, rates, state)

    def compiled(self, lanes: Lanes) -> tuple[Any, Any]:
        """The loop over steps and the measurement, compiled once for these numbers of lanes, because all batches have one shape."""
        if self._programs is None or self._programs[0] != lanes.counts:
            loop = jax.jit(functools.partial(self._advance, lanes.counts), donate_argnums=0)
            advance = loop.lower(lanes.state, self.arrays, lanes.order, lanes.rates, np.int32(0), np.int32(0)).compile()
            self._programs = lanes.counts, advance, jax.jit(self._measure)
        return self._programs[1:]

    def _initial_states(self, counts: Counts, weights: Any) -> list[Any]:
        return [jax.vmap(self.transforms[name].init)(_lanes_of(weights, begin, end)) for name, begin, end in _spans(dict(counts))]

    def _measure(self, weights: Any, frozen: Any, arrays: Any, batches: Any) -> Any:
        """The loss of every lane on each of these batches: (batches, lanes)."""
        return jax.lax.map(lambda index: self._each_lane(lambda w, f: self._loss(w, f, arrays, index), weights, frozen), batches)

    def _each_lane(self, function: Callable[..., Any], *operands: Any) -> Any:
        """The function applied to the operands of every lane: to all lanes together, or to one after the other where that is faster."""
        return jax.lax.map(lambda each: function(*each), operands) if self._in_turn else jax.vmap(function)(*operands)

    def _loss(self, weights: Any, frozen: Any, arrays: Any, index: Any) -> Any:
        inputs, targets = self.dataset.batch(arrays, index)
        return self.recipe.loss(self.module.forward(inputs, joined(weights, frozen)), targets)

    def _advance(self, counts: Counts, state: State, arrays: Any, order: Any, rates: Any, start: Any, stop: Any) -> Any:
        """Steps ``start .. stop - 1`` of every lane."""

        def body(step: Any, state: State) -> State:
            weights, frozen, states, diverged = state
            index = jax.lax.dynamic_index_in_dim(order, step, axis=1, keepdims=False)
            gradient = jax.value_and_grad(self._loss)
            losses, gradients = self._each_lane(lambda w, f, index: gradient(w, f, arrays, index), weights, frozen, index)
            parts, following = [], []
            for (name, begin, end), before in zip(_spans(dict(counts)), states, strict=True):
                update = jax.vmap(self.transforms[name].update)
                own, after = update(_lanes_of(gradients, begin, end), before, _lanes_of(weights, begin, end))
                parts.append(own)
                following.append(after)
            moves = rates * self.schedule[step]

            def moved(w: Any, *updates: Any) -> Any:
                return w - (moves.reshape(-1, *[1] * (w.ndim - 1)) * jnp.concatenate(updates)).astype(w.dtype)

            return State(jax.tree.map(moved, weights, *parts), frozen, following, diverged | ~jnp.isfinite(losses))

        return jax.lax.fori_loop(start, stop, body, state)

    def bytes_per_lane(self, optimizers: list[str], seed: int = 0) -> float:
        """The memory of one lane: weights, gradients, updates, the largest optimizer state, and the activations for backpropagation."""
        shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(np.shape(w), w.dtype), self._fresh(seed))
        weights, frozen = self.module.split(shapes)
        index = jax.ShapeDtypeStruct((self.recipe.batch_size,), jnp.int32)
        kept = jax.eval_shape(lambda w, f, a, i: jax.vjp(lambda w: self._loss(w, f, a, i), w)[1], weights, frozen, self.arrays, index)
        states = [jax.eval_shape(self.transforms[name].init, weights) for name in optimizers]
        return 3 * _size(shapes) + max(map(_size, states), default=0) + _size(kept)


class Lanes:
    """Runs that are trained together, and the number of steps taken."""

    def __init__(self, program: Program, lanes: list[Lane], counts: Counts, order: Any, rates: Any, state: State) -> None:
        self.program, self.lanes, self.counts, self.order, self.rates = program, lanes, counts, order, rates
        self.state, self.step = state, 0

    def run(self, tick: Callable[[float], None]) -> dict[Lane, Outcome]:
        """Trains to the end; ``tick`` is called with the fraction done at short intervals."""
        steps, span = self.program.recipe.steps, 1
        self.program.compiled(self)
        while self.step < steps:
            started, before = time.perf_counter(), self.step
            self.advance(min(self.step + span, steps))
            span = max(1, int(_PATIENCE * (self.step - before) / (time.perf_counter() - started)))
            tick(self.step / steps)
        return self.outcomes()

    def advance(self, stop: int) -> None:
        """Trains up to step ``stop``, and waits until that is done."""
        advance, _ = self.program.compiled(self)
        self.state = advance(self.state, self.program.arrays, self.order, self.rates, np.int32(self.step), np.int32(stop))
        self.state.diverged.block_until_ready()
        self.step = stop

    def outcomes(self) -> dict[Lane, Outcome]:
        """The losses of the present weights."""
        _, measure = self.program.compiled(self)
        samples = self.program.samples
        losses = measure(
            self.state.weights, self.state.frozen, self.program.arrays, jax.device_put(np.concatenate(samples), self.program.device)
        )
        train, test = (part.mean(axis=0) for part in np.split(np.asarray(losses, np.float64), [len(samples[0])]))
        return {
            lane: Outcome(*(float(loss) if not lost and math.isfinite(loss) else math.inf for loss in own))
            for lane, lost, *own in zip(self.lanes, np.asarray(self.state.diverged), train, test, strict=True)
        }


def _spans(counts: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Where the lanes of each optimizer begin and end."""
    ends = np.cumsum(list(counts.values())).tolist()
    return [(name, end - count, end) for (name, count), end in zip(counts.items(), ends, strict=True)]


def _lanes_of(tree: Any, begin: int, end: int) -> Any:
    return jax.tree.map(lambda array: array[begin:end], tree)


def _size(tree: Any) -> int:
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _memory(device: Any) -> float:
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    total = _MEMORY_SHARE * (limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float(min(total, _CPU_MEMORY) if device.platform == "cpu" else total)
