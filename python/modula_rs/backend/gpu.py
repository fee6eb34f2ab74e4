"""Which way the maps go on a GPU: our kernels where they are proved on this machine, CuPy's own products elsewhere."""

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
_default = os.environ.get("MODULA_RS_GPU_BACKEND", "auto")


def set_gpu_backend(name: str) -> None:
    """Chooses what runs the maps on a GPU, for this process; what is compiled by JAX already stays as it is.

    Args:
        name: "auto", the kernels that have been proved on this machine (``python -m modula_rs.kernels.check``) and the portable way for all
            else; "kernels", those that nobody has proved here as well; or "portable", only CuPy's (and JAX's) own products. The
            environment variable MODULA_RS_GPU_BACKEND sets the same before the start.

    Raises:
        ValueError: for another name.

    >>> import modula_rs as mr
    >>> mr.set_gpu_backend("auto")
    """
    global _default
    _default = _checked(name)


@contextmanager
def gpu_backend(name: str) -> Iterator[None]:
    """The same for what is called (in JAX: traced) inside a ``with`` block, in this thread.

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


def _checked(name: str) -> str:
    if name not in GPU_BACKENDS:
        raise ValueError(f"the GPU backend must be one of {', '.join(GPU_BACKENDS)}, got {name!r}")
    return name


def choice() -> str:
    """What is chosen here: "auto", "kernels" or "portable"."""
    return _chosen.get() or _checked(_default)


def device(ordinal: int) -> Device | None:
    """The GPU with what may run on it, as chosen; None: nothing of ours."""
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
    """Why the kernels cannot run on this GPU at all, or None."""
    import cupy

    if cupy.cuda.runtime.is_hip:
        return "they are for NVIDIA GPUs, and this CuPy is for ROCm"
    major, minor = device_of(ordinal).capability
    if (major, minor) < (8, 0):
        return f"they need compute capability 8.0 or later, this GPU has {major}.{minor}"
    return None


@functools.cache
def _proved(ordinal: int) -> frozenset[str]:
    """What has been proved on this machine, as it stood at the first question; says once what to do if nobody has asked."""
    machine = verdicts.machine_of(ordinal)
    found = verdicts.read(machine)
    if not found:
        warnings.warn(
            f"modula_rs: its CUDA kernels have not been checked on this {machine.title}; using cuBLAS, which is slower. "
            f"Check once: {CHECK}",
            RuntimeWarning,
            stacklevel=2,
        )
    return verdicts.allowed(name for name, entry in found.items() if entry["verdict"] == verdicts.OK)


def gpu_status() -> dict[str, Any]:
    """What is known of the GPU and its kernels, and what would run: for people, and for programs that log it.

    Returns:
        ``backend`` (as chosen), ``device`` (its name, or None), ``reason`` (why there is none, or why no kernel can run on it; else None),
        ``families`` (verdict of each family of kernels on this machine) and ``allowed`` (names of what may run now).

    >>> import modula_rs as mr
    >>> sorted(mr.gpu_status())
    ['allowed', 'backend', 'device', 'families', 'reason']
    """
    status: dict[str, Any] = {"backend": choice(), "device": None, "reason": None, "families": {}, "allowed": []}
    try:
        runtime.require_gpu()
        import cupy

        ordinal = cupy.cuda.Device().id
        name = cupy.cuda.runtime.getDeviceProperties(ordinal)["name"]
        status["device"] = name.decode() if isinstance(name, bytes) else str(name)
        status["reason"] = unfit(ordinal)
        if status["reason"] is None:
            found = verdicts.read(verdicts.machine_of(ordinal))
            status["families"] = {family: found.get(family, {"verdict": "not checked"})["verdict"] for family in verdicts.FAMILIES}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                usable = device(ordinal)
            status["allowed"] = sorted(usable.allowed) if usable else []
    except (ImportError, RuntimeError) as error:
        status["reason"] = str(error)
    return status


def forget() -> None:
    """Reads verdicts and limits anew at the next call: after a check, or in tests."""
    for cached in (unfit, _proved):
        cached.cache_clear()
