"""Launch logic: grids, batches, workspaces, grouping, keys, without a device."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
from cards import CARDS, OLD
from modula_rs.kernels import maps, params, runtime
from modula_rs.kernels.choose import chunk_of
from modula_rs.kernels.compile import MODULES, architecture
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand, Unavailable, grouped, relocate, uploads
from modula_rs.kernels.schedule import EXACT, FLOAT16, FLOAT32, schedule

GPT2 = [
    Operand("row_rms", 1, 50257, 768), Operand("row_rms", 1, 1024, 768), *[Operand("spectral", 12, 768, 768)] * 4,
    Operand("spectral", 12, 3072, 768), Operand("spectral", 12, 768, 3072), Operand("spectral", 1, 50257, 768),
]  # fmt: skip


WRITTEN = (
    "partial", "total", "out", "d", "work", "norms", "sums", "squares", "factor", "dots", "image", "inner", "basis", "exponents", "wanted",
)  # fmt: skip


BUILDS = [maps.dualize, maps.normalize, maps.norms, maps.dual_norms]


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("build", BUILDS)
def test_launches_stay_within_the_hardware(build, card):
    device = CARDS[card]
    operands = [*GPT2, Operand("spectral", 300, 64, 500, "float16"), Operand("rms", 3, 1, 7), Operand("max_abs", 1, 1, 100_000)]
    operands += [operand._replace(warm=True, dtype=dtype) for operand in GPT2 for dtype in params.DTYPES if operand.geometry == "spectral"]
    plan = build(operands, device)
    assert plan.launches
    for item in plan.launches:
        assert 0 < item.grid[0] < 2**31
        assert 0 < item.grid[1] <= 65535
        assert 0 < item.threads <= 1024
        assert item.threads % 32 == 0
        assert item.shared <= device.shared - (0 if "lanczos" not in item.kernel else 3072)  # beside the kernel's own static shared memory
        assert item.params.nbytes <= 4096
        for name in params.addresses(item.params.dtype):
            assert item.params[name] < plan.bytes


def test_equal_shapes_go_together():
    groups = grouped(GPT2, "spectral")
    assert {(operand.rows, operand.cols): len(members) for operand, members in groups.items()} == {
        (768, 768): 48, (3072, 768): 12, (768, 3072): 12, (50257, 768): 1,
    }  # fmt: skip
    heads = maps.dualize([Operand("spectral", 100, 64, 512), Operand("spectral", 28, 64, 512)], H200, precision="float16")
    assert [(item.kernel, item.grid) for item in heads.launches] == [("resident_64_1x2", (256, 1))]  # two blocks a matrix


def test_chunks_cover_every_matrix_once():
    for count in (1, 5, 72):
        plan = maps.dualize([Operand("spectral", count, 768, 768)], H200)
        packed = [item for item in plan.launches if item.kernel.startswith("pack")]
        assert sum(item.grid[1] for item in packed) == count
        starts = [int(item.params["entries"]) for item in packed]
        size = params.ENTRY.itemsize
        assert [(s - starts[0]) // size for s in starts] == list(np.cumsum([0, *(item.grid[1] for item in packed[:-1])]))
    assert 1 <= chunk_of(512, 1000, 1, H200) <= 1000


def test_symmetric_products_compute_half_the_tiles():
    plan = maps.dualize([Operand("spectral", 1, 1024, 1024)], H200, precision="float16")
    grids = {(item.kernel, item.grid) for item in plan.launches if item.module == "product_wgmma"}
    assert grids == {
        ("product_symmetric_1", (36, 1)), ("product_symmetric_1", (36, 2)), ("product_apply_1", (64, 1)), ("product_result_1", (64, 1)),
    }  # fmt: skip
    products = [int(item.params["matrices"]) for item in plan.launches if item.kernel.startswith("product_symmetric")]
    # One restart needs 4 T - 6 products between the restarts and at the end, and two Gram matrices.
    assert sum(products) == 4 * len(FLOAT16.steps) - 6 + 2
    # Two independent products share a launch, except at the start and the end of either part.
    assert products.count(2) == len(FLOAT16.steps) - 4


def test_scratch_is_shared_between_groups():
    one = maps.dualize([Operand("spectral", 1, 1024, 1024)], H200).bytes
    many = maps.dualize([Operand("spectral", 1, 1024, 1024 - 8 * i) for i in range(8)], H200).bytes
    assert many < 1.1 * one


def test_constants_do_not_overlap_scratch():
    plan = maps.normalize([*GPT2, Operand("spectral", 3, 40, 50), Operand("spectral", 3, 40, 9000, warm=True)], H200)
    taken = [(offset, offset + constant.nbytes) for offset, constant in plan.constants]
    taken.append((plan.table, plan.table + 8 * plan.words))
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    written = {
        int(item.params[name]) for item in plan.launches for name in WRITTEN if name in item.params.dtype.names and item.params[name]
    }
    assert all(offset >= taken[-1][1] for offset in written)


def test_relocation_moves_addresses_only():
    plan = maps.dualize([Operand("spectral", 1, 300, 300)], H200)
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
    operands = [Operand("rms", 2, 1, 3), Operand("rms", 1, 1, 3, scales_on_device=True)]
    plan = maps.dualize(operands, H200)
    words = runtime.message(plan, 4096, [[1, 2], [3, 4], [0, 7], (), (), ()], [np.array([0.5, -2.0]), None])
    assert list(words[:4]) == [1, 2, 3, 4]
    place = int(words[plan.slots.scale]) - 4096 - plan.table
    np.testing.assert_array_equal(words[place // 8 : place // 8 + 2].view(np.float64), [0.5, -2.0])
    assert words[plan.slots.scale + 1] == 7


def test_equal_calls_share_an_executable(monkeypatch):
    """The key of a graph holds map, operands, device, stream and options, and nothing else."""
    made = []
    monkeypatch.setattr(runtime, "Executable", lambda plan, stream, graph: made.append(plan) or len(made))
    runtime.executable.cache_clear()
    operands = (Operand("spectral", 2, 30, 40),)

    def get(operands=operands, ordinal=0, stream=0, build=maps.dualize, device=H200, **options):
        key = runtime.StreamKey(SimpleNamespace(ptr=stream))
        return runtime.executable(build, operands, device, ordinal, key, tuple(options.items()))

    assert get() == get() == 1
    others = [get(stream=1), get(ordinal=1), get(build=maps.normalize), get(accuracy="fast"), get((Operand("spectral", 3, 30, 40),))]
    others.append(get(device=H200._replace(allowed=H200.allowed - {"graph"})))
    assert len({1, *others}) == 7
    runtime.executable.cache_clear()


@pytest.fixture
def driver(monkeypatch):
    """The driver's functions on kernels, with a record of their arguments; every kernel has 168 registers."""
    told = SimpleNamespace(shared=[], registers=168)
    functions = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8, CU_FUNC_ATTRIBUTE_NUM_REGS=4,
        funcSetAttribute=lambda handle, which, size: told.shared.append(size),
        funcGetAttribute=lambda which, handle: told.registers,
    )  # fmt: skip
    api = SimpleNamespace(driver=functions)
    for name, module in {"cupy_backends": None, "cupy_backends.cuda": None, "cupy_backends.cuda.api": api}.items():
        monkeypatch.setitem(sys.modules, name, module or SimpleNamespace())
    monkeypatch.setattr(runtime, "loaded", lambda *key: SimpleNamespace(get_function=lambda name: SimpleNamespace(ptr=-1)))
    monkeypatch.setattr(runtime, "_shared", {})
    runtime.function.cache_clear()
    yield told
    runtime.function.cache_clear()


