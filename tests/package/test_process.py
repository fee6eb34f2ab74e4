"""Events in the life of a process: forks, Ctrl-C, refused memory and threads. Each case runs in a process of its own."""

import os
import subprocess
import sys

import modula_rs as mr
import numpy as np
import pytest

#: A model large enough for the pool of threads to be used.
LARGE = """
import os, resource, signal, sys, threading, time
import numpy as np
import modula_rs as mr
m = mr.Linear(256, 256) ** 4
w = m.initialize(0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The end of a process, which has a minute for a task of seconds: a process that hangs fails the test."""
    return subprocess.run(
        [sys.executable, "-c", LARGE + code],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ, JAX_PLATFORMS="cpu", OPENBLAS_NUM_THREADS="1", **environment),
    )


def said(code: str, **environment: str) -> list[str]:
    done = run(code, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


FORKS = {
    "by hand": """
m.dualize(w)
child = os.fork()
if child == 0:
    expected = m.dualize(w)
    os._exit(mr.num_threads() if m.norm(expected) > 0.9 else 77)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == mr.num_threads())
""",
    "with a pool of one's own size": """
mr.set_num_threads(3)
m.dualize(w)
child = os.fork()
if child == 0:
    m.dualize(w)
    os._exit(mr.num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3)
""",
    "a child of a child": """
m.dualize(w)
child = os.fork()
if child == 0:
    m.dualize(w)
    grandchild = os.fork()
    if grandchild == 0:
        m.dualize(w)
        os._exit(5)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5)
""",
    "while other threads are at work": """
stop = threading.Event()
def work():
    while not stop.is_set():
        m.dualize(w)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        m.dualize(w)
        os._exit(5)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
print(codes == [5] * 5)
""",
    "by multiprocessing": """
import multiprocessing
m.dualize(w)
def norm(scale):
    return round(m.norm(m.normalize([scale * a for a in w])), 1)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(norm, [1.0, 2.0, 3.0]) == [1.0] * 3)
""",
    # Like a loader of batches: workers that live beside the training loop, with a queue of tasks and a queue of results.
    "as a loader of batches": """
import multiprocessing
context = multiprocessing.get_context("fork")
asked, made = context.SimpleQueue(), context.SimpleQueue()
def worker():
    while (seed := asked.get()) is not None:
        made.put(m.dualize(m.initialize(seed)))
m.dualize(w)
workers = [context.Process(target=worker, daemon=True) for _ in range(2)]
for each in workers:
    each.start()
for seed in range(4):
    asked.put(seed)
norms = [m.norm(m.dualize(made.get())) for _ in range(4)]
for each in workers:
    asked.put(None)
for each in workers:
    each.join()
print(all(abs(norm - 1) < 0.02 for norm in norms))
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are a thing of POSIX systems")
@pytest.mark.parametrize("way", FORKS)
def test_maps_answer_after_a_fork(way: str):
    assert said(FORKS[way]) == ["True"]


#: Calls that would last for minutes, because a matrix of low rank takes many rotations.
LONG = {
    "project": "big.project(rank)",
    "dual_norm": "big.dual_norm(rank)",
    "dualize": "[big.dualize(full) for _ in range(10_000)]",
    "norm": "[big.norm(full) for _ in range(100_000)]",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_ends_a_call(name: str):
    code = f"""
big = mr.Linear(2000, 2000)
full = big.initialize(0)
rank = [np.outer(np.sin(np.arange(2000)), np.cos(np.arange(2000))).astype(np.float32) + np.eye(2000, dtype=np.float32)[:, ::-1] * 1e-9]
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    {LONG[name]}
except KeyboardInterrupt:
    print("interrupted")
print(round(m.norm(m.dualize(w)), 1))
"""
    assert said(code) == ["interrupted", "1.0"]


@pytest.mark.slow
def test_a_handler_that_returns_lets_the_call_go_on():
    code = """
heard = []
signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.05)
big = mr.Linear(1500, 1500)
for _ in range(100):
    update = big.dualize(big.initialize(0))
    if heard:
        break
print(len(heard), round(big.norm(update), 1))
"""
    assert said(code) == ["1 1.0"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to a limit of its address space")
@pytest.mark.parametrize("call", ["dualize", "normalize", "project", "norm", "dual_norm"])
def test_memory_that_is_not_there_is_a_memory_error(call: str):
    code = f"""
models = [mr.Bias(20_000_000), mr.Linear(500, 400), mr.Linear(2, 2) ** 100_000, mr.Embed(64, 200_000)]
dtypes = [np.float16, np.float32, np.float64, np.float16]
weights = [[a.astype(dtype) + 1 for a in m.initialize(0)] for m, dtype in zip(models, dtypes)]
m.dualize(w)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
results = set()
for m, arrays in zip(models, weights):
    for left in (5, 20, 60, 150, 400):
        resource.setrlimit(resource.RLIMIT_AS, (size + left * 1_000_000, resource.RLIM_INFINITY))
        try:
            m.{call}(arrays)
            results.add("answered")
        except MemoryError:
            results.add("MemoryError")
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(*sorted(results))
"""
    assert said(code) == ["MemoryError answered"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to a limit of its address space")
def test_threads_that_cannot_be_started_are_done_without():
    # Memory for some of the threads' stacks, or for none; glibc is told not to give each thread an arena of its own.
    code = """
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(os.environ["LEFT"]), resource.RLIM_INFINITY))
try:
    update = m.dualize(w)
