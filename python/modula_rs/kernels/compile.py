"""From a .cu file to a cubin, with NVRTC and without a device.

NVRTC needs no driver, so that the tests compile every kernel for every architecture on any machine. A cubin built here is
loaded with ``cupy.RawModule(path=...)``: CuPy's own route appends an ``-arch`` of its own, and wgmma needs sm_90a.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path

from modula_rs import _core

SOURCES = Path(__file__).parent
#: The files that hold kernels; the rest are headers.
MODULES = tuple(sorted(path.stem for path in SOURCES.glob("*.cu")))
#: What only one architecture can run; everything else runs on compute capability 8.0 and later.
HOPPER_ONLY = frozenset({"product_wgmma", "product_wide", "power_cluster", "resident"})


def architecture(capability: tuple[int, int]) -> str:
    """Name of the NVRTC target for a compute capability.

    >>> architecture((9, 0)), architecture((8, 6))
    ('sm_90a', 'sm_86')
    """
    if capability < (8, 0):
        raise RuntimeError(f"modula_rs needs a GPU of compute capability 8.0 or later, this one has {capability[0]}.{capability[1]}")
    return f"sm_{capability[0]}{capability[1]}" + ("a" if capability == (9, 0) else "")


@functools.cache
def headers() -> dict[str, str]:
    """Text of every header, by the name it is included under."""
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cuh"))}


@functools.cache
def definitions() -> tuple[str, ...]:
    """Options that define the numbers which the kernels share with modula-core.

    >>> definitions()[0]
    '-DMODULA_VECTORS=4'
    """
    numbers = _core.constants().items()
    return tuple(f"-DMODULA_{name}={number!r}" for name, number in numbers if isinstance(number, int | float))


def compile_module(module: str, arch: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """The cubin of one .cu file for one architecture (``"sm_80"``, ``"sm_90a"``, ...), and the compiler's log.

    Raises ``RuntimeError`` with the compiler's log when the source does not compile.
    """
    from cupy_backends.cuda.libs import nvrtc

    flags = (f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *definitions(), *options)
    source = (SOURCES / f"{module}.cu").read_text()
    texts, names = ([text.encode() for text in part] for part in (headers().values(), headers()))
    program = nvrtc.createProgram(source, f"{module}.cu", texts, names)
    try:
        nvrtc.compileProgram(program, flags)
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{module}.cu for {arch}: {error}\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


def cache_directory() -> Path:
    """Where compiled kernels are kept: ``$MODULA_RS_CACHE``, else a folder of the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "modula_rs"
    return Path(os.environ.get("MODULA_RS_CACHE", default))


def cubin_path(module: str, arch: str) -> Path:
    """Path of the compiled module, compiling it at the first call on this machine."""
    from cupy_backends.cuda.libs import nvrtc

    digest = hashlib.sha256(repr((arch, nvrtc.getVersion(), definitions(), sorted(headers().items()))).encode())
    digest.update((SOURCES / f"{module}.cu").read_bytes())
    path = cache_directory() / f"{module}-{arch}-{digest.hexdigest()[:16]}.cubin"
    if not path.exists():
        cubin, _ = compile_module(module, arch)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that two processes that start together never read half a file.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            scratch.write(cubin)
        os.replace(scratch.name, path)
    return path
