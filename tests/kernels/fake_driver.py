"""A fake GPU for whole programs: CuPy as in fake_cupy.py, with NVRTC and the driver beneath, so that nothing of modula_rs is replaced.

With the folder ``fake`` on the path, ``import cupy`` imports this. ``FAKE_SKIPS`` names modules of kernels (.cu files) whose launches are
checked but not run, because the shim takes long for large matrices; ``FAKE_HANGS`` names modules whose launches never end.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from types import ModuleType, SimpleNamespace

import fake_cupy
import host
import numpy as np
from fake_cupy import Array, CurrentDevice, Stream, state
from modula_rs.kernels import choose, params
from modula_rs.kernels.launches import Launch, _prefixes

#: Static shared memory of a kernel (bytes) beside which the dynamic memory must fit in 48 KB, unless more has been allowed.
STATIC, USUAL = {"lanczos": 3072}, 48 * 1024
CAPABILITY, PROCESSORS, SHARED, CACHE = 90, 132, 232_448, 50 << 20

#: Loaded kernels as (module, kernel), by handle less one; the dynamic shared memory that each has been allowed.
loaded: list[tuple[str, str]] = []
allowed: dict[int, int] = {}


class Event:
    """A moment on a stream, which has passed at once unless the device hangs."""

    def __init__(self, **options):
        self.time, self.hung = 0.0, False

    def record(self, stream=None):
        self.time, self.hung = time.perf_counter(), state.hung

    @property
    def done(self):
        return not self.hung

    def synchronize(self):
        assert not self.hung, "this program waits for a device that hangs"


# ---- NVRTC -------------------------------------------------------------------------------------------------------------------


class NVRTCError(RuntimeError):
    pass


def create(source, name, headers, names):
    assert len(headers) == len(names)
    return SimpleNamespace(module=name.removesuffix(".cu"), kernel="")


def compile_program(program, flags):
    (wanted,) = (flag for flag in flags if flag.startswith("-DWANTED_"))
    program.kernel = wanted.removeprefix("-DWANTED_").removesuffix("=~,1")
    assert "-DONLY" in flags


def cubin(program):
    """As CuPy gives it, without its last byte."""
    return f"{program.module}:{program.kernel}".encode()


nvrtc = SimpleNamespace(
    NVRTCError=NVRTCError, getVersion=lambda: (13, 0), getSupportedArchs=lambda: (80, 86, 89, 90, 100, 120), createProgram=create,
    compileProgram=compile_program, getCUBIN=cubin, getProgramLog=lambda program: "", destroyProgram=lambda program: None,
)  # fmt: skip


# ---- the driver --------------------------------------------------------------------------------------------------------------


class Module:
    """``cupy.cuda.function.Module``: one kernel, from a cubin in memory."""

    def load(self, binary):
        assert binary.endswith(b"\0"), "this cubin is one byte short"
        self.module, self.kernel = binary[:-1].decode().split(":")

    def get_function(self, kernel):
        assert kernel == self.kernel
        loaded.append((self.module, kernel))
        return SimpleNamespace(ptr=len(loaded))


def set_attribute(handle, which, value):
    assert which == driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    allowed[handle] = value


def launch(handle, gx, gy, gz, threads, ty, tz, shared, stream, pointers, extra):
    """cuLaunchKernel: refuses what the driver would refuse, copies the parameters, and runs the kernel on the shim."""
    module, kernel = loaded[handle - 1]
    limit = allowed.get(handle, USUAL - STATIC.get(module, 0))
    if not (0 < gx < 2**31 and 0 < gy < 65536 and gz == ty == tz == 1 and 0 < threads <= 1024 and shared <= min(limit, SHARED)):
        raise RuntimeError("CUDA_ERROR_INVALID_VALUE")
    struct = next(params.STRUCTS[name] for name in _prefixes(kernel) if name in params.STRUCTS)
    (address,) = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_uint64))[:1]
    values = np.frombuffer(ctypes.string_at(address, struct.itemsize), struct)[0].copy()
    item = Launch(module, kernel, (gx, gy), threads, shared, np.array(values, struct))
    state.enqueued.append((kernel, stream, state.device))
    graph = state.streams[stream].graph
    graph.items.append(item) if graph is not None else run(item)


def run(item):
    if item.module in os.environ.get("FAKE_HANGS", "").split():
        state.hung = True
    elif not state.hung and item.module not in os.environ.get("FAKE_SKIPS", "").split():
        host.launch(item)


driver = SimpleNamespace(
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8, CU_FUNC_ATTRIBUTE_NUM_REGS=4, funcSetAttribute=set_attribute,
    funcGetAttribute=lambda which, handle: 168, launchKernel=launch,
)  # fmt: skip


# ---- CuPy --------------------------------------------------------------------------------------------------------------------


class Graph(fake_cupy.Graph):
    def launch(self, stream=None):
        state.replays += 1
        for item in self.items:
            run(item)


class WholeStream(Stream):
    def begin_capture(self):
        self.graph = Graph()

    def synchronize(self):
        assert not state.hung, "this program waits for a device that hangs"


class Device(CurrentDevice):
    compute_capability = str(CAPABILITY)

    def synchronize(self):
        assert not state.hung, "this program waits for a device that hangs"


class WholeArray(Array):
    """With the methods that only CuPy's arrays have."""

    def get(self):
        return np.array(self)

    def set(self, values):
        self[...] = values


