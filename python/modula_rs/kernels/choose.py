"""Chooses the kernel and the grid of each launch. Every estimate of time is in this file, and none of them has been measured yet.

Estimates are in clock cycles or in shares of the tensor cores' peak, as each says. Correct them here after the first measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from .device import Device
from .launches import Operand, Unavailable

# ---- estimates, not yet measured ---------------------------------------------------------------------------------------------

#: The time that a block needs to start and to finish a tile, in steps of 64 products for a piece of 64 x 128.
OVERHEAD = 12
#: Share of the tensor cores' peak that the product kernels should reach in the steps of a tile, for tiles of 128 x 128 and of the wide
#: kernel. Predicted from their reads of the second-level cache: a multiprocessor gets perhaps 40 bytes a cycle; at the peak these kernels
#: would take 64 and 32.
TILE, WIDE = 0.6, 0.75
#: Clock cycles that a launch in a graph takes in addition to its arithmetic.
LAUNCH = 5000
#: Flops a cycle of one multiprocessor: in the fused kernel, which loads operands of 32 x 32 from shared memory, and in the products by
#: wgmma and by mma.
FUSED, WGMMA, MMA = 1500, 2400, 1400
#: A launch of products in a graph costs about as much as this share of a wave of 128 x 128 x 768 tiles.
LAUNCH_WAVES = 0.1
#: The fixed cost of one block in a step of block power iteration, in rows: the first stage of copies, the estimates, the sums.
BLOCK_ROWS = 16

# ---- batched products --------------------------------------------------------------------------------------------------------

#: Bytes of partial sums that a block of product_wide.cu stores for another block.
PART = 128 * 256 * 4
#: The wide kernel is tried for matrices with at least this many tiles of 128 along each edge: below 2048 it has too few tiles.
WIDE_TILES = 16


class Kernel(NamedTuple):
    """The module of a kernel, the middle of its name, its launch configuration, and whether clusters share tiles (product_wide.cu)."""

    module: str
    variant: str
    grid: tuple[int, int]
    threads: int
    shared: int
    split: bool = False


class Product(NamedTuple):
    """A batch of products, in tiles of 128 x 128 and steps of 64."""

    tiles_m: int
    tiles_n: int
    steps: int
    matrices: int
    symmetric: bool

    @property
    def tiles(self) -> int:
        """How many tiles of one matrix are computed."""
        return self.tiles_n * (self.tiles_n + 1) // 2 if self.symmetric else self.tiles_m * self.tiles_n

    @property
    def squares(self) -> int:
        """How many tiles of 256 x 256 product_wide.cu would compute for all matrices; 0 if the number of smaller tiles is odd."""
        if self.tiles_m % 2 or self.tiles_n % 2:
            return 0
        return self.matrices * self._replace(tiles_m=self.tiles_m // 2, tiles_n=self.tiles_n // 2).tiles


def candidates(device: Device, planes: int, product: Product) -> Iterator[tuple[float, Kernel]]:
    """The kernels that can compute a product, each with its estimated time.

    The unit of time is one step of a piece of 64 x 128 at the tensor cores' peak. Two blocks with tiles of 128 x 128 share a
    multiprocessor, so that one computes while the other starts or finishes a tile. Tiles of 128 x 256 read the least from the cache, but
    their blocks are alone on a multiprocessor and cannot overlap in this way.
    """
    module = "product_wgmma" if device.has("product_wgmma") else "product_mma"
    steps, processors = product.steps, device.processors
    barriers = 64 if module == "product_wgmma" else 0
    if device.has(module):
        rounds = -(-product.tiles * product.matrices // processors)
        yield rounds * 2 * steps / TILE + OVERHEAD, Kernel(module, "", (product.tiles, product.matrices), 256, 3 * 32_768 + barriers)
    if device.has("product_wide") and planes == 1 and product.squares and min(product.tiles_m, product.tiles_n) >= WIDE_TILES:
        yield _wide(device, product)


def _wide(device: Device, product: Product) -> tuple[float, Kernel]:
    """The wide kernel, with the last one to two rounds of tiles by Stream-K (Osama et al. 2023): each cluster gets equally many steps."""
    clusters = min(device.processors // 2, product.squares * product.steps)
    whole, over = divmod(product.squares, clusters)
    load, ends = float(whole), 2 * whole
    if over:  # a cluster may add the partial sums of a tile that it finishes, and store partial sums of a tile that another finishes
        load, ends = product.squares / clusters, 2 * whole + 3 - (-clusters // product.squares)
    kernel = Kernel("product_wide", "_wide", (2 * clusters, 1), 384, 4 * 49_152 + 2 * 16_384 + 64, over > 0)
    return load * 4 * product.steps / WIDE + ends * OVERHEAD, kernel


def choose(device: Device, planes: int, product: Product) -> Kernel:
    """The kernel with the smallest estimated time among the kernels that may run; raises `Unavailable` if there is none.

    >>> from modula_rs.kernels.device import H200
    >>> [choose(H200, 1, Product(t, t, 2 * t, 1, True)).module for t in (8, 32)]
    ['product_wgmma', 'product_wide']
    """
    best = min(candidates(device, planes, product), default=None)
    if best is None:
        raise Unavailable("no kernel for batched products may run on this device")
    return best[1]


def chunk_of(edge: int, count: int, planes: int, device: Device) -> int:
    """How many matrices of one shape go through the iteration together.

    Their four Gram-space matrices should stay in the second-level cache, since a product of 768 x 768 has 128 flops a byte, too few for
    device memory. And the tiles of one launch should fill the multiprocessors, two blocks on each, with few idle in the last round.

    >>> from modula_rs.kernels.device import H200
    >>> chunk_of(768, 72, 1, H200), chunk_of(8192, 3, 1, H200)
    (12, 1)
    """
    tiles = -(-edge // 128)
    lower = tiles * (tiles + 1) // 2
    fitting = max(1, device.cache // (4 * planes * 2 * (128 * tiles) ** 2))
    slots = 2 * device.processors
    filling = -(-slots // lower)  # fewer matrices would leave multiprocessors idle

    def cost(size: int) -> tuple[float, int]:
        launches = [size] * (count // size) + ([count % size] if count % size else [])
        waves = sum(math.ceil(n * lower / slots) for n in launches)
        return waves + LAUNCH_WAVES * len(launches), size

    return min(range(1, min(count, max(fitting, filling)) + 1), key=cost)


# ---- whole matrices on one multiprocessor ------------------------------------------------------------------------------------

#: The padded short edges for which small.cu has kernels, by the number of planes.
EDGES = {1: (32, 64, 128, 192, 256), 2: (32, 64, 128)}
#: For resident.cu: the sizes of clusters by edge, and the most panels of 64 columns that a block holds.
CLUSTERS, MOST_PANELS = {64: (2, 4), 128: (2, 4)}, 24


def small_shape(edge: int, planes: int, panels: int = 0) -> tuple[int, int]:
    """Threads and bytes of shared memory of ``small_<edge>_<planes>``, or of ``resident_...`` with this many resident ``panels``.

    The formulas are those of ``Packed`` in packed.cuh.

    >>> small_shape(128, 1), small_shape(256, 1), small_shape(128, 1, panels=8)
    ((320, 74368), (384, 209408), (320, 204288))
    """
    blocks = edge // 32
    squares = blocks * (blocks + 1) // 2
    warps = 1 if squares == 1 else 4 if squares <= 4 else min(squares, 12)
    matrix = planes * blocks * (2 * blocks + 1) * 512
    panel = planes * 8 * (-(-edge * 18 // 128) * 128 + 16)
    sums = edge * 72 * 4
    rest = max(2 * matrix, sums) + panels * panel if panels else max(2 * matrix, panel + sums)
    return 32 * warps, 512 + matrix + rest


def cluster_of(edge: int, planes: int, operand: Operand, device: Device) -> tuple[int, int] | None:
    """How many blocks share a matrix so that it stays on chip, and panels of each; None if it does not fit, or if that would be slower.

    >>> from modula_rs.kernels.device import H200
    >>> [cluster_of(128, 1, Operand("spectral", 1, 128, m), H200) for m in (256, 1024, 2048, 4096)]
    [None, (2, 8), (4, 8), None]
    """
    panels = -(-max(operand.rows, operand.cols) // 64)
    if not device.has("resident") or planes != 1 or 64 * panels < 4 * edge:
        return None  # each block repeats the products of n^3, which costs too much unless the matrix is wide
    for cluster in CLUSTERS.get(edge, ()):
        own = -(-panels // cluster)
        if own <= MOST_PANELS and small_shape(edge, planes, own)[1] <= device.shared:
            return cluster, own
    return None


def small_edge(n: int, planes: int, device: Device) -> int | None:
    """The padded short edge of the fused kernel for matrices of short edge ``n``, or None if they do not fit on one multiprocessor."""
    for edge in EDGES[planes] if device.has("small") else ():
        if n <= edge and small_shape(edge, planes)[1] <= device.shared:
            return edge
    return None


def fused_edge(operand: Operand, count: int, planes: int, device: Device, sweeps: int, cubes: int) -> int | None:
    """The padded edge of the fused kernel, if that is faster than separate products for ``count`` matrices, or the only way; else None.

    One multiprocessor computes a whole matrix, so a few large matrices are faster cut into tiles. ``sweeps``: how many passes over X with
    n^2 m flops there are; ``cubes``: how many products of Gram matrices with n^3 flops.

    >>> from modula_rs.kernels.device import H200
    >>> [fused_edge(Operand("spectral", 1, 192, 1024), count, 1, H200, 6, 18) for count in (8, 64, 132)]
    [None, 192, 192]
    """
    n, m = sorted((operand.rows, operand.cols))
    edge = small_edge(n, planes, device)
    rate = WGMMA if device.has("product_wgmma") else MMA if device.has("product_mma") else 0
    if edge is None or not rate:
        return edge

    def flops(n: int) -> int:
        return (3 if planes == 2 else 1) * (sweeps * n * n * m + cubes * n**3)

    fused = -(-count // device.processors) * flops(edge) / FUSED
    apart = (cubes + sweeps) * LAUNCH + count * flops(-(-n // 128) * 128) / (device.processors * rate)
    return edge if fused < apart else None
