"""The verdicts on the kernels of this machine, one for each family, stored on disk under a digest of everything that could change them.

`modula_rs.kernels.check` finds the verdicts. By default ("auto", see `modula_rs.backend.gpu`) only kernels that have passed here are used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .compile import SOURCES, cache_directory, definitions, locked, write_whole

OK = "ok"


class Family(NamedTuple):
    """Kernels that are tested together: what may run if they pass (`Device.allowed`), and whether it runs only on request (`EXTRA`)."""

    allows: tuple[str, ...]
    on_request: bool = False


#: The families, cheapest first, each after the families that its cases use. The cases of all families use "rows", the first.
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
#: The environment variable that names families on request, separated by spaces. They run if they have passed as well.
EXTRA = "MODULA_RS_GPU_EXTRA"


def allowed(families: Iterable[str]) -> frozenset[str]:
    """What a device may run if these families have passed: nothing without "rows", and families on request only if `EXTRA` names them.

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
    """Everything that a verdict depends on."""

    card: str
    capability: tuple[int, int]
    processors: int
    driver: int
    nvrtc: tuple[int, int]
    cupy: str
    sources: str

    @property
    def title(self) -> str:
        """The name of the card and its driver, for messages."""
        return f"{self.card} (CUDA driver {self.driver // 1000}.{self.driver % 1000 // 10})"

    def path(self) -> Path | None:
        """The file with the verdicts of this machine; None if there is no cache folder."""
        digest = hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:16]
        directory = cache_directory()
        return directory and directory / "verdicts" / f"{digest}.json"


@functools.cache
def sources() -> str:
    """Digest of everything that decides what a kernel does: the kernels' sources, the core's constants, and the code of the plans."""
    digest = hashlib.sha256(repr(definitions()).encode())
    for path in sorted(SOURCES.glob("*.*")):
        if path.suffix in (".cu", ".cuh", ".py"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def machine_of(ordinal: int) -> Machine:
    """This machine, with the GPU that has this number."""
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    from .device import device_of  # it asks CuPy

    device, properties = device_of(ordinal), cupy.cuda.runtime.getDeviceProperties(ordinal)
    name = properties["name"]
    return Machine(
        name.decode() if isinstance(name, bytes) else str(name), device.capability, device.processors,
        int(cupy.cuda.runtime.driverGetVersion()), tuple(nvrtc.getVersion()), cupy.__version__, sources(),
    )  # fmt: skip


def read(machine: Machine) -> dict[str, dict[str, Any]]:
    """The verdicts of a machine by family; none if no check has run, or if the file is damaged.

    Each has a ``verdict``: ``"ok"``, ``"wrong: ..."``, ``"fault: ..."``, ``"hung"``, ``"does not load: ..."`` or ``"not tried: ..."``.
    """
    path = machine.path()
    try:
        found = json.loads(path.read_text()) if path else {}
        verdicts = found["verdicts"]
        return {name: entry for name, entry in verdicts.items() if isinstance(entry["verdict"], str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def record(machine: Machine, family: str, entry: dict[str, Any]) -> bool:
    """Stores one verdict beside the others. Returns False if it cannot be stored."""
    path = machine.path()
    if path is None:
        return False
    with locked(path):
        content = {"machine": machine._asdict(), "verdicts": read(machine) | {family: entry}}
        return write_whole(path, json.dumps(content, indent=1).encode())