def cupy() -> ModuleType:
    """The module ``cupy``, with all that the kernels' check and the benchmarks use."""
    fake = fake_cupy.module()
    state.hung = False

    def placed(function):
        def call(*args, **kwargs):
            made = np.asarray(function(*args, **kwargs))
            whole = host.aligned(made.nbytes)[: made.nbytes].view(made.dtype).reshape(made.shape).view(WholeArray)
            whole[...] = made
            return whole

        return call

    def empty(shape, dtype="float32"):
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        return host.aligned(size).view(dtype).reshape(shape).view(WholeArray)

    fake.ndarray, fake.empty, fake.empty_like = WholeArray, empty, lambda like: empty(like.shape, like.dtype)
    for name in ("zeros", "ones", "zeros_like", "asarray", "ascontiguousarray", "broadcast_to"):
        setattr(fake, name, placed(getattr(np, name)))
    fake.matmul = lambda a, b: np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)  # NumPy's own is slow in halves
    fake.copyto, fake.asnumpy, fake.from_dlpack = np.copyto, np.asarray, lambda x: x.view(WholeArray)
    rng = np.random.default_rng(0)
    fake.random = SimpleNamespace(standard_normal=placed(lambda shape, dtype: rng.standard_normal(shape, dtype)))
    fake.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    fake.RawKernel = lambda source, name: lambda grid, block, arguments: None  # the profile's spin
    fake.cuda.Device, fake.cuda.Stream, fake.cuda.Event = Device, WholeStream, Event
    fake.cuda.ExternalStream = lambda ptr: state.streams.get(ptr) or WholeStream(ptr)
    fake.cuda.get_elapsed_time = lambda start, end: 1e3 * (end.time - start.time)
    fake.cuda.function = SimpleNamespace(Module=Module)
    runtime = fake.cuda.runtime
    runtime.cudaDevAttrMultiProcessorCount, runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, runtime.cudaDevAttrL2CacheSize = range(3)
    runtime.deviceGetAttribute = lambda which, number: (PROCESSORS, SHARED, CACHE)[which]
    return fake


def install() -> None:
    """Puts the fake modules in the places of CuPy's own, and lets the wide kernel take small matrices."""
    choose.WIDE_TILES = 2  # whose proof would take minutes of float64 SVD
    api, libs = SimpleNamespace(driver=driver), SimpleNamespace(nvrtc=nvrtc)
    cuda = ModuleType("cupy_backends.cuda")
    modules = {
        "cupy": cupy(), "cupy_backends": ModuleType("cupy_backends"), "cupy_backends.cuda": cuda, "cupy_backends.cuda.api": api,
        "cupy_backends.cuda.libs": libs,
    }  # fmt: skip
    sys.modules.update(modules)
