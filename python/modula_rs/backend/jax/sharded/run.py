"""The three functions of a backend on what one device holds of blocks that lie on a mesh; they run inside ``shard_map``.

Batches have a :class:`~modula_rs.backend.jax.sharded.lay.Share`. ``plan.py`` decides which leaves go together and how, from shapes and mesh
axes alone. Whole matrices are computed by :mod:`modula_rs.backend.jax`: in Rust, by CUDA kernels or in `jax.numpy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend import Batch
from modula_rs.backend import jax as provider
from modula_rs.backend.jax.blocks import arithmetic, unit_range
from modula_rs.backend.jax.polar import orthogonalise
from modula_rs.backend.jax.sharded import entries, exchange, plan
from modula_rs.backend.jax.sharded.lay import Axes, Share
from modula_rs.backend.jax.sharded.power import normalised, spectral_norms

#: Bytes of a result for which it is cheaper to wait for one more all-gather than to copy it out of a common one.
LARGE = 1 << 18

_gram: ContextVar[bool | None] = ContextVar("_gram", default=None)


@contextmanager
def gram_scheme(allowed: bool) -> Iterator[None]:
    """Allows the Gram scheme, or forbids it, for everything traced inside a ``with`` block, in this thread.

    Without it the scheme is taken on GPUs and TPUs alone. On the CPU, a batch of LAPACK's solves waits for threads of a pool whose threads
    wait in collectives for other devices, and a program with as many virtual devices as threads can hang (docs/many-devices.md).
    """
    token = _gram.set(allowed)
    try:
        yield
    finally:
        _gram.reset(token)


def gram_allowed() -> bool:
    """Whether the Gram scheme may be taken."""
    allowed = _gram.get()
    return jax.default_backend() != "cpu" if allowed is None else allowed


def apply(
    op: str,
    batches: Sequence[Batch],
    arrays: Sequence[Array],
    scales: Sequence[Any],
    *,
    vectors: Sequence[Array | None] | None = None,
    accuracy: str = "standard",
) -> tuple[list[Array], list[Array | None]]:
    """See :class:`modula_rs.backend.Backend`. Scales and estimates are those of the blocks that this device holds."""
    made: list[Any] = list(arrays)
    found: list[Any] = [None] * len(arrays) if vectors is None else list(vectors)
    factors = [jnp.asarray(scale, arithmetic(x).dtype) for scale, x in zip(scales, arrays, strict=True)]
    chain, alone = Chain(), []
    exchanges = planned(op, batches, arrays, accuracy, any(v is not None for v in found))
    powers = []
    for each in exchanges:
        if [part.scheme for part in each.parts] == ["local"]:
            alone += [leaf for leaf, _ in each.stack.leaves]
        elif each.parts[0].scheme == "power":
            powers.append([leaf for leaf, _ in each.stack.leaves])
        else:
            for leaf, result in _by_exchange(each, partial(_work, op, accuracy), accuracy, batches, arrays, factors, chain):
                made[leaf] = result
    for leaf, result, estimate in normalised(powers, batches, arrays, factors, found):
        made[leaf], found[leaf] = result, estimate
    for group in _alike(batches, arrays):
        if batches[group[0]].share.cols:
            joined = [jnp.concatenate([column[leaf] for leaf in group]) for column in (arrays, factors)]
            result = chain.after(entries.apply(op, batches[group[0]], chain.before(joined[0]), joined[1]))
            for leaf, part in zip(group, _parted(result, [len(arrays[leaf]) for leaf in group]), strict=True):
                made[leaf] = part
        else:
            alone += group
    if alone:
        given = None if vectors is None else [found[leaf] for leaf in alone]
        results, estimates = provider.apply(
            op, [_bare(batches[leaf]) for leaf in alone], [arrays[leaf] for leaf in alone], [factors[leaf] for leaf in alone],
            vectors=given, accuracy=accuracy,
        )  # fmt: skip
        for leaf, result, known in zip(alone, results, estimates, strict=True):
            made[leaf], found[leaf] = result, known
    return made, found


def norms(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    """See :class:`modula_rs.backend.Backend`. All devices get the norms of all blocks."""
    return _measured("norms", batches, arrays)


def dual_norms(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    """See :class:`modula_rs.backend.Backend`. All devices get the dual norms of all blocks."""
    return _measured("dual_norms", batches, arrays)


def planned(
    op: str, batches: Sequence[Batch], arrays: Sequence[Any], accuracy: str, warm: bool, gram: bool | None = None
) -> list[plan.Exchange]:
    """How the leaves of matrices that have entries are computed. ``arrays`` need a dtype and a size."""
    ways = _ways(batches)
    whole = op not in ("unit", "norms")
    sizes = [array.dtype.itemsize for array in arrays]
    full = [batch if array.size else batch._replace(geometry="empty") for batch, array in zip(batches, arrays, strict=True)]
    made = []
    for stack in plan.stacks(full, sizes, whole):
        if whole:
            allowed = gram_allowed() if gram is None else gram
            made.append(plan.whole_matrices(stack, ways, op, accuracy, allowed, back=op != "dual_norms"))
        else:
            made.append(plan.norms(stack, ways, warm))
    return made


class Chain:
    """Orders the exchanges of a program on the CPU, where two that wait for threads of one pool could each wait for the other."""

    def __init__(self) -> None:
        self._ordered = jax.default_backend() == "cpu"
        self._last: Array | None = None

    def before(self, x: Array) -> Array:
        """The operand of an exchange, which starts after the last one."""
        if self._last is not None and self._ordered:
            x, _ = lax.optimization_barrier((x, self._last))
        return x

    def after(self, y: Array) -> Array:
        """The result of an exchange."""
        self._last = y.reshape(-1)[:1]
        return y


def on_pairs(batches: Sequence[Batch], pairs: Sequence[tuple[Array, Array]], function: Callable[[Array, Array], Array]) -> list[Array]:
    """A function of pairs of whole matrices (count, rows, cols) that commutes with transposition, for leaves of matrices that lie so.

    The two of a pair travel as one matrix, side by side along the long edge, to where whole matrices of the leaf would go.
    """
    made, chain, ways = [first for first, _ in pairs], Chain(), _ways(batches)
    for each in planned("direction", batches, made, "standard", warm=False, gram=False):
        stack = each.stack
        across = exchange.size(stack.long_axes, ways)

        def work(x: Array, _: Array, across: int = across) -> Array:
            parts = x.reshape(*x.shape[:2], across, 2, x.shape[2] // (2 * across))  # each device's part of the edge is a pair
            return function(*(parts[:, :, :, at].reshape(*x.shape[:2], x.shape[2] // 2) for at in range(2)))

        beside = {leaf: jnp.concatenate(pairs[leaf], axis=1 if tall else 2) for leaf, tall in stack.leaves}
        ones = {leaf: jnp.ones(len(beside[leaf]), jnp.float32) for leaf, _ in stack.leaves}
        for leaf, result in _by_exchange(each, work, "standard", batches, beside, ones, chain):
            made[leaf] = result
    return made


def _work(op: str, accuracy: str, x: Array, scales: Array) -> Array:
    """An operation on whole matrices."""
    return provider.apply(op, [Batch("spectral", *x.shape)], [x], [scales], accuracy=accuracy)[0][0]


def _by_exchange(
    each: plan.Exchange, work: exchange.Work, accuracy: str, batches: Sequence[Batch], arrays: Any, scales: Any, chain: Chain
) -> list[tuple[int, Array]]:
    """The results of a stack's leaves."""
    stack, ways = each.stack, _ways(batches)
    parts, over = each.parts, each.parts[0].over
    across = exchange.size(over, ways)
    if early := len(parts) == 1 and bool(over) and all(len(arrays[leaf]) % across == 0 for leaf, _ in stack.leaves):
        # Each device takes its part of every copy before the leaves are joined, so that it reads and writes no more than its part.
        arrays = {leaf: exchange.own_part(arrays[leaf], over, ways) for leaf, _ in stack.leaves}
        scales = {leaf: exchange.own_part(scales[leaf], over, ways) for leaf, _ in stack.leaves}
        parts = (parts[0]._replace(number=parts[0].number // across, slots=parts[0].slots // across, over=()),)
    x, factors = _stacked(stack, arrays, scales)
    results, at = [], 0
    for part in parts:
        own, mine = x[at : at + part.number], factors[at : at + part.number]
        at += part.number
        own = chain.before(own)
        if part.scheme == "deal":
            result = exchange.back(exchange.dealt(own, mine, part, stack, ways, work), part, stack, ways)
        elif part.scheme == "gather":
            result = exchange.kept(work(exchange.gathered(own, stack, ways), mine), stack, ways)
        elif part.scheme == "gram":
            along = stack.short_axes + stack.long_axes
            own = exchange.turned(own, stack.short_axes, 2, 1)
            unit, _ = unit_range(arithmetic(own), over=along)
            result = exchange.turned((orthogonalise(unit, accuracy, along) * mine[:, None, None]).astype(own.dtype), stack.short_axes, 1, 2)
        else:
            result = work(own, mine)
        results.append(chain.after(result) if part.scheme != "local" else result)
    y = jnp.concatenate(results) if len(results) > 1 else results[0]
    own_parts = _parted(y, [len(arrays[leaf]) for leaf, _ in stack.leaves])
    made = [_lying(own, tall) for own, (_, tall) in zip(own_parts, stack.leaves, strict=True)]
    if early:
        made = _gathered(made, over, across, chain)
    return [(leaf, own) for (leaf, _), own in zip(stack.leaves, made, strict=True)]


def _gathered(parts: Sequence[Array], over: Axes, across: int, chain: Chain) -> list[Array]:
    """Whole leaves from the parts that devices along mesh axes have of them, one part after the other.

    A large leaf is gathered into its result; the others share one all-gather, of which each leaf is copied out.
    """
    small = [at for at, part in enumerate(parts) if across * part.nbytes < LARGE]
    sets = [[at] for at in range(len(parts)) if at not in small] + ([small] if small else [])
    made: list[Any] = list(parts)
    for members in sets:
        own = [parts[at].reshape(-1) for at in members]
        every = chain.after(lax.all_gather(chain.before(jnp.concatenate(own)), over))
        for at, whole in zip(members, _parted(every, [x.size for x in own], axis=1), strict=True):
            made[at] = whole.reshape(-1, *parts[at].shape[1:])
    return made


def _measured(name: str, batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    found: list[Any] = [jnp.zeros((batch.count,), arithmetic(x).dtype) for batch, x in zip(batches, arrays, strict=True)]
    ways, chain, alone = _ways(batches), Chain(), []
    measure = getattr(provider, name)
    for each in planned(name, batches, arrays, "standard", warm=False):
        leaves = [leaf for leaf, _ in each.stack.leaves]
        if [part.scheme for part in each.parts] == ["local"]:
            alone += leaves
            continue
        if each.parts[0].scheme == "power":
            numbers = spectral_norms([batches[leaf] for leaf in leaves], [arrays[leaf] for leaf in leaves])
        else:
            numbers = _dual_numbers(each, arrays, ways, chain, measure)
        for leaf, own in zip(leaves, _parted(numbers, [len(arrays[leaf]) for leaf in leaves]), strict=True):
            found[leaf] = own
    for leaf, (batch, array) in enumerate(zip(batches, arrays, strict=True)):
        if batch.geometry == "spectral" or not array.size:
            continue
        if batch.share.cols or batch.share.rows:
            found[leaf] = entries.MEASURES[name](batch, array)
        else:
            alone.append(leaf)
    if alone:
        for leaf, own in zip(alone, measure([_bare(batches[leaf]) for leaf in alone], [arrays[leaf] for leaf in alone]), strict=True):
            found[leaf] = own
    return [exchange.whole(own, 0, batch.share.blocks, ways) for own, batch in zip(found, batches, strict=True)]


def _dual_numbers(each: plan.Exchange, arrays: Sequence[Array], ways: dict[str, int], chain: Chain, measure: Any) -> Array:
    """The dual norms of a stack's matrices."""
    stack = each.stack

    def work(x: Array, _: Array) -> Array:
        (numbers,) = measure([Batch("spectral", *x.shape)], [x])
        return numbers  # type: ignore[no-any-return]

    x, ones = _stacked(stack, arrays, [jnp.ones(len(array), arithmetic(array).dtype) for array in arrays])
    numbers, at = [], 0
    for part in each.parts:
        own, mine = x[at : at + part.number], ones[at : at + part.number]
        at += part.number
        if part.scheme == "deal":
            numbers.append(
                chain.after(exchange.numbers_back(exchange.dealt(chain.before(own), mine, part, stack, ways, work), part, stack))
            )
        elif part.scheme == "gather":
            numbers.append(work(exchange.gathered(own, stack, ways), mine))
        else:
            numbers.append(work(own, mine))
    return jnp.concatenate(numbers)


def _stacked(stack: plan.Stack, arrays: Any, scales: Any) -> tuple[Array, Array]:
    """The matrices of a stack, tall matrices transposed, and their scales."""
    lying = [_lying(arrays[leaf], tall) for leaf, tall in stack.leaves]
    own = [scales[leaf] for leaf, _ in stack.leaves]
    return (lying[0], own[0]) if len(own) == 1 else (jnp.concatenate(lying), jnp.concatenate(own))


def _lying(x: Array, tall: bool) -> Array:
    return jnp.swapaxes(x, 1, 2) if tall else x


def _parted(x: Array, counts: Sequence[int], axis: int = 0) -> list[Array]:
    ends = accumulate(counts)
    return [lax.slice_in_dim(x, end - count, end, axis=axis) for count, end in zip(counts, ends, strict=True)]


def _alike(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[list[int]]:
    """The tables and vectors with entries. Vectors that are split alike are one group; each table is a group of its own."""
    groups: dict[Any, list[int]] = {}
    for leaf, (batch, array) in enumerate(zip(batches, arrays, strict=True)):
        if batch.geometry != "spectral" and array.size:
            alone = leaf if batch.rows > 1 or batch.geometry == "row_rms" or not batch.share.cols else None
            groups.setdefault((alone, batch.geometry, batch.cols, batch.share.columns, array.dtype), []).append(leaf)
    return list(groups.values())


def _bare(batch: Batch) -> Batch:
    return batch._replace(share=None)


def _ways(batches: Sequence[Batch]) -> dict[str, int]:
    for batch in batches:
        share: Share = batch.share
        return dict(share.sizes)
    return {}
