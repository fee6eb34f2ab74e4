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
from modula_rs.data import Dataset
from modula_rs.module import Module
from modula_rs.transfer.optimizers import Optimizer

#: Compiled code runs for about so many seconds before it looks whether it should stop.
_PATIENCE = 0.5
#: The share of the device's memory that the runs of one size may fill.
_MEMORY_SHARE = 0.2


class Lane(NamedTuple):
    """One run: an optimizer, its learning rate, and a seed for weights and data order."""

    optimizer: str
    rate: float
    seed: int


class Outcome(NamedTuple):
    """Losses at the end of a run; infinite where it diverged."""

    train_loss: float
    test_loss: float


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over everything but classes (the last axis of the outputs) of the negative log-likelihood of integer targets, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs.astype(jnp.float32), targets).mean()


@dataclass(frozen=True)
class Recipe:
    """How every run is trained: ``w -= rate * (1 - step/steps) * update`` on batches drawn with replacement.

    Attributes:
        steps: number of updates.
        batch_size: examples (windows of text) in a batch.
        loss: from outputs and targets to a scalar.
        tail: number of last batches over which the training loss is averaged, and of held-out batches that give the test loss;
            a tenth of the steps unless told otherwise.
    """

    steps: int = 100
    batch_size: int = 64
    loss: Callable[[Any, Any], Any] = cross_entropy
    tail: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "tail"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")

    @property
    def measured(self) -> int:
        """The tail, as a number."""
        return min(self.steps, self.tail or max(1, self.steps // 10))

    def schedule(self) -> NDArray[np.float32]:
        """What the rate is multiplied by in each step: linear decay, then 0 while held-out batches are measured."""
        decay = 1.0 - np.arange(self.steps) / self.steps
        return np.concatenate([decay, np.zeros(self.measured)]).astype(np.float32)

    def order(self, dataset: Dataset, seed: int) -> NDArray[np.int32]:
        """Indices of every batch: those of the training steps, then held-out ones (the same for every seed)."""
        train = data.order(dataset.train, seed, range(self.steps), self.batch_size)
        return np.concatenate([train, data.order(dataset.test, 0, range(self.measured), self.batch_size)])


def train(
    module: Module,
    dataset: Dataset,
    optimizers: Mapping[str, Optimizer],
    lanes: Sequence[Lane],
    recipe: Recipe,
    device: Any,
    tick: Callable[[float], None] = lambda fraction: None,
    finished: Callable[[dict[Lane, Outcome]], None] = lambda outcomes: None,
    share: float = 1.0,
) -> None:
    """Trains all lanes, as many at a time as fit in memory, and hands over the outcomes of each batch of lanes.

    ``tick`` hears the fraction done every half second or so, and may raise to stop the training. ``share`` is the part of the
    device's memory allowance that is ours.
    """
    program = _Program(module, dataset, optimizers, recipe, device)
    for_each = {name: [lane for lane in lanes if lane.optimizer == name] for name in optimizers}
    for_each = {name: own for name, own in for_each.items() if own}
    allowance = share * _memory(device) / program.bytes_per_lane(list(for_each))
    batches = max(1, math.ceil(len(lanes) / max(1.0, allowance)))
    widths = {name: math.ceil(len(own) / batches) for name, own in for_each.items()}
    for at in range(batches):
        chosen: list[Lane] = []
        for name, own in for_each.items():
            part = own[at * widths[name] : (at + 1) * widths[name]] or own[-1:]
            # Every batch has the same shape, so that one compiled program serves all.
            chosen += part + part[-1:] * (widths[name] - len(part))
        finished(program.run(chosen, lambda fraction, at=at: tick((at + fraction) / batches)))  # type: ignore[misc]


class _Program:
    """The compiled training of one module."""

    def __init__(
        self, module: Module, dataset: Dataset, optimizers: Mapping[str, Optimizer], recipe: Recipe, device: Any
    ) -> None:
        self.module, self.dataset, self.recipe, self.device = module, dataset, recipe, device
        self.transforms = {name: make(module) for name, make in optimizers.items()}
        self.arrays = jax.device_put(dataset.arrays, device)
        self.schedule = jax.device_put(recipe.schedule(), device)
        self._program: tuple[Any, Any] | None = None

    def run(self, lanes: list[Lane], tick: Callable[[float], None]) -> dict[Lane, Outcome]:
        """Trains these lanes together; they come sorted by optimizer."""
        seeds = sorted({lane.seed for lane in lanes})
        fresh = {seed: self.module.initialize(seed) for seed in seeds}
        orders = {seed: self.recipe.order(self.dataset, seed) for seed in seeds}
        counts = {name: sum(lane.optimizer == name for lane in lanes) for name in dict.fromkeys(lane.optimizer for lane in lanes)}
        put = lambda value: jax.device_put(value, self.device)  # noqa: E731
        weights = [put(np.stack(arrays)) for arrays in zip(*(fresh[lane.seed] for lane in lanes), strict=True)]
        order = put(np.stack([orders[lane.seed] for lane in lanes]))
        rates = put(np.array([lane.rate for lane in lanes], np.float32))
        spans = _spans(counts)
        states = jax.jit(lambda w: [jax.vmap(self.transforms[name].init)([a[i:j] for a in w]) for name, i, j in spans])(weights)
        total, at, span = len(self.schedule), 0, 1
        carry = (weights, states, put(np.zeros((len(lanes), total), np.float32)))
        advance = self._compiled(tuple(counts.items()), carry, order, rates)
        while at < total:
            started = time.perf_counter()
            stop = min(at + span, total)
            carry = advance(carry, self.arrays, order, rates, np.int32(at), np.int32(stop))
            jax.block_until_ready(carry[2])
            span = max(1, int(_PATIENCE * (stop - at) / (time.perf_counter() - started)))
            at = stop
            tick(at / total)
        return dict(zip(lanes, self._outcomes(np.asarray(carry[2], np.float64)), strict=True))

    def _outcomes(self, curves: NDArray[np.float64]) -> list[Outcome]:
        diverged = ~np.isfinite(curves).all(axis=1)
        steps, measured = self.recipe.steps, self.recipe.measured
        train = np.where(diverged, np.inf, curves[:, steps - measured : steps].mean(axis=1))
        test = np.where(diverged, np.inf, curves[:, steps:].mean(axis=1))
        return [Outcome(float(a), float(b)) for a, b in zip(train, test, strict=True)]

    def _compiled(self, counts: tuple[tuple[str, int], ...], carry: Any, order: Any, rates: Any) -> Any:
        """The training loop for so many lanes of each optimizer: compiled once, for every batch of lanes has the same shape."""
        if self._program is None or self._program[0] != counts:
            loop = jax.jit(functools.partial(self._advance, counts), donate_argnums=0)
            lowered = loop.lower(carry, self.arrays, order, rates, np.int32(0), np.int32(0))
            self._program = counts, lowered.compile()
        return self._program[1]

    def _loss(self, weights: Any, arrays: Any, index: Any) -> Any:
        inputs, targets = self.dataset.batch(arrays, index)
        return self.recipe.loss(self.module.forward(inputs, weights), targets)

    def _advance(self, counts: tuple[tuple[str, int], ...], carry: Any, arrays: Any, order: Any, rates: Any, start: Any, stop: Any) -> Any:
        def body(step: Any, carry: Any) -> Any:
            weights, states, curves = carry
            losses, gradients = jax.vmap(jax.value_and_grad(self._loss), (0, None, 0))(weights, arrays, order[:, step])
            parts, following = [], []
            for (name, begin, end), state in zip(_spans(dict(counts)), states, strict=True):
                update = jax.vmap(self.transforms[name].update)
                own, state = update([g[begin:end] for g in gradients], state, [w[begin:end] for w in weights])
                parts.append(own)
                following.append(state)
            moves = rates * self.schedule[step]
            weights = [
                w - (moves.reshape(-1, *[1] * (w.ndim - 1)) * jnp.concatenate(updates)).astype(w.dtype)
                for w, *updates in zip(weights, *parts, strict=True)
            ]
            return weights, following, curves.at[:, step].set(losses)

        return jax.lax.fori_loop(start, stop, body, carry)

    def bytes_per_lane(self, optimizers: list[str]) -> float:
        """Memory that one lane takes: weights, gradients, updates, the largest optimizer state, and what backpropagation keeps."""
        leaves = [jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in self.module.leaves]
        index = jax.ShapeDtypeStruct((self.recipe.batch_size,), jnp.int32)
        kept = jax.eval_shape(lambda w, a, i: jax.vjp(lambda w: self._loss(w, a, i), w)[1], leaves, self.arrays, index)
        states = [jax.eval_shape(self.transforms[name].init, leaves) for name in optimizers]
        return 3 * _size(leaves) + max(map(_size, states), default=0) + _size(kept)


def _spans(counts: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Where the lanes of each optimizer begin and end."""
    ends = np.cumsum(list(counts.values())).tolist()
    return [(name, end - count, end) for (name, count), end in zip(counts.items(), ends, strict=True)]


def _size(tree: Any) -> int:
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _memory(device: Any) -> float:
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    total = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(_MEMORY_SHARE * total)
