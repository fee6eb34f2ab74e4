"""Launches of a step of block power iteration (power.cu), and of the cold start for matrices that need one (lanczos.cu)."""

from __future__ import annotations

import math
from typing import NamedTuple

from modula_rs.constants import LANCZOS_MOST, VECTORS

from . import params
from .choose import BLOCK_ROWS
from .device import Device
from .launches import Builder, Operand

#: The constants of stripe.cuh, power.cuh and power.cu.
STAGE_ROWS, STAGES, MOST_STRIPES, MOST_TEAMS, FOLDED = 4, 3, 1024, 16, 32
#: The most threads of a block; the columns and the registers of each thread.
MOST_THREADS, WIDTH, REGISTERS = 512, 8, 128
#: Bytes of shared memory before the stages (power_step.cuh).
EXCHANGE = 6144


class Tiling(NamedTuple):
    """How the matrices of a batch are cut: into tiles of columns, whose sums fit a block's registers, and stripes of rows."""

    threads: int
    shared: int
    teams: int  # how many teams of this many threads a block of the cold start has
    tile_cols: int
    tiles: int
    rows_per_stripe: int
    stripes: int


def tiling(operand: Operand, count: int, device: Device) -> Tiling:
    """The tiling with the least estimated time: it fills the multiprocessors, with few idle in the last round.

    >>> from modula_rs.kernels.device import H200
    >>> tiling(Operand("spectral", 64, 1024, 4096), 64, H200)
    Tiling(threads=512, shared=204800, teams=1, tile_cols=4096, tiles=1, rows_per_stripe=512, stripes=2)
    """
    packs = 2 if operand.dtype == "float32" else 1
    bytes_each = 16 * (STAGES * STAGE_ROWS * packs + 1)
    room = max(device.shared, 48 * 1024) - EXCHANGE
    most_threads = min(MOST_THREADS, room // bytes_each // 32 * 32)
    # Tiles begin at a multiple of sixteen bytes.
    tile_cols = 8 * math.ceil(operand.cols / math.ceil(operand.cols / (most_threads * WIDTH)) / 8)
    tiles = math.ceil(operand.cols / tile_cols)
    threads = 32 * math.ceil(tile_cols / WIDTH / 32)
    shared = bytes_each * threads
    teams = max(1, min(MOST_TEAMS, most_threads // threads, math.ceil(operand.rows / STAGE_ROWS))) if tiles == 1 else 1
    resident = device.processors * max(1, min(65536 // (REGISTERS * threads), room // (shared + EXCHANGE), 32))

    def rows_of(stripes: int) -> int:
        return STAGE_ROWS * math.ceil(operand.rows / stripes / STAGE_ROWS)

    def cost(stripes: int) -> tuple[int, int]:
        return math.ceil(count * stripes * tiles / resident) * (rows_of(stripes) + BLOCK_ROWS), stripes

    rows = rows_of(min(range(1, min(MOST_STRIPES, math.ceil(operand.rows / STAGE_ROWS)) + 1), key=cost))
    return Tiling(threads, shared, teams, tile_cols, tiles, rows, math.ceil(operand.rows / rows))


def norms(builder: Builder, operand: Operand, count: int, entries: int, norms: int) -> None:
    """Stores norms as doubles at ``norms``, and new estimates. The second operand of each entry has the old estimates."""
    cut = tiling(operand, count, builder.device)
    folds = math.ceil(operand.cols / FOLDED)
    searchers = min(count, builder.device.processors)
    fields = {
        "entries": entries, "norms": norms, "rows": operand.rows, "cols": operand.cols, "matrices": count, "teams": cut.teams,
        "stripes": cut.stripes, "rows_per_stripe": cut.rows_per_stripe, "tiles": cut.tiles, "tile_cols": cut.tile_cols,
        "vectors": builder.slots.vectors_out - builder.slots.vectors,
        "sums": builder.allocate(4 * count * cut.stripes * VECTORS * operand.cols),
        "squares": builder.allocate(8 * count * cut.stripes * VECTORS**2),
        "dots": builder.allocate(8 * count * cut.tiles * operand.rows * VECTORS) if cut.tiles > 1 else 0,
        "image": builder.allocate(8 * count * VECTORS * operand.cols), "inner": builder.allocate(8 * count * folds * 16),
        "basis": builder.allocate(4 * searchers * (LANCZOS_MOST + 1 + cut.teams) * operand.cols),
        "exponents": builder.allocate(4 * count * cut.stripes * cut.tiles), "wanted": builder.allocate(4 * count),
    }  # fmt: skip
    for phase in (params.BOTH,) if cut.tiles == 1 else (params.DOTS, params.SUMS):
        grid = (cut.stripes * cut.tiles, count)
        builder.launch("power", f"power_step_{operand.dtype}", grid, cut.threads, EXCHANGE + cut.shared, phase=phase, **fields)
    builder.launch("power", "power_fold", (folds, count), **fields)
    builder.launch("power", "power_finish", (math.ceil(operand.cols / 256), count), **fields)
    threads = cut.teams * cut.threads
    builder.launch("lanczos", f"lanczos_{operand.dtype}", (searchers, 1), threads, cut.teams * cut.shared, **fields)
