"""The forward pass on arrays of any library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.forward import one_product
from modula_rs.forward.program import Apply, Fork, Program, Repeat, Step, Walk
from modula_rs.norm.checks import check_together, check_weights
from modula_rs.norm.table import Leaf

#: The most iterations of powers without weights of their own, such as ``bond ** 10**18``. More are refused, because they might never end.
MOST_TURNS = 100_000


def forward(leaves: Sequence[Leaf], program: Program, x: Any, w: Sequence[Any]) -> Any:
    """The output of the module for input ``x`` and weights ``w``."""
    x, library = check(leaves, program, x, w)

    def walk(x: Any, w: Sequence[Any]) -> Any:
        return Forward(program.paths).run(program.steps, x, dict(enumerate(w)))

    if library == "jax":
        from modula_rs.forward import explicit  # needs JAX, which is optional

        if explicit.mesh_of(x, w) is not None:
            return explicit.run(walk, x, list(w))
    return walk(x, w)


def check(leaves: Sequence[Leaf], program: Program, x: Any, w: Sequence[Any]) -> tuple[Any, str]:
    """The input as an array (or a tuple of them), and the library of the output; an error if input and weights do not fit together."""
    x = _as_arrays(x)
    found = {str(arrays.library(member)) for member in _flat(x)}
    library = check_weights(leaves, w, "weight")
    check_together((lambda at: f"weight of {leaves[at].path}", w), (lambda at: "the input", list(_flat(x))))
    if leaves:
        found.add(library)
    if "cupy" in found and len(found) > 1:
        others = ", ".join(sorted(found - {"cupy"}))
        raise TypeError(f"input and weights must come from one library, got cupy and {others}")
    if (turns := _turns(leaves, program.steps)) > MOST_TURNS:
        raise ValueError(f"powers without weights of their own would run {turns} times, more than {MOST_TURNS}")
    return x, "jax" if "jax" in found else (found or {library}).pop()


def _turns(leaves: Sequence[Leaf], steps: Sequence[Step]) -> int:
    """The iterations of powers over steps without weights. Other powers are no longer than their arrays, and so need no limit."""
    total = 0
    for step in steps:
        if isinstance(step, Repeat):
            inner = _turns(leaves, step.steps)
            weighted = any(0 not in leaves[leaf].shape for leaf in step.stacked)
            total += step.times * (inner if weighted else max(inner, 1))
    return total


class Forward(Walk):
    """The walk that computes. It may compute Linears of one input together, and runs a power of JAX arrays as one ``lax.scan``."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        self._joined: dict[int, Any] = {}  # outputs of Linears that were computed together, each kept until its member begins

    def apply(self, step: Apply, x: Any, weight: Any, copy: tuple[int, ...]) -> Any:
        """Applies one copy of an atom."""
        return self._joined.pop(step.leaf) if step.leaf in self._joined else step.atom.apply(x, weight)

    def fork(self, step: Fork, x: Any, weights: Mapping[int, Any]) -> None:
        """A tuple begins; its Linears may be computed together."""
        if len(step.linears) > 1:
            self._joined |= one_product.outputs(step.linears, x, weights)

    def repeat(self, power: Repeat, x: Any, weights: Mapping[int, Any], copy: tuple[int, ...]) -> Any:
        """Applies a power."""
        if power.times > 1 and any(arrays.library(value) == "jax" for value in (*_flat(x), *weights.values())):
            return self._scan(power, x, weights)
        return super().repeat(power, x, weights, copy)

    def _scan(self, power: Repeat, x: Any, weights: Mapping[int, Any]) -> Any:
        """Applies the copies by a ``lax.scan``, so that compile time does not grow with depth."""
        import jax
        import jax.numpy as jnp

        def body(carry: Any, own: dict[int, Any]) -> tuple[Any, None]:
            return self.run(power.steps, carry, {**weights, **own}), None

        x = jax.tree.map(jnp.asarray, x)
        stacked = {leaf: weights[leaf] for leaf in power.stacked}
        dtypes = {value.dtype for value in (*_flat(x), *stacked.values())}
        if len(dtypes) > 1:
            # The carry of a scan must keep one dtype, so the input is first converted to the dtype of a copy's output.
            first = {leaf: array[0] for leaf, array in stacked.items()}
            result, _ = jax.eval_shape(body, x, first)
            x = jax.tree.map(lambda value, like: value.astype(like.dtype), x, result)
        return jax.lax.scan(body, x, stacked, length=power.times)[0]


def _as_arrays(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(_as_arrays, x))
    x = x if arrays.library(x) else np.asarray(x)
    if x.dtype.kind not in "biuf" and x.dtype.name not in arrays.DTYPES:
        raise TypeError(f"an input holds real numbers, got {x.dtype.name}")
    return x


def _flat(x: Any) -> list[Any]:
    return [leaf for member in x for leaf in _flat(member)] if isinstance(x, tuple) else [x]
