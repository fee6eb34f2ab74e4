"""CuPy without a GPU: NumPy arrays with an address and a device, streams that can be captured, and the shim in place of the driver."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import host
import numpy as np
import pytest
from modula_rs.backend import gpu
from modula_rs.kernels import runtime, verdicts
from modula_rs.kernels.device import H200, Device


class Array(np.ndarray):
    """A NumPy array that tells its address and its device, as CuPy's arrays do."""

    on = 0

    def __array_finalize__(self, source):
        self.on = getattr(source, "on", state.device)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    @property
    def device(self):
        return SimpleNamespace(id=self.on)


class CurrentDevice:
    """``cupy.cuda.Device``: the current device, or this one inside a ``with`` block."""

    def __init__(self, number=None):
        self.id = state.device if number is None else number

    def __enter__(self):
        self.before, state.device = state.device, self.id
        return self

    def __exit__(self, *error):
        state.device = self.before


class Stream:
    """A stream that runs its work at once or, while it is captured, records it."""

    numbers = iter(range(100, 10**6))

    def __init__(self, ptr=None, non_blocking=False):
        self.ptr = next(Stream.numbers) if ptr is None else ptr
        self.graph = None
        state.streams[self.ptr] = self

    def __enter__(self):
        self.before, state.stream = state.stream, self
        return self

    def __exit__(self, *error):
        state.stream = self.before

    def begin_capture(self):
        self.graph = Graph()

    def end_capture(self):
        graph, self.graph = self.graph, None
        return graph


class Graph:
    """The work that a stream recorded while it was captured."""

    def __init__(self):
        self.items = []

    def launch(self, stream=None):
        state.replays += 1
        for item in self.items:
            host.launch(item)


class State(threading.local):
    device = 0
    stream = None


class Both:
    """State of a fake module: the current device and stream belong to each thread, all other attributes are shared."""

    def __init__(self):
        object.__setattr__(self, "own", State())
        object.__setattr__(self, "shared", SimpleNamespace(streams={}, enqueued=[], replays=0))

    def __getattr__(self, name):
        return getattr(self.own if name in ("device", "stream") else self.shared, name)

    def __setattr__(self, name, value):
        setattr(self.own if name in ("device", "stream") else self.shared, name, value)


state = Both()


def enqueue(item, stream, ordinal):
    """`runtime.enqueue` with the shim."""
    state.enqueued.append((item.kernel, stream, ordinal))
    graph = state.streams[stream].graph
    if graph is not None:
        graph.items.append(item)
    else:
        host.launch(item)


def module(devices: int = 1) -> ModuleType:
    """The module that replaces CuPy."""
    fake = ModuleType("cupy")
    fake.ndarray, fake.float32, fake.__version__ = Array, np.float32, "14.2.0"
    for function in (np.ascontiguousarray, np.broadcast_to, np.zeros, np.empty, np.empty_like, np.asarray, np.concatenate, np.zeros_like):
        setattr(fake, function.__name__, lambda *args, _of=function, **kwargs: _of(*args, **kwargs).view(Array))

    def alloc(size):
        memory = host.aligned(size)
        return SimpleNamespace(ptr=memory.ctypes.data, memory=memory)

    null = Stream(0)
    fake.cuda = SimpleNamespace(
        Device=CurrentDevice, Stream=Stream, alloc=alloc, get_current_stream=lambda: state.stream or null,
        runtime=SimpleNamespace(
            getDeviceCount=lambda: devices, CUDARuntimeError=RuntimeError, is_hip=False,
            streamIsCapturing=lambda ptr: state.streams[ptr].graph is not None,
            getDeviceProperties=lambda number: {"name": b"NVIDIA Shim"}, driverGetVersion=lambda: 13000,
        ),
    )  # fmt: skip
    return fake


@pytest.fixture
def fake_cupy(monkeypatch, tmp_path):
    """Replaces CuPy, allows every kernel, and starts without verdicts on disk."""
    fake = module()
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 0), getSupportedArchs=lambda: (80, 90))
    for name, made in {
        "cupy": fake, "cupy_backends": ModuleType("cupy_backends"), "cupy_backends.cuda": ModuleType("cupy_backends.cuda"),
        "cupy_backends.cuda.libs": SimpleNamespace(nvrtc=nvrtc),
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path))
    monkeypatch.setattr(runtime, "prepare", lambda plan, ordinal: None)
    monkeypatch.setattr(runtime, "enqueue", enqueue)
    monkeypatch.setattr(gpu, "device_of", lambda ordinal: H200)
    monkeypatch.setattr(verdicts, "machine_of", lambda ordinal: machine(H200))
    monkeypatch.setattr(gpu, "_default", "kernels")
    state.enqueued, state.replays = [], 0
    clear = (gpu.forget, runtime.require_gpu.cache_clear, runtime.executable.cache_clear)
    for each in clear:
        each()
    yield fake
    for each in clear:
        each()


def machine(device: Device) -> verdicts.Machine:
    """A machine with this device."""
    return verdicts.Machine("NVIDIA Shim", device.capability, device.processors, 13000, (13, 0), "14.2.0", "sources")


def record(**families: str) -> None:
    """Writes verdicts for the fixture's machine, as a check would."""
    for family, verdict in families.items():
        assert verdicts.record(machine(H200), family, {"verdict": verdict})
    gpu.forget()
