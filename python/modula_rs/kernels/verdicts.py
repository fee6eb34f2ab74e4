"""What is known of the kernels on this machine: a verdict for each family, kept on disk by all that could change it.

Only what has been proved here is used ("auto", see `modula_rs.backend.gpu`); `modula_rs.kernels.check` finds the verdicts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .compile import SOURCES, cache_directory, locked, write_whole

OK = "ok"


class Family(NamedTuple):
    """Kernels that are proved together: what they allow (`Device.allowed`), and whether only who asks for them gets them."""

    allows: tuple[str, ...]
    on_request: bool = False


#: Cheapest first, each after those that its proof counts on. All count on "rows", the first.
FAMILIES = {
    "rows": Family(("upload", "rows", "fold")),
    "small": Family(("small", "spectral")),
    "product_mma": Family(("pack", "spectral", "product_mma")),
    "product_wgmma": Family(("pack", "spectral", "product_wgmma")),
    "power": Family(("power", "lanczos", "spectral")),
    "resident": Family(("resident",), on_request=True),
    "product_wide": Family(("product_wide",), on_request=True),
    "graph": Family(("graph",)),
    "jax": Family(("jax",)),
}
#: Families kept for measurement, used only where this names them (by spaces) and they are proved.
EXTRA = "MODULA_RS_GPU_EXTRA"


def allowed(families: Iterable[str]) -> frozenset[str]:
    """What a device may run, these families being good: nothing without "rows", and those on request only where they are asked for.

    >>> sorted(allowed(["rows", "power", "product_wide"]))
    ['fold', 'lanczos', 'power', 'rows', 'spectral', 'upload']
    """
    good, asked = set(families), os.environ.get(EXTRA, "").split()
    if "rows" not in good:
        return frozenset()
    return frozenset(
        name for family, (names, on_request) in FAMILIES.items() if family in good and (not on_request or family in asked) for name in names
    )


class Machine(NamedTuple):
    """All that a verdict depends on."""

    card: str
    capability: tuple[int, int]
    processors: int
    driver: int
    nvrtc: tuple[int, int]
    cupy: str
    sources: str

    @property
    def title(self) -> str:
        """The card and its driver, for messages."""
        return f"{self.card} (CUDA driver {self.driver // 1000}.{self.driver % 1000 // 10})"

    def path(self) -> Path | None:
        """The file of its verdicts; None where nothing can be kept."""
        digest = hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:16]
        directory = cache_directory()
        return directory and directory / "verdicts" / f"{digest}.json"


@functools.cache
def sources() -> str:
    """Digest of all that decides what a kernel does: the kernels' sources and the plans that launch them."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.*")):
        if path.suffix in (".cu", ".cuh", ".py"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def machine_of(ordinal: int) -> Machine:
    """The machine, with the GPU of this number."""
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    from .device import device_of

    device, properties = device_of(ordinal), cupy.cuda.runtime.getDeviceProperties(ordinal)
    name = properties["name"]
    return Machine(
        name.decode() if isinstance(name, bytes) else str(name), device.capability, device.processors,
        int(cupy.cuda.runtime.driverGetVersion()), tuple(nvrtc.getVersion()), cupy.__version__, sources(),
    )  # fmt: skip


def read(machine: Machine) -> dict[str, dict[str, Any]]:
    """The verdicts of a machine, family by family; none where nobody has checked, or the file is damaged.

    Each holds ``verdict``: ``"ok"``, ``"wrong: ..."``, ``"fault: ..."``, ``"hung"``, ``"does not load: ..."`` or ``"not tried: ..."``.
    """
    path = machine.path()
    try:
        found = json.loads(path.read_text()) if path else {}
        verdicts = found["verdicts"]
        return {name: entry for name, entry in verdicts.items() if name in FAMILIES and isinstance(entry["verdict"], str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def record(machine: Machine, family: str, entry: dict[str, Any]) -> bool:
    """Keeps one verdict beside the others; False where it cannot be kept."""
    path = machine.path()
    if path is None:
        return False
    with locked(path):
        content = {"machine": machine._asdict(), "verdicts": read(machine) | {family: entry}}
        return write_whole(path, json.dumps(content, indent=1).encode())