except MemoryError:
    print("MemoryError")
else:
    print(round(m.norm(update), 1))
"""
    for left in ("1500000", "6000000", "12000000", "36000000", "200000000"):
        assert said(code, LEFT=left, RAYON_NUM_THREADS="16", MALLOC_ARENA_MAX="1") in (["1.0"], ["MemoryError"])
    assert said(code, LEFT="200000000", RAYON_NUM_THREADS="16", MALLOC_ARENA_MAX="1") == ["1.0"]


def test_the_environment_names_an_instruction_set():
    code = """
import numpy as np, modula_rs as mr
from modula_rs import _core
x = np.random.default_rng(0).standard_normal((20, 70))
print(_core.instruction_set())
print(np.abs(np.linalg.svd(mr.Linear(20, 70).dualize([x])[0], compute_uv=False) / np.sqrt(20 / 70) - 1).max() < 0.01)
"""
    assert said(code, MODULA_RS_INSTRUCTION_SET="baseline") == ["baseline", "True"]
    assert said(code, MODULA_RS_INSTRUCTION_SET="") == said(code)


def test_an_instruction_set_that_is_not_there_is_refused():
    ended = run("import modula_rs", MODULA_RS_INSTRUCTION_SET="AVX9")
    assert ended.returncode == 1
    assert 'MODULA_RS_INSTRUCTION_SET must be AVX-512, AVX2, Neon or baseline, whichever this processor has, got "AVX9"' in ended.stderr


@pytest.mark.slow
def test_absurd_numbers_of_threads_are_refused_or_capped():
    limit = max(16, 4 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 16)
    for number in (limit + 1, 65_536, 2**62, 10**30):
        with pytest.raises(ValueError, match=f"at most {limit} .*got {number}"):
            mr.set_num_threads(number)
    for wrong in (None, "2", 2.5, (2,), [2]):
        with pytest.raises(TypeError):
            mr.set_num_threads(wrong)  # type: ignore[arg-type]
    for number in ("300", "65536", "99999999999999999999", "-1", "none"):
        assert 1 <= int(said("print(mr.num_threads(), len(m.dualize(w)))", RAYON_NUM_THREADS=number)[0].split()[0]) <= limit


@pytest.mark.parametrize(
    ("module", "shape"),
    [(mr.Conv2D(0, 0, kernel_size=100_000), (100_000, 100_000, 0, 0)), (mr.Linear(0, 0) ** 100_000_000, (100_000_000, 0, 0))],
)
def test_arrays_without_numbers_cost_nothing_whatever_their_other_axes(module: mr.Module, shape: tuple[int, ...]):
    w = [np.zeros(shape, np.float32)]
    assert (module.norm(w), module.dual_norm(w)) == (0.0, 0.0)
    for made in (module.normalize(w), module.dualize(w), module.project(w), module.regularize(w, 0.1)):
        assert made[0].shape == shape


def test_what_cannot_be_listed_is_refused_by_its_number():
    with pytest.raises(ValueError, match="100000000 copies"):
        (mr.Linear(4, 4) ** 100_000_000).targets()


def test_a_tree_that_doubles_with_every_line_is_refused_by_its_size():
    m: mr.Module = mr.Linear(4, 4)
    for _ in range(26):
        m = m + m
    assert "more rows" in str(m)
    for walk in (lambda: m.leaves, lambda: m.sharpness, lambda: m.norm([])):
        with pytest.raises(ValueError, match="parts, counted wherever they occur"):
            walk()


def test_a_large_type_that_many_parts_pass_on_is_refused_by_its_size():
    m: mr.Module = mr.Identity()
    for _ in range(15):
        m = m @ m
    m = m @ ((mr.Bias(1),) * 1000)
    assert "more rows" in str(m)
    assert len(m.leaves) == 1000
    for walk in (lambda: m.sharpness, m.certificate):
        with pytest.raises(ValueError, match=r"types of all modules has \d+ parts"):
            walk()


@pytest.mark.parametrize("length", [65_534, 65_535, 65_536, 70_000])
def test_names_of_any_length_are_shown(length: int):
    assert "x" * length in str(mr.Linear(2, 2).named("x" * length))
    assert "y" * length in str(mr.Linear(2, 2, share="y" * length))
