"""Runs plans on a GPU: allocates the workspace, loads the compiled kernels, and replays a plan's launches as a CUDA graph."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .compile import architecture, compile_all, cubin
from .device import Device, device_of
from .launches import Launch, Operand, Plan, relocate, uploads

INSTALL = 'pip install "modula-rs[cuda13]" (or cuda12)'
#: CUDA's handle of the per-thread default stream: one number that means another stream in each thread.
PER_THREAD_STREAM = 2
#: Registers that each thread must start with. product_wide.cu moves registers between warpgroups, and would wait for missing ones for ever.
REGISTERS = {"product_wide": 168}


@functools.cache
def require_gpu() -> None:
    """Raises ImportError if CuPy is missing or broken, RuntimeError if there is no usable GPU."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise ImportError(f"CuPy is installed, but cannot be imported: {error}") from error
        raise ImportError(f"arrays on a GPU need CuPy, which is not installed: {INSTALL}") from error
    except Exception as error:  # whatever it raises, such as an AttributeError beside a NumPy that it does not know
        raise ImportError(f"CuPy is installed, but cannot be imported: {' '.join(str(error).split())}") from error
    try:
        count, reason = cupy.cuda.runtime.getDeviceCount(), "no device is visible"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        count, reason = 0, str(error)
    if not count:
        raise RuntimeError(f"CuPy is installed, but there is no usable GPU: {reason}")


_lock = threading.Lock()
#: The dynamic shared memory that each kernel has been allowed, by its handle.
_shared: dict[int, int] = {}


