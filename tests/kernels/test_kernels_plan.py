"""Launch logic: grids, batches, workspaces, grouping, keys, without a device."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from modula_rs.kernels import maps, params, runtime
from modula_rs.kernels.device import A100, H200, RTX4090
from modula_rs.kernels.orthogonal import small_edge
from modula_rs.kernels.plan import Leaf, chunk_of, grouped, relocate, uploads
from modula_rs.kernels.products import Product, choose
from modula_rs.kernels.schedule import FLOAT16, FLOAT32, PROJECT, schedule

GPT2 = [
    Leaf("row_rms", 1, 50257, 768), Leaf("row_rms", 1, 1024, 768), *[Leaf("spectral", 12, 768, 768)] * 4,
    Leaf("spectral", 12, 3072, 768), Leaf("spectral", 12, 768, 3072), Leaf("spectral", 1, 50257, 768),
]  # fmt: skip


WRITTEN = (
    "partial", "total", "out", "d", "work", "norms", "sums", "squares", "factor", "dots", "image", "inner", "basis", "exponents", "wanted",
)  # fmt: skip


@pytest.mark.parametrize("device", [H200, A100, RTX4090])
@pytest.mark.parametrize("build", [maps.dualize, maps.normalize, maps.norms, maps.dual_norms, maps.project])
def test_launches_stay_within_the_hardware(build, device):
    leaves = [*GPT2, Leaf("spectral", 300, 64, 500, "float16"), Leaf("rms", 3, 1, 7), Leaf("max_abs", 1, 1, 100_000)]
    leaves += [leaf._replace(warm=True, dtype=dtype) for leaf in GPT2 for dtype in params.DTYPES if leaf.geometry == "spectral"]
    plan = build(leaves, device)
    assert plan.launches
    for item in plan.launches:
        assert 0 < item.grid[0] < 2**31
        assert 0 < item.grid[1] <= 65535
        assert 0 < item.threads <= 1024
        assert item.threads % 32 == 0
        assert item.shared <= device.shared
        assert item.params.nbytes <= 4096
        for name in params.addresses(item.params.dtype):
            assert item.params[name] < plan.bytes


def test_equal_shapes_go_together():
    groups = grouped(GPT2, "spectral")
    assert {(leaf.rows, leaf.cols): len(members) for leaf, members in groups.items()} == {
        (768, 768): 48, (3072, 768): 12, (768, 3072): 12, (50257, 768): 1,
    }  # fmt: skip
    heads = maps.dualize([Leaf("spectral", 100, 64, 512), Leaf("spectral", 28, 64, 512)], H200, precision="float16")
    assert [(item.kernel, item.grid) for item in heads.launches] == [("resident_64_1x2", (256, 1))]  # two blocks a matrix


def test_fused_kernel_is_chosen_by_size_and_device():
    assert [small_edge(n, 1, H200) for n in (1, 33, 128, 129, 193, 256, 257)] == [32, 64, 128, 192, 256, 256, None]
    assert [small_edge(n, 1, A100) for n in (128, 192, 256)] == [128, 192, None]
    assert [small_edge(n, 1, RTX4090) for n in (128, 192)] == [128, None]
    assert [small_edge(n, 2, H200) for n in (128, 129)] == [128, None]
    assert small_edge(8, 0, H200) is None


def test_chunks_cover_every_matrix_once():
    for count in (1, 5, 72):
        plan = maps.dualize([Leaf("spectral", count, 768, 768)], H200)
        packed = [item for item in plan.launches if item.kernel.startswith("pack")]
        assert sum(item.grid[1] for item in packed) == count
        starts = [int(item.params["entries"]) for item in packed]
        size = params.ENTRY.itemsize
        assert [(s - starts[0]) // size for s in starts] == list(np.cumsum([0, *(item.grid[1] for item in packed[:-1])]))
    assert 1 <= chunk_of(512, 1000, 1, H200) <= 1000


def test_symmetric_products_compute_half_the_tiles():
    plan = maps.dualize([Leaf("spectral", 1, 1024, 1024)], H200, precision="float16")
    grids = {(item.kernel, item.grid) for item in plan.launches if item.module == "product_wgmma"}
    assert grids == {
        ("product_symmetric_half_1", (72, 1)), ("product_symmetric_1", (36, 2)), ("product_apply_half_1", (128, 1)),
        ("product_result_half_1", (128, 1)),
    }  # fmt: skip
    products = [int(item.params["matrices"]) for item in plan.launches if item.kernel.startswith("product_symmetric")]
    # 4 T - 6 between the restarts and at the end, and the two Gram matrices: what spec'd counts give for one restart.
    assert sum(products) == 4 * len(FLOAT16.steps) - 6 + 2
    # Two that do not need each other go together, but at the start and the end of either part.
    assert products.count(2) == len(FLOAT16.steps) - 4


def test_product_kernels_are_chosen_by_how_they_fill_the_chip():
    def chosen(rows, cols, count=1, device=H200, planes=1):
        m, n = rows // 128, cols // 128
        products = Product(m, m, 2 * m, count, True), Product(m, m, 2 * n, count, True), Product(m, n, 2 * m, count, False)
        return [choose(device, planes, product).variant for product in products]

    assert chosen(4096, 4096) == chosen(8192, 8192) == chosen(2048, 8192) == ["_wide"] * 3
    assert chosen(1024, 1024) == ["_half"] * 3  # 36 and 64 tiles, 132 processors
    assert chosen(768, 768, 12) == [""] * 3
    assert chosen(768, 50304)[1] == "_wide"  # six squares of 786 steps, that 66 clusters share
    assert chosen(4096 + 128, 4096 + 128) == [""] * 3  # an odd number of tiles
    assert set(chosen(4096, 4096, planes=2) + chosen(4096, 4096, device=A100)) == {""}


def test_clusters_share_tiles_only_where_that_leaves_less_idle():
    wide = {edge: choose(H200, 1, Product(edge // 128, edge // 128, edge // 64, 1, True)) for edge in (4096, 8192)}
    assert (wide[4096].split, wide[8192].split) == (True, False)  # 136 and 528 squares for 66 clusters
    assert all(kernel.grid == (132, 1) for kernel in wide.values())
    plan = maps.dualize([Leaf("spectral", 1, 4096, 4096)], H200, precision="float16")
    sharing = [i for i, item in enumerate(plan.launches) if item.module == "product_wide" and item.params["parts"]]
    zeros = [i for i, item in enumerate(plan.launches) if item.kernel == "upload"]
    assert len(zeros) == 1
    assert zeros[0] < sharing[0]
    assert 8 * int(plan.launches[zeros[0]].params["count"]) >= 4 * 4 * 66  # a flag for each warpgroup


def test_scratch_is_shared_between_groups():
    one = maps.dualize([Leaf("spectral", 1, 1024, 1024)], H200).bytes
    many = maps.dualize([Leaf("spectral", 1, 1024, 1024 - 8 * i) for i in range(8)], H200).bytes
    assert many < 1.1 * one


def test_constants_do_not_overlap_scratch():
    plan = maps.normalize([*GPT2, Leaf("spectral", 3, 40, 50), Leaf("spectral", 3, 40, 9000, warm=True)], H200)
    taken = [(offset, offset + constant.nbytes) for offset, constant in plan.constants]
    taken.append((plan.table, plan.table + 8 * plan.words))
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    written = {
        int(item.params[name]) for item in plan.launches for name in WRITTEN if name in item.params.dtype.names and item.params[name]
    }
    assert all(offset >= taken[-1][1] for offset in written)


def test_relocation_moves_addresses_only():
    plan = maps.dualize([Leaf("spectral", 1, 300, 300)], H200)
    for item in plan.launches:
        moved = relocate(item, 1 << 40)
        for name in item.params.dtype.names:
            before, after = item.params[name], moved.params[name]
            if name in params.addresses(item.params.dtype):
                assert after == (before + (1 << 40) if before else 0)
            else:
                np.testing.assert_array_equal(before, after)


def test_uploads_carry_every_word_once():
    words = np.arange(1000, dtype=np.int64)
    parts = uploads(words, 1 << 20)
    assert [int(item.params["count"]) for item in parts] == [480, 480, 40]
    assert [int(item.params["destination"]) - (1 << 20) for item in parts] == [0, 3840, 7680]
    np.testing.assert_array_equal(np.concatenate([item.params["words"][: item.params["count"]] for item in parts]), words)


def test_a_call_uploads_addresses_and_scales():
    leaves = [Leaf("rms", 2, 1, 3), Leaf("rms", 1, 1, 3, scales_on_device=True)]
    plan = maps.dualize(leaves, H200)
    words = runtime.message(plan, 4096, [[1, 2], [3, 4], [0, 7], (), (), ()], [np.array([0.5, -2.0]), None])
    assert list(words[:4]) == [1, 2, 3, 4]
    place = int(words[plan.slots.scale]) - 4096 - plan.table
    np.testing.assert_array_equal(words[place // 8 : place // 8 + 2].view(np.float64), [0.5, -2.0])
    assert words[plan.slots.scale + 1] == 7


def test_equal_calls_share_an_executable(monkeypatch):
    """The key of a graph: map, leaves, device, stream, options; nothing else."""
    made = []
    monkeypatch.setattr(runtime, "Executable", lambda plan: made.append(plan) or len(made))
    runtime.executable.cache_clear()
    leaves = (Leaf("spectral", 2, 30, 40),)

    def get(leaves=leaves, ordinal=0, stream=0, build=maps.dualize, **options):
        return runtime.executable(build, leaves, H200, ordinal, stream, tuple(options.items()))

    assert get() == get() == 1
    others = [get(stream=1), get(ordinal=1), get(build=maps.normalize), get(accuracy="fast"), get((Leaf("spectral", 3, 30, 40),))]
    assert len({1, *others}) == 6
    runtime.executable.cache_clear()


def test_shared_memory_once_allowed_stays_allowed(monkeypatch):
    """A kernel launched with much, then with less, then with much again."""
    allowed = []
    driver = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8, funcSetAttribute=lambda handle, which, size: allowed.append(size)
    )
    api = SimpleNamespace(driver=driver)
    for name, module in {"cupy_backends": None, "cupy_backends.cuda": None, "cupy_backends.cuda.api": api}.items():
        monkeypatch.setitem(sys.modules, name, module or SimpleNamespace())
    monkeypatch.setattr(runtime, "loaded", lambda module, device: SimpleNamespace(get_function=lambda name: SimpleNamespace(ptr=-1)))
    monkeypatch.setattr(runtime, "_allowed", {})
    runtime.function.cache_clear()
    for shared in (1024, 200_000, 100_000, 200_000, 210_000):
        assert runtime.function("power", "power_step_float32", shared, 0) == -1
    assert allowed == [200_000, 210_000]
    runtime.function.cache_clear()


def test_empty_blocks_launch_nothing():
    leaves = [Leaf("spectral", 0, 4, 5), Leaf("spectral", 2, 0, 5), Leaf("row_rms", 1, 3, 0), Leaf("rms", 0, 1, 3)]
    for build in (maps.dualize, maps.normalize, maps.norms, maps.dual_norms, maps.project):
        assert build(leaves, H200).launches == []


def test_bad_requests_say_what_is_wrong():
    with pytest.raises(ValueError, match="precision must be one of float16, float32, float64, got 'int8'"):
        maps.dualize(GPT2, H200, precision="int8")


def test_schedules_keep_their_promise():
    far, half = np.geomspace(1e-3, 1, 100_001), np.geomspace(3e-3, 1, 100_001)
    assert np.abs(FLOAT32.value(far) - 1).max() < 1e-3
    assert np.abs(FLOAT16.value(half) - 1).max() < 1e-3
    assert np.abs(PROJECT.value(np.geomspace(2e-6, 1, 100_001)) - 1).max() < 1e-6
    assert np.abs(PROJECT.value(np.geomspace(1e-12, 8e-7, 1001))).max() < 1e-3
    # Above 1/100 of the largest singular value, after a Schatten-8 norm that is at most 8192^(1/8) = 3.09 times the largest.
    near = np.geomspace(0.01 / 3.09, 1, 100_001)
    for accuracy, error in (("fast", 0.13), ("coarse", 0.57)):
        assert np.abs(schedule("float16", accuracy).value(near) - 1).max() < error


def test_half_precision_steps_are_the_minimax_ones():
    """Each of them equioscillates four times on its interval, which makes it the best odd quintic there (Chebyshev)."""
    low, high = 3e-3, 1.0
    for a, b, c in FLOAT16.steps[:-1]:
        a, b, c = a * 1.01, b * 1.01**3, c * 1.01**5
        x = np.geomspace(max(low, high / 10), high, 200_001)
        error = x * (a + x * x * (b + c * x * x)) - 1
        turning = [error[0], *error[1:-1][(np.diff(error)[:-1] * np.diff(error)[1:]) < 0], error[-1]]
        np.testing.assert_allclose(np.abs(turning), np.abs(error).max(), rtol=2e-3)
        assert len(turning) == 4
        x = np.geomspace(low, high, 200_001) / 1.01
        made = x * (a + x * x * (b + c * x * x))
        low, high = made.min(), max(made.max(), 1.0)


def test_importing_costs_nothing():
    """No driver, no CuPy, no warning at import."""
    code = (
        "import sys, warnings; warnings.simplefilter('error'); import modula_rs.backend.cupy, modula_rs.kernels.compile; "
        "assert not any(name.split('.')[0] in ('cupy', 'jax', 'cupy_backends') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_asking_for_cupy_without_a_gpu_gives_one_clear_error():
    code = (
        "import numpy as np; from modula_rs.backend import cupy, Batch\n"
        "try: cupy.norms([Batch('rms', 1, 1, 3)], [np.ones((1, 1, 3), np.float32)])\n"
        "except (ImportError, RuntimeError) as error: print(error)"
    )
    from conftest import missing_gpu

    if missing_gpu() is None:
        pytest.skip("there is a GPU")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "CuPy" in said
    assert "GPU" in said
    assert len(said.strip().splitlines()) == 1
