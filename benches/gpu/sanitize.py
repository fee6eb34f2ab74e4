"""A short run through every kernel, for compute-sanitizer: small odd sizes, every precision, launched one by one and from the graph."""

from __future__ import annotations

import cupy
import numpy as np
from modula_rs.backend import Group
from modula_rs.backend import cupy as backend


def main() -> None:
    rng = np.random.default_rng(0)
    groups = [
        Group("spectral", 2, 17, 29), Group("spectral", 1, 70, 61), Group("spectral", 1, 200, 131), Group("spectral", 1, 250, 140),
        Group("spectral", 2, 300, 270), Group("spectral", 1, 21, 4501), Group("row_rms", 1, 9, 33), Group("rms", 2, 1, 45),
        Group("max_abs", 1, 1, 45),
    ]  # fmt: skip
    arrays = [cupy.asarray(rng.standard_normal((g.count, g.rows, g.cols)), cupy.float32) for g in groups]
    scales = [1.0] * len(groups)
    for _ in range(3):
        for precision in ("float16", "float32", "float64"):
            backend.dualize(groups, arrays, scales, precision=precision)
        backend.normalize(groups, arrays, scales)
        vectors: list = [None] * len(groups)
        for _ in range(2):  # cold on the device, then warm
            _, vectors = backend.normalize(groups, arrays, scales, vectors)
        backend.norms(groups, arrays)
        backend.dual_norms(groups, arrays)
    backend.project(groups, arrays, scales)
    cupy.cuda.Device().synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
