"""Two functions that compute the same: one for programs that this process compiles, one for programs that ``jax.export`` saves.

JAX saves no calls of other libraries, because it promises that a saved program runs in other processes and in later versions. While JAX
traces a function it does not know what the program is for; only the lowering knows. So the choice is a primitive of its own, which is
replaced there by one of the two functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

_choice = Primitive("modula_rs_unless_exported")
_choice.multiple_results = True


@dataclass(frozen=True)
class _Flat:
    """A function of pytrees as a function of their leaves."""

    function: Callable[..., Any]
    structure: Any

    def __call__(self, *leaves: Any) -> list[Any]:
        return jax.tree.leaves(self.function(*jax.tree.unflatten(self.structure, leaves)))


@dataclass(frozen=True)
class _Mapped:
    """The function under ``jax.vmap``, with the mapped axis of the results in front."""

    function: Callable[..., Any]
    axes: tuple[int | None, ...]

    def __call__(self, *leaves: Any) -> list[Any]:
        return list(jax.vmap(self.function, in_axes=self.axes)(*leaves))


def unless_exported(here: Callable[..., Any], saved: Callable[..., Any]) -> Callable[..., Any]:
    """The function ``here``, in place of which ``jax.export`` saves ``saved``. Their results have the same shapes and dtypes."""

    def function(*operands: Any) -> Any:
        leaves, structure = jax.tree.flatten(operands)
        traced, results = jax.make_jaxpr(here, return_shape=True)(*operands)
        made = _choice.bind(*leaves, here=traced, saved=_Flat(saved, structure))
        return jax.tree.unflatten(jax.tree.structure(results), made)

    return function


def _lowered(ctx: Any, *operands: Any, here: Any, saved: Callable[..., Any]) -> Sequence[Any]:
    exporting = ctx.module_context.lowering_parameters.for_export
    lowered: Sequence[Any] = mlir.lower_fun(saved if exporting else jaxpr_as_fun(here), multiple_results=True)(ctx, *operands)
    return lowered


def _batched(operands: Sequence[Any], axes: Sequence[int | None], *, here: Any, saved: Callable[..., Any]) -> tuple[Any, Any]:
    mapped = jax.make_jaxpr(_Mapped(jaxpr_as_fun(here), tuple(axes)))(*operands)
    made = _choice.bind(*operands, here=mapped, saved=_Mapped(saved, tuple(axes)))
    return made, [0] * len(made)


_choice.def_impl(lambda *operands, here, saved: jaxpr_as_fun(here)(*operands))
_choice.def_abstract_eval(lambda *operands, here, saved: here.out_avals)
batching.primitive_batchers[_choice] = _batched
mlir.register_lowering(_choice, _lowered)
if not hasattr(jax, "shard_map"):
    # Older versions of JAX must be told that the results vary over a mesh where the operands do.
    older: Any = import_module("jax.experimental.shard_map")
    older.register_standard_check(_choice)
    older.register_standard_rewrite(_choice)
