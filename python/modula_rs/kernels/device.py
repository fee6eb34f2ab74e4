"""What the launch logic needs to know of a GPU, as plain numbers, so that it can be tested where there is none."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """Limits of one GPU.

    ``shared`` is what one block may ask for (bytes), ``cache`` the second-level cache (bytes).
    """

    capability: tuple[int, int]
    processors: int
    shared: int
    cache: int

    @property
    def hopper(self) -> bool:
        """Whether wgmma and the copy engine are there: compute capability 9.0 only."""
        return self.capability == (9, 0)


#: From the vendor's data sheets; ``Device`` of a real GPU is read off the driver.
H200 = Device((9, 0), 132, 232_448, 62_914_560)
A100 = Device((8, 0), 108, 166_912, 41_943_040)
RTX4090 = Device((8, 9), 128, 101_376, 75_497_472)


def current() -> Device:
    """The device that CuPy has selected in this thread."""
    import cupy

    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    major, minor = divmod(int(device.compute_capability), 10)
    processors, shared, cache = (
        runtime.deviceGetAttribute(attribute, device.id)
        for attribute in (
            runtime.cudaDevAttrMultiProcessorCount,
            runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin,
            runtime.cudaDevAttrL2CacheSize,
        )
    )
    return Device((major, minor), processors, shared, cache)
