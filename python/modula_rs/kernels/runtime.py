"""Plans on a GPU: the workspace, the compiled kernels, and the CUDA graph that replays a plan's launches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .compile import architecture, cubin_path
from .device import Device, current
from .plan import Launch, Leaf, Plan, relocate, uploads

INSTALL = 'pip install "modula-rs[cuda13]" (or cuda12)'


@functools.cache
def require_gpu() -> None:
    """Raises the one error that says what is missing: ImportError without CuPy, RuntimeError without a usable GPU."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(f"arrays on an NVIDIA GPU need CuPy, which is not installed: {INSTALL}") from error
    try:
        count, reason = cupy.cuda.runtime.getDeviceCount(), "no device is visible"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        count, reason = 0, str(error)
    if not count:
        raise RuntimeError(f"CuPy is installed, but there is no usable NVIDIA GPU: {reason}")


#: Shared memory that each kernel is allowed, by its handle.
_allowed: dict[int, int] = {}


@functools.cache
def function(module: str, kernel: str, shared: int, device: int) -> int:
    """Handle of a kernel on one device, compiled at first use and allowed its shared memory."""
    from cupy_backends.cuda.api import driver

    handle = int(loaded(module, device).get_function(kernel).ptr)
    # Never less than before: a launch of another size may come back.
    if shared > _allowed.get(handle, 48 * 1024):
        driver.funcSetAttribute(handle, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        _allowed[handle] = shared
    return handle


@functools.cache
def loaded(module: str, device: int) -> Any:
    """The module on one device, kept alive for the process."""
    import cupy

    with cupy.cuda.Device(device):
        binary = cupy.cuda.function.Module()
        binary.load_file(str(cubin_path(module, architecture(current().capability))))
        return binary


def enqueue(item: Launch, stream: int, device: int) -> None:
    """One launch whose params hold addresses; they are copied before this returns."""
    from cupy_backends.cuda.api import driver

    handle = function(item.module, item.kernel, item.shared, device)
    pointers = np.array([item.params.ctypes.data], np.uint64)
    driver.launchKernel(handle, *item.grid, 1, item.threads, 1, 1, item.shared, stream, pointers.ctypes.data, 0)


def message(
    plan: Plan, base: int, addresses: Sequence[Sequence[int]], scales: Sequence[np.ndarray[Any, Any] | None]
) -> np.ndarray[Any, Any]:
    """The words a call uploads: addresses in the order of ``plan.slots``, then the host scales.

    ``addresses``: one sequence for each role, one address for each leaf (0: none). A leaf whose scales are on the device has None in
    ``scales`` and their address among the addresses.
    """
    words = np.zeros(plan.words, np.int64)
    numbers, table = words.view(np.float64), base + plan.table
    for role, row in zip(plan.slots, addresses, strict=True):
        words[role : role + len(row)] = row
    for i, (start, values) in enumerate(zip(plan.scales, scales, strict=True)):
        if values is not None:
            words[plan.slots.scale + i] = table + 8 * start
            numbers[start : start + values.size] = values
    return words


class Executable:
    """A plan with its workspace on one device, replayed as one CUDA graph on one stream.

    The first call launches the kernels one by one (and so compiles and loads them), the second captures them, later ones replay the
    graph: two launches from the host, and one when neither an address nor a scale has changed.
    """

    def __init__(self, plan: Plan) -> None:
        import cupy

        self.plan, self.device = plan, cupy.cuda.Device().id
        self.memory = cupy.cuda.alloc(plan.bytes)
        self.base = self.memory.ptr
        workspace = cupy.ndarray((plan.bytes,), cupy.uint8, self.memory)
        for offset, constant in plan.constants:
            workspace[offset : offset + constant.nbytes].set(np.frombuffer(constant.tobytes(), np.uint8))
        self.launches = [relocate(item, self.base) for item in plan.launches]
        self.content = b""  # of the table on the device
        self.graph: Any = None
        self.calls = 0

    def __call__(self, addresses: Sequence[Sequence[int]], scales: Sequence[np.ndarray[Any, Any] | None]) -> None:
        """Enqueues the plan on the current stream; see `message` for the arguments."""
        import cupy

        stream = cupy.cuda.get_current_stream()
        words = message(self.plan, self.base, addresses, scales)
        content = words.tobytes()
        if content != self.content:
            for item in uploads(words, self.base + self.plan.table):
                enqueue(item, stream.ptr, self.device)
            self.content = content
        self.calls += 1
        if self.calls == 2:
            self.capture()
        if self.graph is not None:
            self.graph.launch(stream)
        else:
            self.enqueue_all(stream.ptr)

    def enqueue_all(self, stream: int) -> None:
        """Launches the kernels one by one."""
        for item in self.launches:
            enqueue(item, stream, self.device)

    def capture(self) -> None:
        """Records the launches; a stream of its own, since the legacy default stream cannot be captured."""
        import cupy

        if not self.launches:
            return
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            self.enqueue_all(stream.ptr)
            self.graph = stream.end_capture()


def constant_uploads(plan: Plan, base: int) -> Iterator[Launch]:
    """Launches that write a plan's constants, for a workspace that lives only as long as one call."""
    for offset, constant in plan.constants:
        raw = constant.tobytes()
        words = np.frombuffer(raw + b"\0" * (-len(raw) % 8), np.int64)
        yield from uploads(words, base + offset)


@functools.lru_cache(maxsize=64)
def executable(
    build: Callable[..., Plan], leaves: tuple[Leaf, ...], device: Device, ordinal: int, stream: int, options: tuple[tuple[str, Any], ...]
) -> Executable:
    """The executable for one map, set of shapes, device and stream: two calls on one stream run in order and may share a workspace."""
    del ordinal, stream  # only part of the key
    return Executable(build(list(leaves), device, **dict(options)))
