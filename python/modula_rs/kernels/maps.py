"""The five whole-model maps, each as one plan."""

from __future__ import annotations

from . import orthogonal, params, vectors, warm
from .device import Device
from .plan import NOTHING, Builder, Leaf, Plan, grouped
from .schedule import PROJECT, Schedule
from .schedule import schedule as schedule_for

#: Arithmetic of `dualize` by the type of the array, unless told otherwise.
PRECISION = {"float16": "float16", "bfloat16": "float16", "float32": "float32", "float64": "float64"}


def dualize(leaves: list[Leaf], device: Device, accuracy: str = "standard", precision: str | None = None, keep: float = 1.0) -> Plan:
    """Every leaf's direction times its scales.

    ``accuracy``: see :meth:`modula_rs.Module.dualize`. ``precision``: ``"float16"`` (half-precision products: 0.02 for singular values
    above a hundredth of the largest), ``"float32"`` (0.01 for those above a thousandth) or ``"float64"``. The default is the precision of
    the array, and ``"float16"`` at the levels whose promise it keeps.
    """
    if precision not in (None, *orthogonal.PLANES):
        raise ValueError(f"precision must be one of {', '.join(orthogonal.PLANES)}, got {precision!r}")

    def precision_of(leaf: Leaf) -> str:
        if leaf.dtype == "float64":
            return "float64"
        return precision or ("float16" if accuracy != "standard" else PRECISION[leaf.dtype])

    def schedule_of(name: str) -> Schedule:
        return schedule_for(name, accuracy)

    builder = Builder(leaves, device, keep)
    vectors.rescale(builder, vectors.GEOMETRIES, sign=True)
    orthogonal.dualize(builder, precision_of, schedule_of)
    return builder.finish()


def project(leaves: list[Leaf], device: Device) -> Plan:
    """Every leaf's direction to rounding accuracy, times its scales."""
    builder = Builder(leaves, device)
    vectors.rescale(builder, vectors.GEOMETRIES, sign=True)
    orthogonal.dualize(builder, lambda leaf: "float64", lambda precision: PROJECT, exact=True)
    return builder.finish()


def norms(leaves: list[Leaf], device: Device) -> Plan:
    """The norm of every block."""
    builder = Builder(leaves, device)
    vectors.norms(builder, dual=False)
    groups = [(leaf, members, builder.entries(members, NOTHING)) for leaf, members in grouped(leaves, "spectral").items()]
    for leaf, members, entries in groups:
        mark = builder.mark()
        values = builder.room(8 * len(members))
        orthogonal.spectral_norms(builder, leaf, members, entries, values, normalize=False)
        dtype = params.DTYPES["float64" if leaf.dtype == "float64" else "float32"]
        builder.launch("spectral", "store_norms", (len(members), 1), threads=32, entries=entries, norms=values, dtype=dtype)
        builder.release(mark)
    return builder.finish()


def dual_norms(leaves: list[Leaf], device: Device) -> Plan:
    """The dual norm of every block; ``other`` of a spectral leaf must be its direction from `dualize`, at scale 1: <g, U V^T> is the
    nuclear norm."""
    builder = Builder(leaves, device)
    vectors.norms(builder, dual=True)
    for leaf, members in grouped(leaves, "spectral").items():
        entries = builder.entries(members, other=builder.slots.other)
        partial = vectors.row_values(builder, leaf, entries, len(members), params.INNER)
        vectors.store_folded(builder, leaf, entries, len(members), partial, params.FOLD_SUM, 1)
    return builder.finish()


def normalize(leaves: list[Leaf], device: Device, keep: float = 1.0) -> Plan:
    """Every block over its norm (Embed: every row), times its scale; a ``warm`` leaf takes one step from its estimates."""
    builder = Builder(leaves, device, keep)
    vectors.rescale(builder, vectors.GEOMETRIES, sign=False)
    groups = [
        (leaf, members, builder.entries(members), builder.entries(members, other=builder.slots.vectors))
        for leaf, members in grouped(leaves, "spectral").items()
    ]
    for leaf, members, entries, with_vectors in groups:
        mark = builder.mark()
        values = builder.room(8 * len(members))
        if leaf.warm:
            warm.norms(builder, leaf, len(members), with_vectors, values)
            done = False
        else:
            done = orthogonal.spectral_norms(builder, leaf, members, entries, values, normalize=True)
        if not done:
            size = leaf.rows * leaf.cols
            # Four loads of sixteen bytes for each thread.
            blocks = max(1, min(-(-size // 4096), 8 * device.processors))
            builder.launch(
                "spectral", f"rescale_{leaf.dtype}", (blocks, len(members)), entries=entries, norms=values, count=size, keep=keep
            )
        builder.release(mark)
    return builder.finish()
