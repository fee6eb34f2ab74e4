"""Each product kernel alone on the host, against float64: every purpose, kernel and order of threads; and plans of the wide kernel."""

from __future__ import annotations

from typing import NamedTuple

import cases
import host
import numpy as np
import pytest
from cards import A100
from modula_rs.kernels import choose, maps, orthogonal, params
from modula_rs.kernels.choose import PART, Kernel, Product, candidates
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Launch, Operand

pytestmark = [pytest.mark.slow, pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)]

UNIT = {1: 1.0, 2: 128.0}
#: Half precision keeps 11 bits of each operand and of the result, split float16 22 bits.
PRECISION = {1: 2e-3, 2: 2e-6}


def packed(matrices: np.ndarray, planes: int) -> np.ndarray:
    """Matrices as the workspace holds them: swizzled tiles of 128 x 64 halves, plane after plane, padded with zeros to multiples of 128."""
    count, rows, cols = matrices.shape
    padded = np.zeros((count, -(-rows // 128) * 128, -(-cols // 128) * 128))
    padded[:, :rows, :cols] = matrices * UNIT[planes]
    layers = []
    for _ in range(planes):
        half = padded.astype(np.float16)
        padded = padded - half
        tiles = half.reshape(count, -1, 128, half.shape[2] // 64, 8, 8).transpose(0, 1, 3, 2, 4, 5)
        layers.append(np.take_along_axis(tiles, swizzle(), 4))
    store = host.aligned(2 * planes * padded.size).view(np.float16)
    store[:] = np.stack(layers, 1).ravel()
    return store


def swizzle() -> np.ndarray:
    return (np.arange(8) ^ (np.arange(128)[:, None] & 7))[None, None, None, :, :, None]


def unpacked(store: np.ndarray, count: int, rows: int, cols: int, planes: int) -> np.ndarray:
    """The padded matrices in a workspace."""
    tiles = store.reshape(count, planes, -(-rows // 128), -(-cols // 128) * 2, 128, 8, 8).astype(np.float64).sum(1)
    plain = np.take_along_axis(tiles, swizzle(), 4).transpose(0, 1, 3, 2, 4, 5)
    return plain.reshape(count, -(-rows // 128) * 128, -(-cols // 128) * 128) / UNIT[planes]


class Way(NamedTuple):
    """A kernel; for the wide kernel, also the number of clusters and whether they share tiles."""

    module: str
    variant: str = ""
    clusters: int = 1
    split: bool = False


WAYS = [Way("product_mma"), Way("product_wgmma")]
WIDE = [Way("product_wide", "_wide"), Way("product_wide", "_wide", 2, split=True)]
NAMES = {True: "shared", False: ""}


def name(way: Way) -> str:
    return f"{way.module[8:]}{way.variant}{way.clusters if way.module == 'product_wide' else ''}{NAMES[way.split]}"


def run(way: Way, purpose: str, planes: int, shape: tuple[int, int, int], count: int, order: int = 0, **fields) -> None:
    """One launch: an m x k matrix times a k x n matrix."""
    m, n, k = (-(-edge // 128) for edge in shape)
    product = Product(m, n, 2 * k, count, purpose == "symmetric")
    device = A100 if way.module == "product_mma" else H200
    kernels = [kernel for _, kernel in candidates(device, planes, product) if (kernel.module, kernel.variant) == way[:2]]
    assert len(kernels) == 1
    kernel: Kernel = kernels[0]
    grid = (2 * way.clusters, 1) if way.module == "product_wide" else kernel.grid
    if way.split:
        parts, ready = host.aligned(PART * 2 * way.clusters), np.zeros(4 * way.clusters, np.int32)
        fields.update(parts=parts.ctypes.data, ready=ready.ctypes.data)
    values = params.pack(params.PRODUCT, tiles_m=m, tiles_n=n, chunks=2 * k, matrices=count, **fields)
    host.launch(Launch(kernel.module, f"product_{purpose}{kernel.variant}_{planes}", grid, kernel.threads, kernel.shared, values), order)
    assert not way.split or not ready.any(), "a flag was left raised"


def strides(planes: int, **shapes: tuple[int, int]) -> dict[str, int]:
    padded = {key: [-(-edge // 128) * 128 for edge in shape] for key, shape in shapes.items()}
    return {f"{key}_stride": planes * rows * cols for key, (rows, cols) in padded.items()}


def symmetric(way: Way, planes: int, edge: int, depth: int, count: int = 2, order: int = 0):
    """alpha a a^T + beta c + gamma I with every option in use: the result, the expected result, and the sums of squares of its pieces."""
    rng = np.random.default_rng(edge + depth)
    a, c = rng.standard_normal((count, edge, depth)) / depth**0.5, rng.standard_normal((count, edge, edge)) / 4
    c = c + c.transpose(0, 2, 1)
    stores = {"a": packed(a, planes), "c": packed(c, planes)}
    tiles = -(-edge // 128)
    pieces = tiles * (tiles + 1)
    padded = 128 * tiles
    d, guard = host.guarded(count * planes * padded * padded, np.float16)
    partial, other_guard = host.guarded((count, pieces), np.float64)
    squares = rng.random((count, 5)) + 0.5
    factor = (rng.random((count, 2)) + 0.5).astype(np.float32)
    run(
        way, "symmetric", planes, (edge, edge, depth), count, order, a=stores["a"].ctypes.data, b=stores["a"].ctypes.data,
        c=stores["c"].ctypes.data, d=d.ctypes.data, **strides(planes, a=(edge, depth), b=(edge, depth), c=(edge, edge), d=(edge, edge)),
        squares=squares.ctypes.data, squares_count=5, factor=factor.ctypes.data, factor_power=2, partial=partial.ctypes.data,
        alpha=1.5, beta=-0.5, gamma=0.25,
    )  # fmt: skip
    for whole in (guard, other_guard):
        assert (whole[: host.GUARD] == 0xAB).all()
        assert (whole[-host.GUARD :] == 0xAB).all()
    exact = factor[:, :1, None] * (1.5 / squares.sum(1)[:, None, None] * (a @ a.transpose(0, 2, 1)) - 0.5 * c)
    expected = np.zeros((count, padded, padded))
    expected[:, :edge, :edge] = exact
    expected += 0.25 * np.eye(padded)
    return unpacked(d, count, edge, edge, planes), expected, partial


def pieces_of(matrix: np.ndarray) -> np.ndarray:
    """Sums of squares of the pieces; pieces below the diagonal count twice."""
    tiles = len(matrix) // 128
    blocks = (matrix**2).reshape(tiles, 2, 64, tiles, 128).sum((2, 4))
    return np.array([(1 + (i != j)) * blocks[i, half, j] for i in range(tiles) for j in range(i + 1) for half in range(2)])


# The wide kernel takes one plane only.
PLANES = [pytest.param(way, planes, id=f"{name(way)}-{planes}") for way in [*WAYS, *WIDE] for planes in (1, 2)[: 2 - (way in WIDE)]]


@pytest.mark.parametrize(("way", "planes"), PLANES)
def test_symmetric_products(way, planes):
    result, expected, partial = symmetric(way, planes, 200, 130)
    np.testing.assert_allclose(result, expected, atol=PRECISION[planes] * np.abs(expected).max())
    np.testing.assert_array_equal(result, result.transpose(0, 2, 1))
    np.testing.assert_allclose(partial, [pieces_of(matrix) for matrix in expected], rtol=10 * PRECISION[planes])


@pytest.mark.parametrize("planes", [1, 2])
def test_kernels_agree_on_symmetric_products(planes):
    """Results agree to rounding, not bit for bit: mma and wgmma add in different orders, and so do clusters that share a tile."""
    first, *rest = (symmetric(way, planes, 200, 130, order=1)[0] for way in [*WAYS, *WIDE] if planes == 1 or way.module != "product_wide")
    for other in rest:
        np.testing.assert_allclose(other, first, atol=PRECISION[planes])


@pytest.mark.parametrize("clusters", [1, 2, 4, 7])
def test_clusters_that_share_tiles(clusters):
    """Three tiles of six steps for 1 to 7 clusters: whole tiles, split tiles, more clusters than tiles, several partial sums to add."""
    result, expected, partial = symmetric(Way("product_wide", "_wide", clusters, split=True), 1, 400, 350, count=1)
    np.testing.assert_allclose(result, expected, atol=PRECISION[1] * np.abs(expected).max())
    np.testing.assert_array_equal(result, result.transpose(0, 2, 1))
    np.testing.assert_allclose(partial, [pieces_of(matrix) for matrix in expected], rtol=10 * PRECISION[1])


@pytest.mark.parametrize("way", [*WAYS, *WIDE], ids=name)
def test_two_products_in_one_launch(way):
    """z q + a q and z r + a r, two matrices each; in memory r and the second result precede q and the first result."""
    rng = np.random.default_rng(6)
    r, z, q = rng.standard_normal((3, 2, 140, 140)) / 12
    store = packed(np.concatenate([r, z, q]), 1)
    size, base = store.size // 3, store.ctypes.data
    d, guard = host.guarded(2 * size, np.float16)
    run(
        way, "apply", 1, (140, 140, 140), 4, a=base + 2 * size, b=base + 4 * size, c=base + 4 * size, d=d.ctypes.data + 2 * size, pair=2,
        alpha=1, beta=0.5, b_jump=-2 * size, d_jump=-size, **strides(1, a=(140, 140), b=(140, 140), c=(140, 140), d=(140, 140)),
    )  # fmt: skip
    assert (guard[: host.GUARD] == 0xAB).all()
    assert (guard[-host.GUARD :] == 0xAB).all()
    expected = np.concatenate([z @ r + 0.5 * r, z @ q + 0.5 * q])
    np.testing.assert_allclose(unpacked(d, 4, 140, 140, 1)[:, :140, :140], expected, atol=PRECISION[1] * np.abs(expected).max())


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("way", [*WAYS, *WIDE], ids=name)
def test_order_of_threads_changes_no_bit(way, order):
    first, again = (symmetric(way, 1, 140, 600, count=1, order=o) for o in (0, order))  # there are more steps than stages
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[2], first[2])


@pytest.mark.parametrize(("way", "planes"), PLANES)
def test_application_of_a_square_matrix(way, planes):
    rng = np.random.default_rng(3)
    m, n = 140, 400 if way.module == "product_wide" else 170
    q, x = rng.standard_normal((2, m, m)) / m**0.5, rng.standard_normal((2, m, n))
    factor = (rng.random((2, 2)) + 0.5).astype(np.float32)
    stores = packed(q, planes), packed(x, planes)
    d, guard = host.guarded(stores[1].size, np.float16)
    run(
        way, "apply", planes, (m, n, m), 2, a=stores[0].ctypes.data, b=stores[1].ctypes.data, d=d.ctypes.data, alpha=1,
        factor=factor.ctypes.data, factor_power=1, **strides(planes, a=(m, m), b=(m, n), d=(m, n)),
    )  # fmt: skip
    assert (guard[: host.GUARD] == 0xAB).all()
    assert (guard[-host.GUARD :] == 0xAB).all()
    result, expected = unpacked(d, 2, m, n, planes)[:, :m, :n], factor[:, 1, None, None] * (q @ x)
    np.testing.assert_allclose(result, expected, atol=PRECISION[planes] * np.abs(expected).max())


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", [*WAYS, *WIDE], ids=name)
def test_results_go_to_the_callers_array(way, dtype, tall):
    rng = np.random.default_rng(4)
    m, n = 131, 401 if way.module == "product_wide" else 150
    q, x = rng.standard_normal((1, m, m)) / m**0.5, rng.standard_normal((1, m, n))
    shape = (n, m) if tall else (m, n)
    result, guard = host.guarded(shape, cases.as_dtype(dtype))
    scale = np.array([-0.5])
    table = np.array([0, result.ctypes.data, scale.ctypes.data], np.int64)
    entry = np.zeros(1, params.ENTRY)
    entry["result"], entry["scale"] = 1, 2
    stores = packed(q, 1), packed(x, 1)
    run(
        way, "result", 1, (m, n, m), 1, a=stores[0].ctypes.data, b=stores[1].ctypes.data, alpha=1, **strides(1, a=(m, m), b=(m, n)),
        entries=entry.ctypes.data, table=table.ctypes.data, rows=shape[0], cols=shape[1], dtype=params.DTYPES[dtype], tall=tall,
    )  # fmt: skip
    assert (guard[: host.GUARD] == 0xAB).all()
    assert (guard[-host.GUARD :] == 0xAB).all()
    product = (q @ x)[0]
    expected = -0.5 * (product.T if tall else product)
    np.testing.assert_allclose(result.astype(np.float64), expected, atol=(4e-3 if dtype == "float32" else 2e-2) * np.abs(expected).max())


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """Lets the planner choose the wide kernel for matrices that are small enough for a quick test."""
    monkeypatch.setattr(choose, "WIDE_TILES", 1)


def test_whole_plans_by_the_wide_kernel(monkeypatch):
    """On a device with six multiprocessors, three clusters share tiles."""
    monkeypatch.setattr(orthogonal, "choose", lambda *product: list(candidates(*product))[-1][1])
    rng = np.random.default_rng(5)
    device = H200._replace(processors=6, shared=0)
    given = cases.matrix(rng, 400, 140, "log")[None].astype(np.float32)
    plan = maps.dualize([Operand("spectral", 1, 400, 140)], device, precision="float16")
    assert {item.module for item in plan.launches if item.kernel.startswith("product")} == {"product_wide"}
    assert any(item.params["parts"] for item in plan.launches if item.module == "product_wide")
    result = np.empty_like(given)
    host.run(plan, [given], [result], [np.ones(1)])
    assert cases.worst(result[0], given[0], 0.01) < 0.02
