"""What the files for eight virtual devices share: meshes, placements, and arrays that lie so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

P = PartitionSpec
TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
Placement = Callable[[tuple[int, ...]], PartitionSpec]


def mesh(kind: str = "auto", shape: tuple[int, ...] = (4, 2), names: tuple[str, ...] = ("a", "b")) -> Any:
    return jax.make_mesh(shape, names, axis_types=(TYPES[kind],) * len(shape))


def fitting(spec: Sequence[Any]) -> Placement:
    """A placement that splits the last axes of an array as the last entries of ``spec`` say, where the mesh (4, 2) divides them."""
    sizes = {"a": 4, "b": 2, ("a", "b"): 8, ("b", "a"): 8, None: 1}

    def place(shape: tuple[int, ...]) -> PartitionSpec:
        entries = [None] * len(shape)
        for axis in range(1, min(len(shape), len(spec)) + 1):
            entry = spec[-axis]
            if shape[-axis] % sizes[entry] == 0:
                entries[-axis] = entry
        return P(*entries)

    return place


#: Every way to split stacks, rows and columns over at most two mesh axes that differs in its schemes.
PLACEMENTS: dict[str, Placement] = {
    "replicated": fitting([None, None, None]),
    "columns": fitting([None, None, "a"]),
    "columns over both": fitting([None, None, ("b", "a")]),
    "rows": fitting([None, ("a", "b"), None]),
    "rows and columns": fitting([None, "a", "b"]),
    "stack": fitting(["a", None, None]),
    "stack over both": fitting([("a", "b"), None, None]),
    "stack and rows": fitting(["b", "a", None]),
    "stack and columns": fitting(["a", None, "b"]),
}


def module() -> mr.Module:
    """Tables, vectors, a stack, wide and tall matrices of equal edges, and shared weights."""
    block = 0.5 * mr.Identity() + 0.5 * mr.Linear(32, 32) @ mr.Bias(32) @ mr.Scale(32)
    return mr.Linear(16, 32) @ mr.Linear(32, 16) @ mr.Linear(16, 32) @ (block**8) @ mr.Embed(32, 24)


def arrays(m: Any, seed: int = 0, dtype: Any = jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(leaf.shape), dtype) for leaf in m.leaves]


def shardings(on: Any, place: Placement, given: Sequence[Any]) -> list[NamedSharding]:
    return [NamedSharding(on, place(x.shape)) for x in given]


def put(given: Sequence[Any], where: Sequence[NamedSharding]) -> list[jax.Array]:
    return [jax.device_put(x, s) for x, s in zip(given, where, strict=True)]


def assert_like(made: Sequence[Any], expected: Sequence[Any], where: Sequence[NamedSharding] | None, tolerance: float = 1e-5) -> None:
    """The values of one device, and the placements of the inputs."""
    for x, y in zip(made, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tolerance, atol=tolerance)
    for x, s in zip(made, where or [], strict=False):
        assert x.sharding.is_equivalent_to(s, x.ndim), f"{x.sharding} is not {s}"
