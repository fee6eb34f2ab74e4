"""Which kernel takes a batched product, and with what grid: arithmetic on counts of tiles, no device needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .device import Device

#: Steps (of 64) that a piece of 64 x 128 would take in the time a block needs to start and to finish its tiles: an estimate, not yet measured.
OVERHEAD = 12
#: What of the tensor cores' peak each kernel should reach between its ends: predictions from the bytes that it asks of the second-level
#: cache. A cycle brings a processor perhaps 40 bytes; at the peak these kernels would take 96, 64 and 32.
HALF, TILE, WIDE = 0.42, 0.6, 0.75
#: Bytes of sums that a block of product_wide.cu leaves to another.
PART = 128 * 256 * 4


class Kernel(NamedTuple):
    """A kernel's module and the middle of its name, its launch, and whether clusters share tiles (product_wide.cu)."""

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
    count: int
    symmetric: bool

    @property
    def tiles(self) -> int:
        """Tiles that are computed."""
        each = self.tiles_n * (self.tiles_n + 1) // 2 if self.symmetric else self.tiles_m * self.tiles_n
        return each * self.count

    @property
    def squares(self) -> int:
        """Squares of two by two tiles, as product_wide.cu computes them; 0: the tiles do not come in twos."""
        if self.tiles_m % 2 or self.tiles_n % 2:
            return 0
        return Product(self.tiles_m // 2, self.tiles_n // 2, self.steps, self.count, self.symmetric).tiles


def candidates(device: Device, planes: int, product: Product) -> Iterator[tuple[float, Kernel]]:
    """Kernels that can take a product, with the time each should need: in steps that a piece of 64 x 128 takes at the tensor cores' peak.

    Blocks of one piece serve launches with too few tiles for the processors. Of whole tiles two blocks share a processor, and the one
    hides how the other starts and ends. Tiles of 128 x 256 need the least of the cache, but alone on a processor hide little.
    """
    module, steps, processors = "product_wgmma" if device.hopper else "product_mma", product.steps, device.processors
    each = product.tiles // product.count
    waves = -(-2 * product.tiles // processors)
    shared = 8 * 24_576 + 64 if device.hopper else 4 * 24_576
    yield waves * (steps / HALF + OVERHEAD), Kernel(module, "_half", (2 * each, product.count), 128, shared)
    waves = -(-product.tiles // processors)
    yield waves * 2 * steps / TILE + OVERHEAD, Kernel(module, "", (each, product.count), 256, 3 * 32_768 + (64 if device.hopper else 0))
    if device.hopper and planes == 1 and product.squares:
        clusters = min(processors // 2, product.squares * steps)
        whole, over = divmod(product.squares, clusters)
        finished, load, shares = whole * 2.0, float(whole), 0
        if over:  # who has the first steps of a tile adds the sums of all the others to its own
            finished, load, shares = finished + 2, product.squares / clusters, 1 + -(-clusters // product.squares)
        shared = 4 * 49_152 + 2 * 16_384 + 64
        yield load * 4 * steps / WIDE + (finished + shares) * OVERHEAD, Kernel("product_wide", "_wide", (2 * clusters, 1), 384, shared, over > 0)


def choose(device: Device, planes: int, product: Product) -> Kernel:
    """The kernel that should be the fastest.

    >>> from modula_rs.kernels.device import H200
    >>> [choose(H200, 1, Product(t, t, 2 * t, 1, True)).module for t in (8, 32)]
    ['product_wgmma', 'product_wide']
    """
    return min(candidates(device, planes, product))[1]