@functools.cache
def function(module: str, kernel: str, shared: int, ordinal: int) -> int:
    """The handle of a kernel on one device. The kernel is compiled at first use, and allowed ``shared`` bytes of dynamic shared memory."""
    from cupy_backends.cuda.api import driver

    handle = int(loaded(module, kernel, ordinal).get_function(kernel).ptr)
    wanted = REGISTERS.get(module)
    if wanted is not None:
        found = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_NUM_REGS, handle)
        if found != wanted:
            raise RuntimeError(f"{kernel} was compiled for {found} registers a thread and would hang: it needs {wanted}")
    with _lock:
        # Without this call a kernel may use 48 KB less its static shared memory. The limit is never lowered, because other launches of the
        # kernel may need more.
        if shared > _shared.get(handle, 0):
            driver.funcSetAttribute(handle, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
            _shared[handle] = shared
    return handle


@functools.cache
def loaded(module: str, kernel: str, ordinal: int) -> Any:
    """The CUDA module of one kernel on one device, which is kept as long as the process lives."""
    import cupy

    binary = cubin(module, kernel, architecture(device_of(ordinal).capability))
    with cupy.cuda.Device(ordinal):
        made = cupy.cuda.function.Module()
        made.load(binary)
        return made


def prepare(plan: Plan, ordinal: int) -> None:
    """Compiles every kernel that a plan launches, and loads it on a device, so that running or capturing the plan compiles nothing."""
    kernels = [("upload", "upload", 0), *((item.module, item.kernel, item.shared) for item in plan.launches)]
    compile_all(((module, kernel) for module, kernel, _ in kernels), architecture(device_of(ordinal).capability))
    for kernel in kernels:
        function(*kernel, ordinal)


def enqueue(item: Launch, stream: int, ordinal: int) -> None:
    """Enqueues a launch whose params hold addresses. The params are copied before this returns."""
    from cupy_backends.cuda.api import driver

    handle = function(item.module, item.kernel, item.shared, ordinal)
    pointers = np.array([item.params.ctypes.data], np.uint64)
    driver.launchKernel(handle, *item.grid, 1, item.threads, 1, 1, item.shared, stream, pointers.ctypes.data, 0)


def message(
    plan: Plan, base: int, addresses: Sequence[Sequence[int]], scales: Sequence[np.ndarray[Any, Any] | None]
) -> np.ndarray[Any, Any]:
    """The words that a call uploads: addresses in the order of ``plan.slots``, then the host scales.

    ``addresses``: for each role a sequence with one address for each operand (0: none). For an operand with scales on the device, their
    address is among the addresses, and ``scales`` has None.
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


def constant_uploads(plan: Plan, base: int) -> Iterator[Launch]:
    """Launches that write a plan's constants into a workspace."""
    for offset, constant in plan.constants:
        raw = constant.tobytes()
        words = np.frombuffer(raw + b"\0" * (-len(raw) % 8), np.int64)
        yield from uploads(words, base + offset)


def standing(plan: Plan, base: int) -> tuple[list[Launch], list[Launch]]:
    """The launches that are the same in every call with the workspace at ``base``: uploads of constants, and the plan's own launches."""
    return list(constant_uploads(plan, base)), [relocate(item, base) for item in plan.launches]


class Executable:
    """A plan with its workspace on one device and stream, replayed as one CUDA graph.

    The first call launches the kernels one by one, and the second call captures the launches in a graph. From then on a call is two
    launches from the host, or one if no address and no scale has changed. Calls from several threads run one after the other.
    """

    def __init__(self, plan: Plan, stream: Any, *, graph: bool = True) -> None:
        import cupy

        self.plan, self.ordinal = plan, cupy.cuda.Device().id
        self.stream = stream  # kept alive, because another stream at the same address would be mistaken for it
        prepare(plan, self.ordinal)
        self.memory = cupy.cuda.alloc(plan.bytes)
        self.base = self.memory.ptr
        constants, self.launches = standing(plan, self.base)
        for item in constants:
            enqueue(item, stream.ptr, self.ordinal)
        self.content = b""  # the present contents of the table on the device
        self.captures, self.graph = graph, None
        self.calls = 0
        self.lock = threading.Lock()

    def __call__(self, addresses: Sequence[Sequence[int]], scales: Sequence[np.ndarray[Any, Any] | None]) -> None:
        """Enqueues the plan on its stream; see `message` for the arguments."""
        words = message(self.plan, self.base, addresses, scales)
        content = words.tobytes()
        with self.lock:  # no other call may upload its table between this call's table and launches
            if content != self.content:
                for item in uploads(words, self.base + self.plan.table):
                    enqueue(item, self.stream.ptr, self.ordinal)
                self.content = content
            self.calls += 1
            if self.calls == 2 and self.captures and self.launches:
                self.graph = self.captured()
            if self.graph is not None:
                self.graph.launch(self.stream)
            else:
                self.enqueue_all(self.stream.ptr)

    def enqueue_all(self, stream: int) -> None:
        """Launches the kernels one by one."""
        for item in self.launches:
            enqueue(item, stream, self.ordinal)

    def captured(self) -> Any:
        """The launches as a graph, captured on a separate stream because the legacy default stream cannot be captured."""
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            self.enqueue_all(stream.ptr)
            return stream.end_capture()


class StreamKey:
    """A stream as part of a key. Keys are equal if the addresses are; for the per-thread default stream, only within one thread."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.key = (stream.ptr, threading.get_ident() if stream.ptr == PER_THREAD_STREAM else 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamKey) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=64)
def executable(
    build: Callable[..., Plan], operands: tuple[Operand, ...], device: Device, ordinal: int, stream: StreamKey,
    options: tuple[tuple[str, Any], ...],
) -> Executable:  # fmt: skip
    """The executable for one map, set of shapes, device and stream. Calls on one stream run in order, so they may share its workspace."""
    del ordinal  # it is only a part of the key
    return Executable(build(operands, device, **dict(options)), stream.stream, graph="graph" in device.allowed)


#: The executables that callers have captured in graphs of their own. They are never freed, because a graph may be replayed at any time.
_captured: list[Executable] = []


def run(
    build: Callable[..., Plan], operands: tuple[Operand, ...], device: Device, addresses: Sequence[Sequence[int]],
    scales: Sequence[np.ndarray[Any, Any] | None], **options: Any,
) -> None:  # fmt: skip
    """Enqueues one map on the current device and stream; see `message` for addresses and scales.

    While the caller captures the stream (``Stream.begin_capture``, ``torch.cuda.graph``), the call gets a workspace of its own and uploads
    everything that it needs. So every replay repeats the uploads, and does not depend on other calls between replays.
    """
    import cupy

    stream, ordinal = cupy.cuda.get_current_stream(), cupy.cuda.Device().id
    if cupy.cuda.runtime.streamIsCapturing(stream.ptr):
        call = Executable(build(operands, device, **options), stream, graph=False)
        _captured.append(call)
    else:
        call = executable(build, operands, device, ordinal, StreamKey(stream), tuple(options.items()))
    call(addresses, scales)
