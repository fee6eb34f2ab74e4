"""What the launch logic needs to know of a GPU, as plain numbers, so that it can be tested where there is none."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from .compile import HOPPER_ONLY, MODULES

#: All that a device may be allowed to run.
EVERYTHING = frozenset({*MODULES, "graph"})


class Device(NamedTuple):
    """Limits of one GPU, and the kernels that may run on it.

    ``shared`` is the shared memory that one block may ask for (bytes), ``cache`` the second-level cache (bytes), ``allowed`` what may run:
    names of .cu files, and ``"graph"`` for replays as a CUDA graph. On a user's machine that is what has been proved there
    (`modula_rs.kernels.check`).
    """

    capability: tuple[int, int]
    processors: int
    shared: int
    cache: int
    allowed: frozenset[str] = EVERYTHING

    def has(self, module: str) -> bool:
        """Whether the kernels of ``module`` may run: they are allowed, and the hardware has what they need.

        >>> H200.has("product_wgmma"), H200._replace(capability=(10, 0)).has("product_wgmma")
        (True, False)
        """
        return module in self.allowed and self.capability >= (8, 0) and (module not in HOPPER_ONLY or self.capability == (9, 0))


#: From the vendor's data sheet; ``Device`` of a real GPU is read off the driver.
H200 = Device((9, 0), 132, 232_448, 62_914_560)


@cache
def device_of(ordinal: int) -> Device:
    """The limits of the GPU with this number, every kernel allowed."""
    import cupy

    runtime = cupy.cuda.runtime
    major, minor = divmod(int(cupy.cuda.Device(ordinal).compute_capability), 10)
    processors, shared, cache = (
        runtime.deviceGetAttribute(attribute, ordinal)
        for attribute in (
            runtime.cudaDevAttrMultiProcessorCount,
            runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin,
            runtime.cudaDevAttrL2CacheSize,
        )
    )
    return Device((major, minor), processors, shared, cache)
