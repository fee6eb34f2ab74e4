"""Which kernel takes a batched product, and with what grid: arithmetic on counts of tiles, no device needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .device import Device

#: What a block needs to start and to finish a tile, in steps (of 64) of a piece of 64 x 128: an estimate, not yet measured.
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
    matrices: int
    symmetric: bool

    @property
    def tiles(self) -> int:
        """Tiles of one matrix that are computed."""
        return self.tiles_n * (self.tiles_n + 1) // 2 if self.symmetric else self.tiles_m * self.tiles_n

    @property
    def squares(self) -> int:
        """Squares of two by two tiles of all matrices, as product_wide.cu computes them; 0: the tiles do not come in twos."""
        if self.tiles_m % 2 or self.tiles_n % 2:
            return 0
        return self.matrices * self._replace(tiles_m=self.tiles_m // 2, tiles_n=self.tiles_n // 2).tiles


def candidates(device: Device, planes: int, product: Product) -> Iterator[tuple[float, Kernel]]:
    """Kernels that can take a product, with the time each should need: in steps that a piece of 64 x 128 takes at the tensor cores' peak.

    Blocks of one piece serve launches with too few tiles for the processors. Of whole tiles two blocks share a processor, and the one
    hides how the other starts and ends. Tiles of 128 x 256 ask the least of the cache, but alone on a processor they hide little.
    """
    module, barriers = ("product_wgmma", 64) if device.hopper else ("product_mma", 0)
    tiles, steps, processors = product.tiles, product.steps, device.processors
    rounds = -(-2 * tiles * product.matrices // processors)
    half = Kernel(module, "_half", (2 * tiles, product.matrices), 128, (8 if device.hopper else 4) * 24_576 + barriers)
    yield rounds * (steps / HALF + OVERHEAD), half
    rounds = -(-tiles * product.matrices // processors)
    yield rounds * 2 * steps / TILE + OVERHEAD, Kernel(module, "", (tiles, product.matrices), 256, 3 * 32_768 + barriers)
    if device.hopper and planes == 1 and product.squares:
        clusters = min(processors // 2, product.squares * steps)
        whole, over = divmod(product.squares, clusters)
        load, ends = float(whole), 2 * whole
        if over:  # who has the first steps of a tile adds to its sums those of all others, and leaves some to another
            load, ends = product.squares / clusters, 2 * whole + 3 - (-clusters // product.squares)
        wide = Kernel("product_wide", "_wide", (2 * clusters, 1), 384, 4 * 49_152 + 2 * 16_384 + barriers, over > 0)
        yield load * 4 * steps / WIDE + ends * OVERHEAD, wide


def choose(device: Device, planes: int, product: Product) -> Kernel:
    """The kernel that should be the fastest.

    >>> from modula_rs.kernels.device import H200
    >>> [choose(H200, 1, Product(t, t, 2 * t, 1, True)).module for t in (8, 32)]
    ['product_wgmma', 'product_wide']
    """
    return min(candidates(device, planes, product))[1]
