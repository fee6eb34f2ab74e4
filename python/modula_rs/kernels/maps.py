"""The maps of a whole model on float32 and 16-bit arrays, each as one plan. `Unavailable` is raised if no kernel may run for an operand."""

from __future__ import annotations

from collections.abc import Sequence

from . import norms as spectral
from . import orthogonal, params, power, rows
from .device import Device
from .launches import Builder, Operand, Plan, grouped
from .schedule import schedule

#: The default precision of the arithmetic of `dualize`, by the type of the array.
PRECISION = {"float16": "float16", "bfloat16": "float16", "float32": "float32"}


def dualize(operands: Sequence[Operand], device: Device, accuracy: str = "standard", precision: str | None = None) -> Plan:
    """The plan that computes the direction of every block, times its scale.

    ``accuracy``: see :meth:`modula_rs.Module.dualize`. ``precision``: ``"float32"`` (singular values above 1/1000 of the largest to 0.01)
    or ``"float16"`` (half-precision products: 0.02, above 1/100). The default at the level "standard" is the precision of the array. At
    the other levels it is ``"float16"``, which keeps their promise.
    """
    if precision not in (None, *orthogonal.PLANES):
        raise ValueError(f"precision must be one of {', '.join(orthogonal.PLANES)}, got {precision!r}")
    builder = Builder(operands, device)
    rows.rescale(builder, sign=True)
    usual = {} if accuracy == "standard" else dict.fromkeys(PRECISION, "float16")
    orthogonal.dualize(
        builder, lambda operand: precision or (PRECISION | usual)[operand.dtype], lambda name: schedule(name, accuracy)
    )  # fmt: skip
    return builder.finish()


def norms(operands: Sequence[Operand], device: Device) -> Plan:
    """The plan that computes the norm of every block."""
    builder = Builder(operands, device)
    rows.norms(builder, dual=False)
    groups = [(operand, members, builder.entries(members)) for operand, members in grouped(operands, "spectral").items()]
    for operand, members, entries in groups:
        mark = builder.mark()
        values = builder.allocate(8 * len(members))
        spectral.spectral_norms(builder, operand, members, entries, values, normalize=False)
        builder.launch("spectral", "store_norms", (len(members), 1), threads=32, entries=entries, norms=values)
        builder.release(mark)
    return builder.finish()


def dual_norms(operands: Sequence[Operand], device: Device) -> Plan:
    """The plan that computes the dual norm of every block.

    For a matrix g this is the nuclear norm <g, U V^T>: ``other`` of a spectral operand must be its direction from `dualize`, at scale 1.
    """
    builder = Builder(operands, device)
    rows.norms(builder, dual=True)
    for operand, members in grouped(operands, "spectral").items():
        entries = builder.entries(members, other=builder.slots.other)
        partial = rows.row_values(builder, operand, entries, len(members), params.INNER)
        rows.fold(builder, operand, len(members), partial, params.FOLD_SUM, 1, entries=entries)
    return builder.finish()


def normalize(operands: Sequence[Operand], device: Device) -> Plan:
    """The plan that divides every block (of an Embed, every row) by its norm and multiplies it by its scale.

    The norm of a ``warm`` operand comes from one step of block power iteration on its estimates.
    """
    builder = Builder(operands, device)
    rows.rescale(builder, sign=False)
    groups = [
        (operand, members, builder.entries(members), builder.entries(members, other=builder.slots.vectors))
        for operand, members in grouped(operands, "spectral").items()
    ]
    for operand, members, entries, with_vectors in groups:
        mark = builder.mark()
        values = builder.allocate(8 * len(members))
        if operand.warm:
            power.norms(builder, operand, len(members), with_vectors, values)
            done = False
        else:
            done = spectral.spectral_norms(builder, operand, members, entries, values, normalize=True)
        if not done:
            size = operand.rows * operand.cols
            # 256 threads, each with four loads of sixteen bytes in flight, take 4096 numbers of a float32 array.
            blocks = max(1, min(-(-size // 4096), 8 * device.processors))
            builder.launch("spectral", f"rescale_{operand.dtype}", (blocks, len(members)), entries=entries, norms=values, count=size)
        builder.release(mark)
    return builder.finish()
