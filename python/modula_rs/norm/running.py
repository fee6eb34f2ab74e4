"""How a map runs on weights: as it is, compiled by JAX, or on a mesh of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Generic, Self, TypeVar

import numpy as np

from modula_rs import arrays
from modula_rs.arrays import Array
from modula_rs.norm import maps
from modula_rs.norm.checks import check_finite, check_nonfinite, check_overflow, check_together, check_vectors, check_weights
from modula_rs.norm.maps import Vectors
from modula_rs.norm.matching import Matching
from modula_rs.norm.views import View

#: Maps whose results are updates of weights.
UPDATES = ("normalize", "dualize")
#: The structure of the weights: a list of arrays, or the pytree of a network of another library.
W = TypeVar("W")
#: Default of ``vectors``: no estimates are given, and none are returned.
COLD: Any = object()


class Running(Matching, Generic[W]):
    """The weights of a module are a list of arrays, one for each leaf of the norm.

    A subclass whose weights have another structure overrides ``_open``; a subclass whose arrays are not the leaves of its norm sets
    ``_views``.
    """

    _views: Sequence[View] | None = None
    _jitted: dict[str, Callable[..., Any]] | None = None

    def jit(self) -> Self:
        """Compiles the forward pass and the maps for JAX arrays, in place; arrays of other libraries are not affected."""
        self._jitted = {}
        return self

    def cold_vectors(self, w: Any, *, shardings: Any = None) -> Vectors:
        """Estimates of zero, which stand for no estimates: the first ``vectors`` of :meth:`normalize` in the carry of ``lax.scan``.

        ``w``: arrays like the weights. The estimates have their library and precision.

        >>> import modula_rs as mr
        >>> m = mr.Linear(3, 4) @ mr.Bias(4)
        >>> [None if v is None else v.shape for v in m.cold_vectors(m.initialize(0))]
        [None, (1, 4, 4)]
        """
        given, _ = self._open(w, "weight")
        layout = self._layout(given, self._in_order(shardings, w), "weight")
        if layout is not None:
            cold: Vectors = placed_arrays().cold_vectors(self.norm_table, layout, given)
            return cold
        return maps.cold_vectors(self.norm_table, self._leaves(given))

    @property
    def output_axes(self) -> list[int]:
        """For each leaf of the norm the axis of the outputs in its blocks (count, rows, columns): 1, or 2 where the rows are inputs."""
        if self._views is None:
            return [1] * len(self.norm_table.leaves)
        return [view.output_axis for view in self._views for _ in view.rows]

    def _open(self, w: Any, what: str) -> tuple[Sequence[Array], Callable[[Sequence[Array]], Any]]:
        """The arrays of weights, and a function that puts such arrays back into the structure of the weights."""
        return w, lambda made: made

    def _check_together(self, *groups: tuple[str, Any]) -> None:
        """ValueError, naming two arrays, if arrays of one call lie on different devices or meshes.

        Each group is a word, and one array for each array of the weights or for each leaf; or one array. Other lists are refused elsewhere.
        """
        named: list[tuple[Callable[[int], str], Sequence[Any]]] = []
        for what, given in groups:
            listed = given if isinstance(given, list | tuple) else [given]
            paths = next((paths for paths in (self._held_paths(), self.norm_table.paths) if len(paths) == len(listed)), None)
            named.append((partial(_name, what, paths if listed is given else None), listed))
        check_together(*named)

    def _leaves(self, given: Sequence[Array], name: str = "") -> Sequence[Array]:
        """One array for each leaf of the norm, for the map called ``name``."""
        if self._views is None:
            return given
        return [leaf for view, array in zip(self._views, given, strict=True) for leaf in view.open(array, name)]

    def _arrays(self, leaves: Sequence[Array], given: Sequence[Array], name: str) -> Sequence[Array]:
        """The arrays that the leaves make, in the shapes of those given. Updates of frozen arrays are zero; other maps keep the array."""
        if self._views is None:
            return leaves
        made = []
        for view, array in zip(self._views, given, strict=True):
            if view.rows:
                made.append(view.close([leaves[row] for row in view.rows], array, name))
            else:
                made.append(arrays.namespace_of(array).zeros_like(array) if name in UPDATES else array)
        return made

    def _map(self, name: str, w: Any, amount: Any = 1.0, **options: Any) -> W:
        made: W = self._map_warm(name, w, amount, None, **options)[0]
        return made

    def _map_warm(
        self, name: str, w: Any, amount: Any, vectors: Any, *, what: str = "weight", shardings: Any = None, **options: Any
    ) -> tuple[Any, Vectors]:
        check_nonfinite(options["nonfinite"])
        given, structured = self._open(w, what)
        self._check_together((what, given), ("vectors", vectors), ("the amount", amount))
        layout = self._layout(given, self._in_order(shardings, w), what, name)
        if layout is not None:
            if options["nonfinite"] == "raise":  # compiled code cannot raise
                check_finite(self._held_paths(), given, what, self._trained())
                options["nonfinite"] = "propagate"
            if vectors is not None:
                check_vectors(self.norm_table, [a for held, a in zip(layout.held, given, strict=True) for _ in held.leaves], vectors)
            options.setdefault("accuracy", "standard")
            made, found = placed_arrays().apply(self.norm_table, layout, name, given, amount, vectors, **options)
        elif self._compiles(given):
            if options["nonfinite"] == "raise":  # checked here, because compiled code cannot raise
                check_finite(self.norm_table.paths, self._leaves(given), what)
                options["nonfinite"] = "propagate"
            compiled = self._compiled(f"{name}{sorted(options.items())}", partial(self._apply, name, what=what, **options))
            with np.errstate(over="ignore"):  # an amount beyond the dtype is refused below
                made, found = compiled(given, amount, vectors)
        else:
            made, found = self._apply(name, given, amount, vectors, what=what, **options)
        if maps.may_overflow(self.norm_table, name, amount):
            check_overflow(self._held_paths(), given, made, amount)
        if layout is None and any(arrays.is_traced(array) for array in given):
            made = placed_arrays().alike(given, made)
        return structured(made), found

    def _layout(self, given: Sequence[Array], shardings: Any, what: str, name: str = "") -> Any:
        """How the given arrays hold the leaves, and where they lie on a mesh; None if they lie on one device, or are not of JAX."""
        in_jax = isinstance(given, list | tuple) and any(arrays.library(array) == "jax" for array in given)
        if not in_jax:
            if shardings is not None:
                raise TypeError("shardings say where arrays of JAX lie, and there is none")
            return None
        placement = placements()
        if not placement.on_mesh(given, shardings):
            return None
        if self._views is None:
            check_weights(self.norm_table.leaves, given, what)
        held = self._held(name)
        where = placement.find(held, given, placement.flat(shardings, len(given)))
        return None if where is None else placement.Layout(held, where)

    def _in_order(self, shardings: Any, w: Any) -> Any:
        """Shardings as a list in the order of the arrays of the weights ``w``; None, or one sharding for all, as it is."""
        return shardings if shardings is None else placements().listed(shardings)

    def _held(self, name: str = "") -> Any:
        """How each given array holds leaves of the norm."""
        norm, placement = self.norm_table, placements()
        if self._views is not None:
            paths = self._held_paths()
            return tuple(placement.Held(path, tuple(view.rows), view.lay(name)) for path, view in zip(paths, self._views, strict=True))
        return placement.plainly(norm)

    def _held_paths(self) -> Sequence[str]:
        """The path of each given array."""
        paths = self.norm_table.paths
        if self._views is None:
            return paths
        return [paths[view.rows.start].split("[")[0] if view.rows else "a frozen array" for view in self._views]

    def _trained(self) -> list[int] | None:
        """The numbers of the given arrays that hold leaves of the norm; None for all."""
        return None if self._views is None else [at for at, view in enumerate(self._views) if view.rows]

    def _apply(
        self, name: str, given: Sequence[Array], amount: Any, vectors: Any, *, what: str, **options: Any
    ) -> tuple[Sequence[Array], Vectors]:
        made, found = maps.apply(self.norm_table, name, self._leaves(given, name), amount, vectors, what=what, **options)
        return self._arrays(made, given, name), found

    def _measure(self, key: str, measure: Callable[..., Any], w: Any, what: str, shardings: Any) -> Any:
        given, _ = self._open(w, what)
        layout = self._layout(given, self._in_order(shardings, w), what)
        if layout is not None:
            return placed_arrays().measure(self.norm_table, layout, given, dual=key == "dual_norm")
        return self._run(key, lambda given: measure(self.norm_table, self._leaves(given)), given)

    def _run(self, key: str, function: Callable[..., Any], *args: Any) -> Any:
        return self._compiled(key, function)(*args) if self._compiles(*args) else function(*args)

    def _compiles(self, *args: Any) -> bool:
        if self._jitted is None:
            return False
        return any(arrays.library(a) == "jax" for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg]))

    def _compiled(self, key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled by JAX; each key is compiled once."""
        assert self._jitted is not None
        if key not in self._jitted:
            import jax

            self._jitted[key] = jax.jit(function)
        return self._jitted[key]


def _name(what: str, paths: Sequence[str] | None, at: int) -> str:
    return what if paths is None else f"{what} of {paths[at]}"


def placements() -> Any:
    """The module that finds where arrays lie on a mesh. It needs JAX, which is optional."""
    return import_module("modula_rs.norm.placement")


def placed_arrays() -> Any:
    """The module of maps of arrays on a mesh. It needs JAX, which is optional."""
    return import_module("modula_rs.norm.placed")
