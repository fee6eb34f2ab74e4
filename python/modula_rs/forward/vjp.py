"""Gradients without a framework: the forward pass records a tape of pullbacks, for arrays of NumPy and CuPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from modula_rs import arrays
from modula_rs.forward.program import Apply, Fork, Program, Transform, Walk
from modula_rs.forward.run import check
from modula_rs.norm.table import Norm

Pullback = Callable[[Any], tuple[Any, list[Any]]]


class Like(NamedTuple):
    """The shape and dtype that a cotangent must have."""

    shape: tuple[int, ...]
    dtype: Any


class Pull(NamedTuple):
    """An atom or bond on the tape: its pullback, its input, and for an atom its leaf and the index of the copy."""

    pullback: Callable[[Any], Any]
    like: Any
    name: str
    leaf: int | None = None
    copy: tuple[int, ...] = ()


class Merge(NamedTuple):
    """The input of a tuple on the tape, where the cotangents of the members are added."""

    like: Any


class Previous(NamedTuple):
    """On the tape, the step from a member of a tuple back to the member before it."""


class Split(NamedTuple):
    """The output of a tuple on the tape, whose cotangent is taken apart into the members' cotangents."""


Tape = list[Pull | Merge | Previous | Split]


def vjp(function: Callable[[Any, Any], Any], norm: Norm, program: Program, x: Any, w: Sequence[Any]) -> tuple[Any, Pullback]:
    """The output, and a function from the output's cotangent to (cotangent of the input, gradients of the weights).

    JAX differentiates ``function``, which is the forward pass; arrays of other libraries are differentiated here.
    """
    x, library = check(norm.leaves, program, x, w)
    if library == "jax":
        return _jax_vjp(function, x, w)
    xp = arrays.namespace(library)
    recorder = Recorder(program.paths)
    y = recorder.run(program.steps, x, dict(enumerate(w)))
    expected = _like(y)

    def pullback(cotangent: Any) -> tuple[Any, list[Any]]:
        gradients = _Gradients(norm, w, xp)
        dx = _pull(recorder.tape, _fit(cotangent, expected, "the cotangent of the output", xp), gradients, xp)
        return dx, gradients.result()

    return y, pullback


# ---- forward: the closures of the pullbacks keep what the backward pass needs ------------------------------------------------


