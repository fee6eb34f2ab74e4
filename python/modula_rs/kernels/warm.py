"""Launches of the warm spectral norms (power.cu, power_cluster.cu), and of the cold start where the device wants one (lanczos.cu)."""

from __future__ import annotations

import math
from typing import NamedTuple

from modula_rs.constants import LANCZOS_MOST, VECTORS

from . import params
from .device import Device
from .plan import Builder, Leaf

#: As in stripe.cuh, power.cuh and power.cu.
STAGE_ROWS, STAGES, MOST_STRIPES, MOST_TEAMS, FOLDED = 4, 3, 1024, 16, 32
#: Shared memory beside the stages, at most.
EXCHANGE = 6144
#: Blocks of the clusters of power_cluster.cu, and threads of each at most.
CLUSTERS, CLUSTER_THREADS = (2, 4, 8), 384
#: What one block costs beside its rows, in rows: the first stage of copies, the estimates, the sums. An estimate, not yet measured.
BLOCK_ROWS = 16


class Tiling(NamedTuple):
    """How a batch of matrices is cut: tiles of columns that a block's registers hold, stripes of rows."""

    threads: int
    shared: int
    teams: int  # of so many threads, in a block of the cold start
    tile_cols: int
    tiles: int
    cluster: bool  # of blocks that take a tile each
    rows_per_stripe: int
    stripes: int


def tiling(leaf: Leaf, count: int, device: Device) -> Tiling:
    """The tiling that fills the processors, with little left over.

    >>> from modula_rs.kernels.device import H200
    >>> tiling(Leaf("spectral", 64, 1024, 4096), 64, H200)
    Tiling(threads=512, shared=204800, teams=1, tile_cols=4096, tiles=1, cluster=False, rows_per_stripe=512, stripes=2)
    >>> tiling(Leaf("spectral", 1, 2048, 8192), 1, H200)[3:6]
    (2048, 4, True)
    """
    wide, half = leaf.dtype == "float64", leaf.dtype in ("float16", "bfloat16")
    width, packs, most_threads, registers = 4 if wide else 8, 1 if half else 2, 256 if wide else 512, 168 if wide else 128
    bytes_each = 16 * (STAGES * STAGE_ROWS * packs + 1)
    room = max(device.shared, 48 * 1024) - EXCHANGE
    most_threads = min(most_threads, room // bytes_each // 32 * 32)
    tiles = math.ceil(leaf.cols / (most_threads * width))
    together = math.ceil(leaf.cols / (min(most_threads, CLUSTER_THREADS) * width))
    cluster = device.hopper and not wide and tiles > 1 and together <= CLUSTERS[-1]
    if cluster:
        tiles = next(size for size in CLUSTERS if size >= together)
    # Tiles begin where sixteen bytes do.
    tile_cols = 8 * math.ceil(leaf.cols / tiles / 8)
    tiles = tiles if cluster else math.ceil(leaf.cols / tile_cols)
    threads = 32 * math.ceil(tile_cols / width / 32)
    shared = bytes_each * threads
    teams = max(1, min(MOST_TEAMS, most_threads // threads, math.ceil(leaf.rows / STAGE_ROWS))) if tiles == 1 else 1
    resident = device.processors * max(1, min(65536 // (registers * threads), room // (shared + EXCHANGE), 32))

    def rows_of(stripes: int) -> int:
        return STAGE_ROWS * math.ceil(leaf.rows / stripes / STAGE_ROWS)

    def cost(stripes: int) -> tuple[int, int]:
        return math.ceil(count * stripes * tiles / resident) * (rows_of(stripes) + BLOCK_ROWS), stripes

    rows = rows_of(min(range(1, min(MOST_STRIPES, math.ceil(leaf.rows / STAGE_ROWS)) + 1), key=cost))
    return Tiling(threads, shared, teams, tile_cols, tiles, cluster, rows, math.ceil(leaf.rows / rows))


def norms(builder: Builder, leaf: Leaf, count: int, entries: int, norms: int) -> None:
    """Norms as doubles at ``norms`` and new estimates, from the estimates that are each entry's second operand."""
    cut = tiling(leaf, count, builder.device)
    number = 8 if leaf.dtype == "float64" else 4
    folds = math.ceil(leaf.cols / FOLDED)
    searchers = min(count, builder.device.processors)
    fields = {
        "entries": entries, "norms": norms, "rows": leaf.rows, "cols": leaf.cols, "matrices": count, "teams": cut.teams,
        "stripes": cut.stripes, "rows_per_stripe": cut.rows_per_stripe, "tiles": cut.tiles, "tile_cols": cut.tile_cols,
        "vectors": builder.slots.vectors_out - builder.slots.vectors,
        "sums": builder.room(number * count * cut.stripes * VECTORS * leaf.cols),
        "squares": builder.room(8 * count * cut.stripes * VECTORS**2),
        "dots": builder.room(8 * count * cut.tiles * leaf.rows * VECTORS) if cut.tiles > 1 else 0,
        "image": builder.room(8 * count * VECTORS * leaf.cols), "inner": builder.room(8 * count * folds * 16),
        "basis": builder.room(number * searchers * (LANCZOS_MOST + 1 + cut.teams) * leaf.cols),
        "exponents": builder.room(4 * count * cut.stripes * cut.tiles), "wanted": builder.room(4 * count),
    }  # fmt: skip
    module, kernel = ("power_cluster", f"cluster_{leaf.dtype}_{cut.tiles}") if cut.cluster else ("power", f"step_{leaf.dtype}")
    for phase in (params.BOTH,) if cut.cluster or cut.tiles == 1 else (params.DOTS, params.SUMS):
        grid = (cut.stripes * cut.tiles, count)
        builder.launch(module, f"power_{kernel}", grid, cut.threads, EXCHANGE + cut.shared, phase=phase, **fields)
    builder.launch("power", f"power_fold_{leaf.dtype}", (folds, count), **fields)
    builder.launch("power", f"power_finish_{leaf.dtype}", (math.ceil(leaf.cols / 256), count), **fields)
    builder.launch("lanczos", f"lanczos_{leaf.dtype}", (searchers, 1), cut.teams * cut.threads, cut.teams * cut.shared, **fields)
