"""As much of PyTorch as benches/gpu/compare.py and rivals.py call, on NumPy arrays; the device is imaginary."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

__version__ = "0 (fake)"


class Tensor(np.ndarray):
    """A NumPy array with the methods of a tensor."""

    mT = property(lambda self: np.swapaxes(self, -1, -2))  # torch's name

    def double(self):
        return self.astype(np.float64)

    def bfloat16(self):
        return self.astype(np.float32)  # NumPy has no bfloat16

    def half(self):
        return self.astype(np.float16).astype(np.float32)  # and multiplies halves slowly

    def to(self, dtype):
        return self.astype(dtype)

    def norm(self, dim, keepdim):
        return np.sqrt((self.astype(np.float64) ** 2).sum(dim, keepdims=keepdim)).astype(self.dtype)

    def clamp_min(self, low):
        return np.maximum(self, low)

    def sqrt(self):
        return np.sqrt(self)

    def flip(self, axis):
        return np.flip(self, axis)

    def abs(self):
        return np.abs(self)

    def amax(self):
        return self.max()

    def numel(self):
        return self.size

    def copy_(self, other):
        self[...] = other

    @property
    def device(self):
        return "cuda"


float32, Tensor.__module__ = np.float32, "torch"


def tensor(values):
    return np.asarray(values).view(Tensor)


def randn(shape, device, generator=None):
    return tensor(np.random.default_rng(0).standard_normal(shape, np.float32))


def zeros(size, dtype, device):
    return tensor(np.zeros(min(size, 1000), dtype))  # it only pushes data out of a cache


def eye(n, device, dtype):
    return tensor(np.eye(n, dtype=dtype))


def empty_like(x):
    return tensor(np.empty_like(x))


def isfinite(x):
    return np.isfinite(x)


def from_dlpack(x):
    return tensor(x)


def addmm(c, a, b, beta=1, alpha=1):
    return beta * c + alpha * (a @ b)


baddbmm = addmm


def compile(function, dynamic, fullgraph):
    return function


class Generator:
    def __init__(self, device):
        pass

    def manual_seed(self, seed):
        return self


class Event:
    def __init__(self, enable_timing):
        self.time = 0.0

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


class CUDAGraph:
    """It replays nothing: the results of the capture stay."""

    def replay(self):
        pass


class Stream:
    cuda_stream = 0


cuda = SimpleNamespace(
    Event=Event, Stream=Stream, CUDAGraph=CUDAGraph, synchronize=lambda: None, _sleep=lambda cycles: None, empty_cache=lambda: None,
    current_stream=Stream, stream=lambda stream: nullcontext(), graph=lambda graph: nullcontext(),
    get_device_properties=lambda number: SimpleNamespace(name="Fake", multi_processor_count=132, L2_cache_size=1 << 20),
)  # fmt: skip
linalg = SimpleNamespace(eigvalsh=lambda x: tensor(np.linalg.eigvalsh(x)))
_dynamo = SimpleNamespace(reset=lambda: None)
