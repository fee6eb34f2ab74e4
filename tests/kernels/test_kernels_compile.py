"""Every kernel compiles for every architecture, without a device, within the registers and shared memory that its launches assume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from cards import A100, CARDS, RTX4090
from modula_rs.kernels import compile as compiling
from modula_rs.kernels import maps, runtime, verdicts
from modula_rs.kernels.choose import CLUSTERS, EDGES, MOST_PANELS, Product, candidates, small_shape
from modula_rs.kernels.compile import HOPPER_ONLY, MODULES, architecture
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand
from modula_rs.kernels.params import DTYPES
from modula_rs.kernels.power import EXCHANGE, MOST_THREADS

pytestmark = pytest.mark.slow

pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed: kernels cannot be compiled", exc_type=ImportError)

#: All kernels are compiled for these; for other architectures, the kernels that the planner chooses there.
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
FURTHER = {"sm_86": "RTX 3090", "sm_89": "L4", "sm_103": "B300", "sm_120": "RTX 5090", "sm_121": "DGX Spark"}
REGISTERS = 65536  # of a multiprocessor, on every architecture


def compiled(arch: str, wanted: list[str]) -> dict | str:
    """The resources of every kernel, by module; or the error."""
    script = Path(__file__).parent / "resources.py"
    run = subprocess.run([sys.executable, str(script), arch, *wanted], capture_output=True, text=True, timeout=900)
    return json.loads(run.stdout) if run.returncode == 0 else run.stderr[-4000:]


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    modules = [[module for module in MODULES if arch == "sm_90a" or module not in HOPPER_ONLY] for arch in ARCHITECTURES]
    found = {arch: compiled(arch, wanted) for arch, wanted in zip(ARCHITECTURES, modules, strict=True)}
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


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_cubin_is_whole(arch, reports):
    """The headers of a cubin point at nothing past its end, although CuPy returns all but its last byte."""
    assert {module: report["missing"] for module, report in reports[arch].items()} == dict.fromkeys(reports[arch], 0)


def test_warpgroups_that_share_registers_get_those_they_count_on(reports):
    """setmaxnreg would wait for ever for registers that the launch does not have."""
    for module, registers in runtime.REGISTERS.items():
        assert {used["registers"] for used in reports["sm_90a"][module]["kernels"].values()} == {registers}


@pytest.mark.parametrize("arch", FURTHER)
def test_what_is_chosen_compiles_for_every_card(arch):
    device = CARDS[FURTHER[arch]]
    assert architecture(device.capability) == arch
    kernels = {f"{item.module}:{item.kernel}" for item in chosen(device)} | {"upload:upload"}
    found = compiled(arch, sorted(kernels))
    assert isinstance(found, dict), found
    for wanted, report in found.items():
        (kernel, used), *others = report["kernels"].items()
        assert not others
        assert wanted.endswith(f":{kernel}")
        assert report["missing"] == 0
        assert used["spills"] == used["stack"] == 0, f"{kernel} on {arch}: {used}"


def chosen(device):
    """The launches of a model with heads, a square and a wide matrix, also in halves, and a table, on a device where all is proved."""
    device = device._replace(allowed=verdicts.allowed(verdicts.FAMILIES))
    heads, square, wide = Operand("spectral", 500, 64, 512, "bfloat16"), Operand("spectral", 1, 768, 768), Operand("spectral", 1, 8, 9000)
    table, bias = Operand("row_rms", 1, 50, 70), Operand("max_abs", 1, 1, 70)
    yield from maps.dualize([heads, square, table, bias], device).launches
    yield from maps.normalize([heads, square, table, bias], device).launches
    yield from maps.normalize([wide._replace(warm=True, dtype=dtype) for dtype in DTYPES], device).launches
    yield from maps.norms([square, table], device).launches


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_two_blocks_of_a_product_share_a_multiprocessor(arch, reports):
    for module in ("product_mma", "product_wgmma"):
        for kernel, used in reports[arch].get(module, {"kernels": {}})["kernels"].items():
            if kernel.endswith("_1"):  # some kernels of split float16 take more registers instead of spilling
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
            assert used["registers"] * MOST_THREADS <= REGISTERS, f"{kernel}_{dtype}: {used}"
            assert used["shared"] <= EXCHANGE, f"{kernel}_{dtype}: {used}"


def test_every_launched_kernel_exists(reports):
    operands = [
        Operand(geometry, 2, rows, cols, dtype)
        for dtype in DTYPES
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
    warm = [operand._replace(warm=operand.geometry == "spectral") for operand in operands]
    for device, arch in ((A100, "sm_80"), (RTX4090, "sm_80"), (H200, "sm_90a")):
        for build, given in (
            (maps.dualize, operands),
            (maps.normalize, operands),
            (maps.normalize, warm),
            (maps.norms, operands),
            (maps.dual_norms, operands),
        ):
            for item in build(given, device).launches:
                assert item.kernel in reports[arch][item.module]["kernels"], item.kernel


def test_names_of_architectures():
    assert [architecture(d.capability) for d in (A100, RTX4090, H200)] == ["sm_80", "sm_89", "sm_90a"]
    assert architecture((10, 0)) == "sm_100"
    with pytest.raises(RuntimeError, match=r"8\.0 or later.*7\.5"):
        architecture((7, 5))


def test_a_kernel_that_does_not_compile_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken.cu").write_text("__global__ void f() { nonsense; }")
    monkeypatch.setattr(compiling, "SOURCES", tmp_path)
    monkeypatch.setattr(compiling, "headers", dict)
    with pytest.raises(RuntimeError, match="nonsense"):
        compiling.compile_kernel("broken", None, "sm_80")


@pytest.mark.parametrize(
    ("version", "arch", "said"),
    [
        ((12, 4), "sm_100", r'NVRTC 12.4 is older than this GPU \(sm_100\), which needs 12.8 or later: .*"nvidia-cuda-nvrtc-cu12>=12.8"'),
        ((12, 8), "sm_121", r'which needs 12.9 or later: .*"nvidia-cuda-nvrtc-cu12>=12.9"'),
        ((13, 0), "sm_130", r'NVRTC 13.0 is older than this GPU \(sm_130\): pip install --upgrade "nvidia-cuda-nvrtc"'),
    ],
)
def test_an_old_nvrtc_is_named(monkeypatch, version, arch, said):
    from cupy_backends.cuda.libs import nvrtc

    old = SimpleNamespace(getVersion=lambda: version, getSupportedArchs=lambda: (80, 86, 90))
    monkeypatch.setattr("cupy_backends.cuda.libs.nvrtc", old)
    assert nvrtc is not old
    with pytest.raises(RuntimeError, match=said):
        compiling.compile_kernel("upload", "upload", arch)


def test_stages_are_handed_over_without_fences_of_all_memory():
    """With cluster scope, each arrival and each wait is a MEMBAR of the whole GPU, twice in every step of 64."""
    from cupy_backends.cuda.libs import nvrtc

    texts, names = ([text.encode() for text in part] for part in (compiling.headers().values(), compiling.headers()))
    found = {}
    for option in (), ("-DCLUSTER_ORDER",):
        source = (compiling.SOURCES / "product_wide.cu").read_text()
        program = nvrtc.createProgram(source, "product_wide.cu", texts, names)
        flags = ("--gpu-architecture=compute_90a", "--std=c++17", "-DONLY", "-DWANTED_product_symmetric_wide_1=~,1", *option)
        nvrtc.compileProgram(program, flags)
        code = nvrtc.getPTX(program)
        code = code.decode() if isinstance(code, bytes) else code
        found[option] = "mbarrier.arrive.release.cluster" in code, "try_wait.parity.acquire.cluster" in code
        nvrtc.destroyProgram(program)
    assert list(found.values()) == [(False, False), (True, True)]


# ---- the cache ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """An empty cache, and a compiler that records the requests."""
    asked = []
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "compile_kernel", lambda module, kernel, arch: (asked.append(kernel), (kernel.encode() * 3, "log"))[1])
    clear = (compiling.cubin.cache_clear, compiling.cubin_path.cache_clear)
    for each in clear:
        each()
    yield asked
    for each in clear:
        each()


def test_only_what_is_missing_is_compiled_and_said(compiler, capsys):
    wanted = [("rows", "row_norms_float32"), ("fold", "fold_rows"), ("rows", "row_norms_float32")]
    compiling.compile_all(wanted[:1], "sm_80")
    compiling.cubin.cache_clear()
    compiling.compile_all(wanted, "sm_80")
    assert compiler == ["row_norms_float32", "fold_rows"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split("(")[0].strip() for line in said] == [
        "modula_rs: compiling 1 GPU kernels for sm_80, once for this machine", "modula_rs: 1 of 1",
        "modula_rs: compiling 1 GPU kernels for sm_80, once for this machine", "modula_rs: 1 of 1",
    ]  # fmt: skip
    compiling.compile_all(wanted, "sm_80")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["/proc/nowhere/at/all", ""])
def test_a_cache_that_cannot_be_written_is_no_error(compiler, monkeypatch, place):
    if place:
        monkeypatch.setenv("MODULA_RS_CACHE", place)
    else:  # there is no home directory
        monkeypatch.delenv("MODULA_RS_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    for _ in range(3):
        assert compiling.cubin("rows", "row_norms_float32", "sm_80") == b"row_norms_float32" * 3
    assert compiler == ["row_norms_float32"]  # the kernel is kept in memory


def test_kernels_are_compiled_at_the_same_time(compiler, monkeypatch):
    together = threading.Barrier(3)
    monkeypatch.setattr(compiling.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(compiling, "compile_kernel", lambda *names: (together.wait(20), (b"cubin", ""))[1])
    compiling.compile_all([("rows", "row_norms_float32"), ("fold", "fold_rows"), ("upload", "upload")], "sm_80")


def test_processes_that_wait_for_the_same_kernel_compile_it_once(tmp_path):
    """As when eight ranks start together."""
    code = (
        "import os, sys, time, modula_rs.kernels.compile as c\n"
        "open(f'{sys.argv[1]}-{os.getpid()}', 'w').close()\n"
        "while len(os.listdir(os.path.dirname(sys.argv[1]))) < 3: time.sleep(0.01)\n"
        "c.compile_kernel = lambda *a: (time.sleep(0.5), open(sys.argv[1], 'a').write('x'), (b'cubin', ''))[2]\n"
        "assert c.cubin('upload', 'upload', 'sm_80') == b'cubin'"
    )
    (tmp_path / "ranks").mkdir()
    count = tmp_path / "ranks" / "count"
    env = os.environ | {"MODULA_RS_CACHE": str(tmp_path / "cache")}
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(count)], env=env) for _ in range(3)]
    assert [rank.wait(60) for rank in ranks] == [0, 0, 0]
    assert count.read_text() == "x"
