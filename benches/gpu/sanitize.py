"""A short run through every kernel, for compute-sanitizer: odd sizes, every precision, launched one by one and from the graph."""

from __future__ import annotations

import numpy as np
from modula_rs.backend import Batch

#: Shapes that between them take every kernel for float32 arrays (tests/kernels/test_bench_costs.py checks it).
GROUPS = [
    Batch("spectral", 2, 17, 29), Batch("spectral", 1, 70, 61), Batch("spectral", 3, 100, 110), Batch("spectral", 2, 180, 131),
    Batch("spectral", 132, 200, 250), Batch("spectral", 1, 250, 140), Batch("spectral", 2, 300, 270), Batch("spectral", 40, 270, 300),
    Batch("spectral", 1, 21, 4501), Batch("spectral", 2, 9, 9001), Batch("spectral", 1, 5, 20_000),
    Batch("spectral", 2, 40, 300), Batch("spectral", 1, 60, 3000), Batch("spectral", 2, 100, 600),
    Batch("spectral", 2, 1300, 100), Batch("spectral", 1, 1500, 2000), Batch("row_rms", 1, 9, 33), Batch("rms", 2, 1, 45),
    Batch("max_abs", 1, 1, 45),
]  # fmt: skip


def main() -> None:
    import cupy
    from modula_rs.backend.cupy import cuda as backend

    rng = np.random.default_rng(0)
    arrays = [cupy.asarray(rng.standard_normal((g.count, g.rows, g.cols)), cupy.float32) for g in GROUPS]
    scales = [1.0] * len(GROUPS)
    for _ in range(3):
        for precision in ("float16", "float32", "float64"):
            backend.direction(GROUPS, arrays, scales, precision=precision)
        backend.apply("unit", GROUPS, arrays, scales)
        vectors: list = [None] * len(GROUPS)
        for _ in range(2):  # cold on the device, then warm
            _, vectors = backend.apply("unit", GROUPS, arrays, scales, vectors=vectors)
        backend.norms(GROUPS, arrays)
        backend.dual_norms(GROUPS, arrays)
    backend.apply("exact", GROUPS, arrays, scales)
    cupy.cuda.Device().synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