class Recorder(Walk):
    """The walk that records the pullback of every step on a tape."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        self.tape: Tape = []

    def apply(self, step: Apply, x: Any, weight: Any, copy: tuple[int, ...]) -> Any:
        """Applies one copy of an atom."""
        like, path = _like(x), self.paths[step.leaf]
        y, pullback = step.atom.apply_vjp(x, weight)
        self.tape.append(Pull(pullback, like, path, step.leaf, copy))
        return y

    def transform(self, step: Transform, x: Any) -> Any:
        """Applies a bond."""
        like = _like(x)
        y, pullback = step.bond.apply_vjp(x)
        self.tape.append(Pull(pullback, like, type(step.bond).__name__))
        return y

    def fork(self, step: Fork, x: Any, weights: Mapping[int, Any]) -> None:
        """A tuple begins."""
        self.tape.append(Merge(_like(x)))

    def next(self) -> None:
        """A member ends, and the next member begins."""
        self.tape.append(Previous())

    def join(self) -> None:
        """A tuple ends."""
        self.tape.append(Split())


def _like(x: Any) -> Any:
    return tuple(map(_like, x)) if isinstance(x, tuple) else Like(tuple(x.shape), x.dtype)


# ---- backward: the tape in reverse ------------------------------------------------------------------------------


def _pull(tape: Tape, d: Any, gradients: _Gradients, xp: Any) -> Any:
    sums: list[Any] = []  # for every open tuple, the cotangent of its input so far
    waiting: list[Any] = []  # the cotangents of the members still to come
    for entry in reversed(tape):
        match entry:
            case Split():
                waiting.extend(d)
                d = waiting.pop()
                sums.append(None)
            case Previous():
                sums[-1] = _plus(sums[-1], d)
                d = waiting.pop()
            case Merge(like):
                d = _rounded(_plus(sums.pop(), d), like)
            case Pull(pullback, like, name, leaf, copy):
                d = None if _is_nothing(d) else pullback(d)
                if leaf is not None and d is not None:
                    d, gradient = d
                    gradients.add(leaf, copy, gradient)
                d = _fit(d, like, f"the cotangent of its input that {name} gives", xp)
    return d


class _Gradients:
    """The gradients of all weights; each is the sum over the uses of its array."""

    def __init__(self, norm: Norm, w: Sequence[Any], xp: Any) -> None:
        self.norm, self.w, self.xp = norm, w, xp
        self.sums: list[Any] = [None] * len(w)

    def add(self, leaf: int, copy: tuple[int, ...], gradient: Any) -> None:
        array, stacked = self.w[leaf], len(self.norm.stacks[leaf])
        like = Like(tuple(array.shape[stacked:]), arrays.working_dtype(array.dtype))
        gradient = _fit(gradient, like, f"the gradient that {self.norm.paths[leaf]} gives", self.xp)
        if stacked:  # every copy has weights of its own, so each entry is written once and nothing is added
            if self.sums[leaf] is None:
                self.sums[leaf] = self.xp.zeros(array.shape, array.dtype)
            self.sums[leaf][copy] = gradient
        else:
            self.sums[leaf] = _plus(self.sums[leaf], gradient)

    def result(self) -> list[Any]:
        """The gradients in the dtypes of the weights; zero for weights that were not used."""
        likes = map(_like, self.w)
        return [_fit(total, like, "a gradient", self.xp) for total, like in zip(self.sums, likes, strict=True)]


def _fit(d: Any, like: Any, what: str, xp: Any) -> Any:
    """A cotangent checked and converted to the right shape and dtype; zeros for None, and None for integers, which have no cotangent."""
    if not isinstance(like, Like):
        members = (None,) * len(like) if d is None else d
        if not isinstance(members, tuple | list) or len(members) != len(like):
            raise ValueError(f"{what} must be a tuple of {len(like)}, got {_describe(d)}")
        return tuple(_fit(member, each, what, xp) for member, each in zip(members, like, strict=True))
    if not arrays.is_floating(like.dtype):
        return None
    if d is None:
        return xp.zeros(like.shape, like.dtype)
    library = arrays.library(d)
    if library is None or (library, xp.__name__) == ("numpy", "jax.numpy"):
        d = xp.asarray(d)
    elif arrays.namespace(library) is not xp:
        raise TypeError(f"{what} must be an array of {xp.__name__}, got one of {library}")
    if not (arrays.is_floating(d.dtype) or d.dtype.kind in "biu"):
        raise TypeError(f"{what} must hold real numbers, got {d.dtype.name}")
    if tuple(d.shape) != like.shape:
        raise ValueError(f"{what} must have shape {like.shape}, got {tuple(d.shape)}")
    return d.astype(like.dtype, copy=False)


def _describe(d: Any) -> str:
    return f"a tuple of {len(d)}" if isinstance(d, tuple | list) else type(d).__name__


def _plus(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, tuple):
        return tuple(map(_plus, a, b))
    return arrays.widen(a) + arrays.widen(b)


def _rounded(d: Any, like: Any) -> Any:
    if d is None or isinstance(like, Like):
        return d if d is None else d.astype(like.dtype, copy=False)
    return tuple(map(_rounded, d, like))


def _is_nothing(d: Any) -> bool:
    return all(map(_is_nothing, d)) if isinstance(d, tuple) else d is None


# ---- JAX ------------------------------------------------------------------------------------------------------------------------


def _jax_vjp(function: Callable[[Any, Any], Any], x: Any, w: Sequence[Any]) -> tuple[Any, Pullback]:
    import jax
    import jax.numpy as jnp

    y, pullback = jax.vjp(function, x, list(w))
    expected = _like(y)
    float0 = jax.dtypes.float0

    def without(d: Any, like: Any) -> Any:
        """A cotangent as JAX takes it: float0 zeros in place of None."""
        if not isinstance(like, Like):
            return tuple(map(without, d, like))
        return np.zeros(like.shape, float0) if d is None else d

    def back(cotangent: Any) -> tuple[Any, list[Any]]:
        d = _fit(cotangent, expected, "the cotangent of the output", jnp)
        dx, gradients = pullback(without(d, expected))
        return jax.tree.map(lambda d: None if d.dtype == float0 else d, dx), gradients

    return y, back
