"""A short run through every kernel, for compute-sanitizer: odd sizes, every precision, launched one by one and from the graph."""

from __future__ import annotations

import numpy as np
from modula_rs.backend import Group

#: Shapes that between them take every kernel for float32 arrays (tests/gpu/test_bench_costs.py checks it).
GROUPS = [
    Group("spectral", 2, 17, 29), Group("spectral", 1, 70, 61), Group("spectral", 3, 100, 110), Group("spectral", 2, 180, 131),
    Group("spectral", 132, 200, 250), Group("spectral", 1, 250, 140), Group("spectral", 2, 300, 270), Group("spectral", 40, 270, 300),
    Group("spectral", 1, 21, 4501), Group("spectral", 2, 9, 9001), Group("spectral", 1, 5, 20_000),
    Group("spectral", 2, 40, 300), Group("spectral", 1, 60, 3000), Group("spectral", 2, 100, 600),
    Group("spectral", 2, 1300, 100), Group("spectral", 1, 1500, 2000), Group("row_rms", 1, 9, 33), Group("rms", 2, 1, 45),
    Group("max_abs", 1, 1, 45),
]  # fmt: skip


def main() -> None:
    import cupy
    from modula_rs.backend import cupy as backend

    rng = np.random.default_rng(0)
    arrays = [cupy.asarray(rng.standard_normal((g.count, g.rows, g.cols)), cupy.float32) for g in GROUPS]
    scales = [1.0] * len(GROUPS)
    for _ in range(3):
        for precision in ("float16", "float32", "float64"):
            backend.dualize(GROUPS, arrays, scales, precision=precision)
        backend.normalize(GROUPS, arrays, scales)
        vectors: list = [None] * len(GROUPS)
        for _ in range(2):  # cold on the device, then warm
            _, vectors = backend.normalize(GROUPS, arrays, scales, vectors)
        backend.norms(GROUPS, arrays)
        backend.dual_norms(GROUPS, arrays)
    backend.project(GROUPS, arrays, scales)
    cupy.cuda.Device().synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
