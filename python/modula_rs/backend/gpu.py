"""Chooses what runs the maps on a GPU: our kernels where they are proved on this machine, CuPy's own products elsewhere."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from modula_rs.kernels import runtime, verdicts
from modula_rs.kernels.device import Device, device_of

GPU_BACKENDS = ("auto", "kernels", "portable")
CHECK = "python -m modula_rs.kernels.check"
_chosen: ContextVar[str | None] = ContextVar("_chosen", default=None)
_default = os.environ.get("MODULA_RS_GPU_BACKEND") or "auto"


def set_gpu_backend(name: str) -> None:
    """Chooses what runs the maps on a GPU, for this process. Functions that JAX has compiled already keep what they were compiled with.

    Args:
        name: "auto", the kernels that have been proved on this machine (``python -m modula_rs.kernels.check``), and portable code for
            the rest; "kernels", also the kernels that are not proved here; or "portable", only CuPy's (and JAX's) own products. The
            environment variable MODULA_RS_GPU_BACKEND sets the choice before the start.

    Raises:
        ValueError: another name.

    >>> import modula_rs as mr
    >>> mr.set_gpu_backend("auto")
    """
    global _default
    _default = _checked(name)


@contextmanager
def gpu_backend(name: str) -> Iterator[None]:
    """The same choice for all calls (in JAX: for all traces) inside a ``with`` block, in this thread.

    >>> import modula_rs as mr
    >>> with mr.gpu_backend("portable"):
    ...     mr.gpu_status()["backend"]
    'portable'
    """
    token = _chosen.set(_checked(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def _checked(name: str, named: str = "the GPU backend") -> str:
    if name not in GPU_BACKENDS:
        raise ValueError(f"{named} must be one of {', '.join(GPU_BACKENDS)}, got {name!r}")
    return name


def choice() -> str:
    """The choice in force here: "auto", "kernels" or "portable"; ValueError if the environment variable has another name."""
    return _chosen.get() or _checked(_default, "MODULA_RS_GPU_BACKEND")


def device(ordinal: int) -> Device | None:
    """The GPU, with the kernels that may run on it under the choice in force; None if no kernel may.

    If nobody has checked the kernels on this machine, "auto" warns once with the command.
    """
    if choice() == "auto" and unfit(ordinal) is None:
        _tell(ordinal)
    return _usable(ordinal)


def _usable(ordinal: int) -> Device | None:
    name = choice()
    if name == "portable":
        return None
    reason = unfit(ordinal)
    if reason is not None:
        if name == "kernels":
            raise RuntimeError(f'modula_rs\' GPU kernels cannot run here: {reason}; set_gpu_backend("auto") takes the portable way')
        return None
    found = verdicts.allowed(verdicts.FAMILIES) if name == "kernels" else _proved(ordinal)
    return device_of(ordinal)._replace(allowed=found) if found else None


@functools.cache
def unfit(ordinal: int) -> str | None:
    """The reason why no kernel can run on this GPU, or None."""
    import cupy

    if cupy.cuda.runtime.is_hip:
        return "they are for NVIDIA GPUs, and this CuPy is for ROCm"
    major, minor = device_of(ordinal).capability
    if (major, minor) < (8, 0):
        return f"they need compute capability 8.0 or later, this GPU has {major}.{minor}"
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # of the loader of libraries, which differs between versions of CuPy
        return f"they are compiled by NVRTC, which cannot be loaded ({error})"
    return None


@functools.cache
def _proved(ordinal: int) -> frozenset[str]:
    """The kernels that were proved on this machine, as of the first call."""
    found = verdicts.read(verdicts.machine_of(ordinal))
    return verdicts.allowed(name for name, entry in found.items() if entry["verdict"] == verdicts.OK)


@functools.cache
def _tell(ordinal: int) -> None:
    machine = verdicts.machine_of(ordinal)
    if not verdicts.read(machine):
        warnings.warn(
            f"modula_rs: its CUDA kernels have not been checked on this {machine.title}; using cuBLAS, which is slower. "
            f"Check once: {CHECK}",
            RuntimeWarning,
            stacklevel=3,
        )


def gpu_status(ordinal: int | None = None) -> dict[str, Any]:
    """The state of a GPU and its kernels, and what would run, for people and for programs that log it.

    Args:
        ordinal: the number of the GPU, by default the current one.

    Returns:
        ``backend`` (the choice), ``device`` (its name, or None), ``reason`` (why there is no device, or why no kernel can run on it; else
        None), ``families`` (the verdict on each family of kernels on this machine) and ``allowed`` (names of the kernels that may run now).

    >>> import modula_rs as mr
    >>> sorted(mr.gpu_status())
    ['allowed', 'backend', 'device', 'families', 'reason']
    """
    status: dict[str, Any] = {"backend": choice(), "device": None, "reason": None, "families": {}, "allowed": []}
    try:
        runtime.require_gpu()
        import cupy

        ordinal = cupy.cuda.Device().id if ordinal is None else ordinal
        name = cupy.cuda.runtime.getDeviceProperties(ordinal)["name"]
        status["device"] = name.decode() if isinstance(name, bytes) else str(name)
        status["reason"] = unfit(ordinal)
        if status["reason"] is None:
            found = verdicts.read(verdicts.machine_of(ordinal))
            status["families"] = {family: found.get(family, {"verdict": "not checked"})["verdict"] for family in verdicts.FAMILIES}
            usable = _usable(ordinal)
            status["allowed"] = sorted(usable.allowed) if usable else []
    except (ImportError, RuntimeError) as error:
        status["reason"] = str(error)
    return status


def forget() -> None:
    """Makes the next call read verdicts and limits anew, after a check or in tests."""
    for cached in (unfit, _proved, _tell):
        cached.cache_clear()
