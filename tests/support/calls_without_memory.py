"""Every call into Rust, while memory is refused: run by `tests/package/test_memory_refused.py`, in processes of their own.

Arguments: `rust` (the preloaded allocator refuses Rust's requests at random) or `python` (Python refuses one of its own requests), the
seed, and how often to go through the calls. Each call must give the right answer or raise a MemoryError.
"""

import ctypes
import json
import sys

import modula_rs as mr
import numpy as np
from modula_rs import _core
from modula_rs.backend.numpy import _native

ONE = np.ones(3, np.float32)
COUNTS = {"answered": 0, "MemoryError": 0, "refused": 0}

#: Every atom, powers, shared arrays, long names, a wide tuple.
NETWORKS = [
    lambda: mr.Linear(200, 200) ** 3,
    lambda: mr.GPT(20, 8, 2, 8, 4, 4, 2, tie_embeddings=True),
    lambda: mr.ResCNN(4, 2, 1, 3, 2),
    lambda: mr.Scale(3) @ mr.Bias(3) @ (mr.Tanh() @ mr.Linear(3, 3, share="s" * 3000).named("n" * 3000)) ** 2,
    lambda: mr.Add() @ tuple(mr.Linear(3, 3) for _ in range(300)),
]
#: These make their network anew, because a module keeps the tables of its norm.
TABLES = [str, lambda m: repr(m.leaves), lambda m: repr(m.targets()), lambda m: repr(m.sharpness), lambda m: m.fingerprint]
MAPS = [
    lambda m, w: m.normalize(w),
    lambda m, w: m.dualize(w),
    lambda m, w: m.project(w),
    lambda m, w: m.radius(w),
    lambda m, w: m.regularize(w, 0.1),
    lambda m, w: [m.norm(w), m.dual_norm(w)],
    lambda m, w: m.normalize(w, vectors=m.normalize(w, vectors=None)[1])[0],
]


def calls():
    networks = [build() for build in NETWORKS]
    for call in TABLES:
        for build in NETWORKS:
            yield lambda call=call, build=build: call(build())
    for m in networks:
        w = m.initialize(0)
        for arrays in (w, [a.astype(np.float16) for a in w]):
            for call in MAPS:
                yield lambda call=call, m=m, arrays=arrays: call(m, arrays)


def tried(call, expected, begin, end):
    begin()
    try:
        answer = call()
    except MemoryError:
        COUNTS["MemoryError"] += 1
        return
    finally:
        end()
    COUNTS["answered"] += 1
    if isinstance(expected, str):
        assert answer == expected
        return
    for got, right in zip(answer, expected, strict=True):
        np.testing.assert_allclose(np.float64(got), np.float64(right), rtol=0.02, atol=2e-3 * float(abs(np.float64(right)).max(initial=0)))


def refused_by_the_allocator(seed, times):
    allocator = ctypes.CDLL(None)
    allocator.failing_library.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    allocator.failing_rate.argtypes = [ctypes.c_uint32, ctypes.c_uint64]
    allocator.failing_refused.restype = ctypes.c_uint64
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if "_core.abi3.so" in line]
    allocator.failing_library(int(spans[0][0], 16), int(spans[-1][1], 16))
    rng = np.random.default_rng(seed)
    large = mr.Linear(200, 200)
    weights = large.initialize(0)
    expected = [call() for call in calls()]
    for _ in range(times):
        for rate in (0.001, 0.03, 0.3):
            for number, (call, right) in enumerate(zip(calls(), expected, strict=True)):
                if number % 7 == 0:
                    mr.set_num_threads(1 + number % 3)
                    # Rust's library takes a thread's handle from the system alone, and ends the process without it. The pool asks for
                    # megabytes first, so this needs an allocator that refuses 48 bytes a moment after it granted those.
                    large.dualize(weights)
                seed = int(rng.integers(2**62))
                tried(
                    call,
                    right,
                    lambda rate=rate, seed=seed: allocator.failing_rate(int(rate * 2**32), seed),
                    lambda: allocator.failing_rate(0, 0),
                )
    COUNTS["refused"] = allocator.failing_refused()


def crossings():
    """Calls of the compiled module alone: without memory, NumPy and Python's own libraries do not promise an exception."""
    for build in NETWORKS:
        m, other = build(), mr.Identity()._tree
        tree, norm, w = m._tree, m.norm_table.core, _native(m.initialize(0))
        room = [np.empty_like(array) for array, _ in w if array.size]
        recipe, measures = norm.recipe("normalize"), norm.measures(False)
        yield lambda tree=tree, other=other: tree.compose(other).named("x").tare_relative(0.5).table()
        yield lambda tree=tree: (tree.mass, tree.sensitivity, tree.atoms, tree.in_features, tree.name, str(tree), tree.sharpness)
        yield lambda tree=tree: tree.flatten()[0].leaves()
        yield lambda norm=norm: (norm.targets(1.0), norm.batches(), norm.stacks(), norm.lead_targets(0), norm.part([0]).leaves())
        yield lambda recipe=recipe, measures=measures: (recipe.rows, recipe.bounds, measures.rows)
        yield lambda norm=norm, measures=measures, w=w: _core.measure(norm, measures, w, False)
        yield lambda norm=norm, recipe=recipe, w=w, room=room: _core.execute(norm, recipe, w, room, None, 1.0, "standard", "raise")
    yield lambda: _core.erf(ONE)


def refused_by_python(seed, times):
    import _testcapi

    rng = np.random.default_rng(seed)
    for call in crossings():
        expected = repr(call())
        for nth in sorted({1, 2, 3, *rng.integers(1, 60, 10 * times), *rng.integers(60, 2000, 5 * times)}):
            _testcapi.set_nomemory(int(nth), int(nth) + 1)
            try:
                answer = call()
            except MemoryError:
                answer = None
            finally:
                _testcapi.remove_mem_hooks()
            COUNTS["refused"] += 1
            COUNTS["MemoryError" if answer is None and expected != "None" else "answered"] += 1
            assert answer is None or repr(answer) == expected


if __name__ == "__main__":
    {"rust": refused_by_the_allocator, "python": refused_by_python}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(COUNTS))