def test_shared_memory_once_allowed_stays_allowed(driver):
    """A kernel is launched with much shared memory, then with less, then with much again."""
    for shared in (1024, 200_000, 100_000, 200_000, 210_000):
        assert runtime.function("power", "power_step_float32", shared, 0) == -1
    assert driver.shared == [1024, 200_000, 210_000]


def test_shared_memory_is_allowed_below_48_kilobytes_too(driver):
    """A kernel's static shared memory counts too: lanczos has 3 KB, so 45.5 KB more exceed the default limit."""
    plan = maps.normalize([Operand("spectral", 1, 28, 64, "bfloat16", warm=True)], H200)
    (launch,) = (item for item in plan.launches if item.module == "lanczos")
    assert launch.shared <= 48 * 1024 < launch.shared + 3072
    runtime.function(launch.module, launch.kernel, launch.shared, 0)
    assert driver.shared == [launch.shared]


def test_a_kernel_that_would_hang_for_want_of_registers_is_refused(driver):
    assert runtime.function("product_wide", "product_symmetric_wide_1", 1024, 0) == -1
    driver.registers = 160
    runtime.function.cache_clear()
    with pytest.raises(RuntimeError, match="compiled for 160 registers a thread and would hang: it needs 168"):
        runtime.function("product_wide", "product_symmetric_wide_1", 1024, 0)


