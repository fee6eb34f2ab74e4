"""The limits of a GPU that the launch logic depends on, as plain numbers, so that the logic can be tested without a GPU."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from .compile import HOPPER_ONLY, MODULES

#: Everything that a device can be allowed to run: .cu files, and CUDA graphs.
EVERYTHING = frozenset({*MODULES, "graph"})


class Device(NamedTuple):
    """Limits of one GPU, and the kernels that may run on it.

    ``processors`` is the number of multiprocessors, ``shared`` the shared memory that one block may ask for (bytes), ``cache`` the size of
    the second-level cache (bytes). ``allowed`` holds the names of the .cu files that may run, and ``"graph"`` if a plan may be replayed as
    a CUDA graph. On a user's machine these are the kernels that have passed their tests there (`modula_rs.kernels.check`).
    """

    capability: tuple[int, int]
    processors: int
    shared: int
    cache: int
    allowed: frozenset[str] = EVERYTHING

    def has(self, module: str) -> bool:
        """Whether the kernels of ``module`` may run: they are allowed, and the compute capability is high enough.

        >>> H200.has("product_wgmma"), H200._replace(capability=(10, 0)).has("product_wgmma")
        (True, False)
        """
        return module in self.allowed and self.capability >= (8, 0) and (module not in HOPPER_ONLY or self.capability == (9, 0))


#: The limits of an H200 from its data sheet. For a real GPU `device_of` asks the driver.
H200 = Device((9, 0), 132, 232_448, 62_914_560)


@cache
def device_of(ordinal: int) -> Device:
    """The limits of the GPU with this number, with every kernel allowed."""
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
