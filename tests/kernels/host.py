"""Runs plans without a GPU: the kernels' own source, compiled by the host's C++ compiler over the shim beside this file."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from modula_rs.kernels import runtime
from modula_rs.kernels.compile import SOURCES, definitions, locked
from modula_rs.kernels.launches import Launch, Plan, uploads

SHIM = Path(__file__).parent / "shim"
#: Traps on an index outside an array and on a misaligned load, which a GPU would refuse as well. With -O3 the kernels run no faster, and
#: compile twice as long.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fsanitize=bounds,alignment", "-fsanitize-undefined-trap-on-error")
COMPILER = next((path for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and (path := shutil.which(name))), None)
NO_COMPILER = "no C++ compiler (g++, clang++ or $CXX): the kernels' arithmetic cannot be run on this machine"
GUARD = 4096


#: Further flags, for tests that imitate other hardware: -DTRUNCATE (shim/tensor.h).
OPTIONS: tuple[str, ...] = ()


@functools.cache
def library(source: Path, options: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The functions of one .cu file, compiled for the host."""
    options = (*definitions(), *options)
    digest = hashlib.sha256(repr((FLAGS, options)).encode())
    for path in (*sorted(SOURCES.glob("*.cuh")), *sorted(SHIM.glob("*.h")), source):
        digest.update(path.read_bytes())
    target = Path(tempfile.gettempdir()) / "modula_rs_shim" / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    with locked(target):  # one of the processes that test at the same time compiles it, and the others wait
        if not target.exists():
            scratch = target.with_suffix(f".{os.getpid()}")
            flags = [*FLAGS, *options, '-DHOST_SHIM="host.h"', f"-I{SHIM}", f"-I{SOURCES}"]
            command = [COMPILER, *flags, "-x", "c++", str(source)]
            built = subprocess.run([*command, "-o", str(scratch)], capture_output=True, text=True)
            assert built.returncode == 0, built.stderr[-4000:]
            os.replace(scratch, target)
    loaded = ctypes.CDLL(str(target))
    loaded.shim_launch.restype = ctypes.c_char_p
    loaded.shim_launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_uint] * 6]
    return loaded


def launch(item: Launch, order: int = 0) -> None:
    """Runs one launch whose params hold real addresses; ``order`` is the order in which the threads of a block run."""
    module = library(SOURCES / f"{item.module}.cu", OPTIONS)
    error = module.shim_launch(
        ctypes.cast(getattr(module, item.kernel), ctypes.c_void_p), item.params.ctypes.data,
        *item.grid, 1, item.threads, item.shared, order,
    )  # fmt: skip
    assert error is None, f"{item.kernel}: {error.decode()}"


def aligned(size: int, fill: int = 0xFF) -> np.ndarray:
    """Bytes at an address divisible by 1024, all equal to ``fill``: by default NaN in every float type, so that unwritten bytes show."""
    whole = np.full(size + 1024, fill, np.uint8)
    start = -whole.ctypes.data % 1024
    return whole[start : start + size]


def guarded(shape, dtype) -> tuple[np.ndarray, np.ndarray]:
    """An array between two guards, and the whole buffer: a write past either end changes a guard."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = aligned(size + 2 * GUARD, 0xAB)
    inner = whole[GUARD : GUARD + size]
    inner[:] = 0xFF
    return inner.view(dtype).reshape(shape), whole


def run(plan: Plan, sources, results, scales, others=None, vectors=None, vectors_out=None, order: int = 0) -> None:
    """Runs a whole plan on NumPy arrays; ``results`` are written. ``scales``: one float64 array for each operand."""
    workspace = aligned(plan.bytes + GUARD)
    base = workspace.ctypes.data
    roles = (sources, results, (), others, vectors, vectors_out)
    addresses = [[0 if array is None else array.ctypes.data for array in role or ()] for role in roles]
    words = runtime.message(plan, base, addresses, [np.asarray(values, np.float64) for values in scales])
    constants, launches = runtime.standing(plan, base)
    for item in (*constants, *uploads(words, base + plan.table), *launches):
        launch(item, order)
    assert (workspace[plan.bytes :] == 0xFF).all(), "a kernel wrote past the workspace"