def test_nothing_is_planned_that_may_not_run():
    """Each module is forbidden in turn: the planner does without it, or says that it cannot."""
    operands = {
        "small": Operand("spectral", 300, 64, 500), "large": Operand("spectral", 1, 4096, 4096), "rows": Operand("row_rms", 1, 50, 70),
        "warm": Operand("spectral", 2, 300, 400, warm=True),
    }  # fmt: skip
    refused = set()
    for module in MODULES:
        device = H200._replace(allowed=H200.allowed - {module})
        for name, operand in operands.items():
            for build in BUILDS:
                try:
                    plan = build([operand], device)
                except Unavailable:
                    refused.add((module, name))
                else:
                    assert module not in {item.module for item in plan.launches}
    assert {name for module, name in refused if module == "rows"} == {*operands}
    assert {module for module, name in refused if name == "rows"} == {"rows", "fold"}
    assert "product_wide" not in {module for module, _ in refused}
    assert ("small", "small") not in refused  # the products take small matrices too


@pytest.mark.parametrize("card", OLD)
def test_cards_without_kernels_take_the_portable_way(card):
    for build in BUILDS:
        with pytest.raises(Unavailable):
            build([Operand("row_rms", 1, 5, 7)], OLD[card])
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or later, this one has 7"):
        architecture(OLD[card].capability)


def test_empty_blocks_launch_nothing():
    operands = [Operand("spectral", 0, 4, 5), Operand("spectral", 2, 0, 5), Operand("row_rms", 1, 3, 0), Operand("rms", 0, 1, 3)]
    for build in BUILDS:
        assert build(operands, H200).launches == []


def test_bad_requests_say_what_is_wrong():
    with pytest.raises(ValueError, match="precision must be one of float16, float32, got 'int8'"):
        maps.dualize(GPT2, H200, precision="int8")


def test_schedules_keep_their_promise():
    far, half = np.geomspace(1e-3, 1, 100_001), np.geomspace(3e-3, 1, 100_001)
    assert np.abs(FLOAT32.value(far) - 1).max() < 1e-3
    assert np.abs(FLOAT16.value(half) - 1).max() < 1e-3
    for name, above, below in (("float32", 1.4e-6, 1e-6), ("float64", 4.5e-12, 3.3e-12)):
        assert np.abs(EXACT[name].value(np.geomspace(above, 1, 100_001)) - 1).max() < 1e-9
        assert np.abs(EXACT[name].value(np.geomspace(1e-16, below, 1001))).max() < 1e-3
    for (accuracy, promise), precision in product({"standard": 0.01, "fast": 0.22, "coarse": 0.59}.items(), ("float16", "float32")):
        made = schedule(precision, accuracy)
        assert 0 < made.restart < len(made.steps) <= params.MOST_STEPS
        if accuracy != "standard":
            assert np.abs(made.value(np.geomspace(0.01 / 8192**0.125, 1, 100_001)) - 1).max() < promise


def test_half_precision_steps_are_the_minimax_ones():
    """Each step equioscillates four times on its interval, so it is the best odd quintic there (Chebyshev)."""
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
    """Importing loads no driver and no CuPy, and gives no warning."""
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import modula_rs.backend.cupy, modula_rs.backend.gpu, modula_rs.kernels.check\n"
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
