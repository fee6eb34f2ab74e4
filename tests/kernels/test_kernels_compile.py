"""Every kernel compiles for every architecture, without a device, within the registers and shared memory its launches count on."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from modula_rs.kernels.compile import HOPPER_ONLY, MODULES, architecture
from modula_rs.kernels.device import A100, H200, RTX4090
from modula_rs.kernels.orthogonal import CLUSTERS, EDGES, MOST_PANELS, small_shape
from modula_rs.kernels.params import DTYPES
from modula_rs.kernels.products import Product, candidates
from modula_rs.kernels.warm import CLUSTER_THREADS, EXCHANGE

pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed: kernels cannot be compiled", exc_type=ImportError)

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
REGISTERS = 65536  # of a multiprocessor, on all of them


def compiled(arch: str) -> dict | str:
    """Resources of every kernel, by module; or what went wrong."""
    modules = [module for module in MODULES if arch == "sm_90a" or module not in HOPPER_ONLY]
    script = Path(__file__).parent / "resources.py"
    run = subprocess.run([sys.executable, str(script), arch, *modules], capture_output=True, text=True)
    return json.loads(run.stdout) if run.returncode == 0 else run.stderr[-4000:]


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(ARCHITECTURES, pool.map(compiled, ARCHITECTURES), strict=True))
    assert all(isinstance(report, dict) for report in found.values()), found
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch, reports):
    for module, report in reports[arch].items():
        assert report["kernels"], f"{module}.cu holds no kernel"
        for kernel, used in report["kernels"].items():
            assert used["spills"] == 0, f"{kernel} on {arch}: {used}"
            assert used["stack"] == 0, f"{kernel} on {arch}: {used}"
            assert used["shared"] <= 48 * 1024, f"{kernel} on {arch}: {used}"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_two_blocks_of_a_product_share_a_multiprocessor(arch, reports):
    for module in ("product_mma", "product_wgmma"):
        for kernel, used in reports[arch].get(module, {"kernels": {}})["kernels"].items():
            if kernel.endswith("_1") and "half" not in kernel:  # with two planes some take more registers, rather than spill
                assert 2 * 256 * used["registers"] <= REGISTERS, f"{kernel}: {used}"


@pytest.mark.parametrize(("device", "arch"), [(A100, "sm_80"), (RTX4090, "sm_80"), (H200, "sm_90a")])
@pytest.mark.parametrize("planes", [1, 2])
def test_product_kernels_fit_their_block(device, arch, planes, reports):
    for symmetric in (False, True):
        for _, kernel in candidates(device, planes, Product(4, 4, 8, 1, symmetric)):
            for purpose in ("symmetric",) if symmetric else ("apply", "result"):
                used = reports[arch][kernel.module]["kernels"][f"product_{purpose}{kernel.variant}_{planes}"]
                assert kernel.threads * -(-used["registers"] // 8) * 8 <= REGISTERS
                assert kernel.shared + used["shared"] <= device.shared


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_fused_kernels_fit_their_block(arch, reports):
    kernels = reports[arch]["small"]["kernels"]
    for planes, edges in EDGES.items():
        for edge in edges:
            threads, shared = small_shape(edge, planes)
            used = kernels[f"small_{edge}_{planes}"]
            assert threads * -(-used["registers"] // 8) * 8 <= REGISTERS
            assert shared + used["shared"] <= H200.shared


def test_blocks_of_a_cluster_fit(reports):
    for edge, clusters in CLUSTERS.items():
        threads, _ = small_shape(edge, 1)
        most = max(panels for panels in range(1, MOST_PANELS + 1) if small_shape(edge, 1, panels)[1] <= H200.shared)
        assert 64 * most * clusters[-1] >= 16 * edge  # aspect 16
        for cluster in clusters:
            used = reports["sm_90a"]["resident"]["kernels"][f"resident_{edge}_1x{cluster}"]
            assert threads * -(-used["registers"] // 8) * 8 <= REGISTERS


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_warm_steps_fit_their_block(arch, reports):
    for module, kernel in (("power", "power_step"), ("lanczos", "lanczos")):
        for dtype in DTYPES:
            used = reports[arch][module]["kernels"][f"{kernel}_{dtype}"]
            assert used["registers"] * (256 if dtype == "float64" else 512) <= REGISTERS, f"{kernel}_{dtype}: {used}"
            assert used["shared"] <= EXCHANGE, f"{kernel}_{dtype}: {used}"
    for used in reports["sm_90a"]["power_cluster"]["kernels"].values():
        assert used["registers"] * CLUSTER_THREADS <= REGISTERS


def test_every_launched_kernel_exists(reports):
    from modula_rs.kernels import maps
    from modula_rs.kernels.plan import Leaf

    leaves = [
        Leaf(geometry, 2, rows, cols, dtype)
        for dtype in ("float32", "float16", "bfloat16", "float64")
        for geometry, rows, cols in (
            ("spectral", 20, 30),
            ("spectral", 300, 400),
            ("spectral", 150, 900),
            ("spectral", 60, 900),
            ("spectral", 8, 9000),
            ("row_rms", 4, 5),
            ("max_abs", 1, 9),
        )
    ]
    warm = [leaf._replace(warm=leaf.geometry == "spectral") for leaf in leaves]
    for device, arch in ((A100, "sm_80"), (RTX4090, "sm_80"), (H200, "sm_90a")):
        for build, given in (
            (maps.dualize, leaves),
            (maps.normalize, leaves),
            (maps.normalize, warm),
            (maps.norms, leaves),
            (maps.dual_norms, leaves),
            (maps.project, leaves),
        ):
            for item in build(given, device).launches:
                assert item.kernel in reports[arch][item.module]["kernels"], item.kernel


def test_names_of_architectures():
    assert [architecture(d.capability) for d in (A100, RTX4090, H200)] == ["sm_80", "sm_89", "sm_90a"]
    assert architecture((10, 0)) == "sm_100"
    with pytest.raises(RuntimeError, match=r"8\.0 or later.*7\.5"):
        architecture((7, 5))


def test_a_kernel_that_does_not_compile_says_why(tmp_path, monkeypatch):
    from modula_rs.kernels import compile as compiling

    (tmp_path / "broken.cu").write_text("__global__ void f() { nonsense; }")
    monkeypatch.setattr(compiling, "SOURCES", tmp_path)
    with pytest.raises(RuntimeError, match="nonsense"):
        compiling.compile_module("broken", "sm_80")
