"""Compiles .cu files to cubins with NVRTC, and caches them; no device is needed.

NVRTC needs no driver, so the tests can compile every kernel for every architecture on any machine. Each kernel is compiled by itself, so
that a call waits only for the kernels that it launches. CuPy's own ``RawModule`` is not used, because it appends an ``-arch`` of its own,
and wgmma needs sm_90a.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from modula_rs import _core

SOURCES = Path(__file__).parent
#: The names of the .cu files, which define kernels.
MODULES = tuple(sorted(path.stem for path in SOURCES.glob("*.cu")))
#: The .cu files that need compute capability 9.0; all others run on 8.0 and later.
HOPPER_ONLY = frozenset({"product_wgmma", "product_wide", "resident"})
#: The first version of NVRTC that can compile for each later architecture.
FIRST_NVRTC = {"sm_100": (12, 8), "sm_120": (12, 8), "sm_103": (12, 9), "sm_121": (12, 9), "sm_110": (13, 0)}


def architecture(capability: tuple[int, int]) -> str:
    """The name of the NVRTC target for a compute capability.

    >>> architecture((9, 0)), architecture((8, 6))
    ('sm_90a', 'sm_86')
    """
    if capability < (8, 0):
        raise RuntimeError(
            f"modula_rs' kernels need a GPU of compute capability 8.0 or later, this one has {capability[0]}.{capability[1]}"
        )
    return f"sm_{capability[0]}{capability[1]}" + ("a" if capability == (9, 0) else "")


@functools.cache
def headers() -> dict[str, str]:
    """The text of every header, by the name under which it is included."""
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cuh"))}


@functools.cache
def definitions() -> tuple[str, ...]:
    """The compiler options that define the constants of modula-core for the kernels.

    >>> definitions()[0]
    '-DMODULA_VECTORS=4'
    """
    numbers = _core.constants().items()
    return tuple(f"-DMODULA_{name}={number!r}" for name, number in numbers if isinstance(number, int | float))


def require_architecture(arch: str) -> None:
    """Raises ``RuntimeError`` if the installed NVRTC is too old for the GPU; the message has both versions and the command to upgrade."""
    from cupy_backends.cuda.libs import nvrtc

    version = nvrtc.getVersion()
    if int(arch.removeprefix("sm_").rstrip("a")) in nvrtc.getSupportedArchs():
        return
    needed = FIRST_NVRTC.get(arch)
    package = "nvidia-cuda-nvrtc" + ("-cu12" if version[0] == 12 else "")
    wanted = f">={needed[0]}.{needed[1]}" if needed else ""
    raise RuntimeError(
        f"NVRTC {version[0]}.{version[1]} is older than this GPU ({arch})"
        + (f", which needs {needed[0]}.{needed[1]} or later" if needed else "")
        + f': pip install --upgrade "{package}{wanted}"'
    )


def compile_kernel(module: str, kernel: str | None, arch: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """Compiles one kernel (None: all kernels) of a .cu file for one architecture (``"sm_80"``, ``"sm_90a"``, ...).

    Returns the cubin and the compiler's log. Raises ``RuntimeError`` with the log if the source does not compile.
    """
    from cupy_backends.cuda.libs import nvrtc

    require_architecture(arch)
    # Warning 177 is for unused constants: this kernel need not use all of them.
    only = () if kernel is None else ("-DONLY", f"-DWANTED_{kernel}=~,1", "--diag-suppress=177")
    flags = (f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *definitions(), *only, *options)
    source = (SOURCES / f"{module}.cu").read_text()
    texts, names = ([text.encode() for text in part] for part in (headers().values(), headers()))
    program = nvrtc.createProgram(source, f"{module}.cu", texts, names)
    try:
        nvrtc.compileProgram(program, flags)
        # CuPy cuts off the last byte as if it were the end of a string.
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{module}.cu for {arch}: {error}\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


def cache_directory() -> Path | None:
    """The folder for compiled kernels and verdicts: ``$MODULA_RS_CACHE``, else a folder in the user's cache; None without a home."""
    if chosen := os.environ.get("MODULA_RS_CACHE"):
        return Path(chosen)
    if (place := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(place):  # its specification says to ignore relative paths
        return Path(place) / "modula_rs"
    with suppress(RuntimeError):  # no home directory
        return Path.home() / ".cache" / "modula_rs"
    return None


def write_whole(path: Path, content: bytes) -> bool:
    """Writes a file under another name and renames it, so that no process reads half of it. Returns False if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            scratch.write(content)
        os.replace(scratch.name, path)
    except OSError:
        return False
    return True


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Lets one process at a time enter, by a lock file beside ``path``. Without effect where ``path`` is None or files cannot be locked."""
    try:
        import fcntl

        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115  # closed below
    except (ImportError, AssertionError, OSError):
        yield
        return
    with lock:
        with suppress(OSError):  # some network file systems have no locks; then two processes may do the same work
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def cubin_path(module: str, kernel: str, arch: str) -> Path | None:
    """The file for a compiled kernel, named by a digest of everything that the cubin depends on; None if there is no cache folder."""
    from cupy_backends.cuda.libs import nvrtc

    directory = cache_directory()
    digest = hashlib.sha256(repr((kernel, arch, nvrtc.getVersion(), definitions(), sorted(headers().items()))).encode())
    digest.update((SOURCES / f"{module}.cu").read_bytes())
    return directory and directory / f"{kernel}-{arch}-{digest.hexdigest()[:16]}.cubin"


@functools.cache
def cubin(module: str, kernel: str, arch: str) -> bytes:
    """The compiled kernel, from memory or the cache, else compiled now. Of several processes that need it, only the first compiles it."""
    path = cubin_path(module, kernel, arch)
    found = _read(path)
    if found is None:
        with locked(path):
            found = _read(path)  # another process may have compiled it meanwhile
            if found is None:
                found, _ = compile_kernel(module, kernel, arch)
                if path is not None:
                    write_whole(path, found)
    return found


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError:
        return None


def compile_all(kernels: Iterable[tuple[str, str]], arch: str) -> None:
    """Compiles the kernels (module, kernel) that are not in the cache, several at a time, and reports progress on stderr."""
    missing = [pair for pair in dict.fromkeys(kernels) if _read(cubin_path(*pair, arch)) is None]
    if not missing:
        return
    start = time.monotonic()
    print(f"modula_rs: compiling {len(missing)} GPU kernels for {arch}, once for this machine", file=sys.stderr, flush=True)
    # Threads are enough, because NVRTC runs without Python's interpreter lock.
    with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
        waiting = {pool.submit(cubin, *pair, arch): pair[1] for pair in missing}
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            spent = time.monotonic() - start
            print(f"modula_rs: {done} of {len(missing)} ({waiting[future]}, {spent:.0f} s)", file=sys.stderr, flush=True)
