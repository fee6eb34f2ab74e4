"""The arithmetic of benches/gpu: against published counts and against the plans; and the judgement of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cards import A100
from modula_rs.kernels import maps
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand
from modula_rs.kernels.schedule import FLOAT16, FLOAT32, schedule

BENCHES = Path(__file__).resolve().parents[2] / "benches" / "gpu"
sys.path.insert(0, str(BENCHES))

import attribution  # noqa: E402  # beside the programs that use them, which are no package
import costs  # noqa: E402
import profile_launches  # noqa: E402
import workloads  # noqa: E402


def units(products, n):
    return sum(product.flops for product in products) / n**3


@pytest.mark.parametrize(("aspect", "plain", "half", "gram"), [(1, 30, 20, 20), (4, 90, 65, 38), (8, 170, 125, 62)])
def test_counts_are_the_published_ones(aspect, plain, half, gram):
    """In n^3 for five steps: three plain products a step, symmetric products at half price, the Gram space with one restart."""
    n, m = 64, 64 * aspect
    assert units(costs.plain(n, m), n) == plain
    assert units(costs.plain(n, m, symmetric=True), n) == half
    assert units(costs.ours(n, m, schedule("float16", "fast")), n) == gram
    assert units(costs.ours(n, m), n) == 4 * len(FLOAT16.steps) + 6 * aspect - 6
    # Without symmetry only the two products that apply Q keep their price.
    assert units(costs.RIVALS["Gram"].products(n, m), n) == 2 * gram - 4 * aspect


def test_times_follow_from_counts():
    """Reported: five plain steps take 26.1 ms at 8192 x 8192, 0.386 ms at 1024 x 8192; the least with symmetry is 20 n^3 at 989 TFLOP/s."""
    for shape, rate, seconds in (((1, 8192, 8192), costs.LARGE, 26.1e-3), ((1, 1024, 8192), costs.BATCHED, 0.386e-3)):
        assert costs.flops(costs.RIVALS["plain"], workloads.Case([shape])) / rate == pytest.approx(seconds, rel=2e-3)
    for n, seconds in ((1024, 0.022e-3), (2048, 0.174e-3), (4096, 1.39e-3), (8192, 11.1e-3)):
        found = costs.least_seconds(costs.OURS["ours, fast"], workloads.Case([(1, n, n)]), costs.PEAK)
        assert found == pytest.approx(seconds, rel=0.02)


def test_gpt2_by_hand():
    """48 square matrices and 24 matrices of aspect 4, in units of 768^3: 48 x 24 + 24 x 42, against 48 x 36 + 24 x 60."""
    case, cube = workloads.CASES["GPT-2 small"], 768**3
    assert costs.flops(costs.OURS["ours, six steps"], case) == 2160 * cube
    assert costs.flops(costs.RIVALS["Gram"], case) == 3168 * cube
    assert costs.flops(costs.RIVALS["plain"], case) == 3600 * cube
    found = costs.need(costs.OURS["ours, six steps"], case, costs.BATCHED, 2.5)
    assert found.rate == pytest.approx(2.5 * 2160 / 3168 * 472e12)
    assert case.elements == (48 + 24 * 4) * 768**2
    limit = costs.slowest_rival(costs.OURS["ours, six steps"], case, costs.CUBLAS, 2.5)
    assert costs.rival_seconds(case, limit) / costs.least_seconds(costs.OURS["ours, six steps"], case, costs.CUBLAS) == pytest.approx(2.5)


def test_bytes_of_products():
    gram, square, *_, last = costs.ours(3, 5)
    assert gram.bytes == 2 * (15 + 9)
    assert square.bytes == 2 * (9 + 9)
    assert last.bytes == 2 * (9 + 15 + 15)


@pytest.mark.parametrize("device", [H200, A100], ids=["hopper", "portable"])
@pytest.mark.parametrize(("accuracy", "expected"), [("standard", FLOAT16), ("fast", schedule("float16", "fast"))])
@pytest.mark.parametrize("shape", [(1, 1024, 1024), (30, 768, 768), (5, 3072, 768), (1, 2048, 8192)])
def test_plans_launch_these_products(device, shape, accuracy, expected):
    """A plan has as many launches of each purpose as the list has products, and their costs add up to the list's cost."""
    operand = Operand("spectral", *shape)
    launches = maps.dualize([operand], device, accuracy=accuracy, precision="float16").launches
    n, m = sorted(shape[1:])
    products = costs.ours(n, m, expected)
    found = dict.fromkeys(("gram", "inner", "apply"), 0)
    for item, kind in zip(launches, attribution.purposes(launches, operand), strict=True):
        if kind in found:
            found[kind] += attribution.matrices_in(item)
    wanted = {kind: shape[0] * sum(product.purpose == kind for product in products) for kind in found}
    if n == m:
        wanted = {"gram": 0, "inner": wanted["gram"] + wanted["inner"], "apply": wanted["apply"]}
    assert found == wanted
    parts = [cost for cost in attribution.costs(launches, operand, products) if cost]
    multiplied = sum(cost.flops for cost in parts if cost.flops > 10 * shape[0] * n * m)
    assert multiplied == pytest.approx(costs.flops(costs.Method(lambda *_: products, expected, 8), workloads.Case([shape])))


def test_every_large_launch_of_the_maps_has_a_cost():
    operand = Operand("spectral", 12, 3072, 768)
    products = costs.ours(768, 3072)
    for plan in (maps.dualize([operand], H200), maps.normalize([operand], H200), maps.normalize([operand._replace(warm=True)], H200)):
        found = attribution.costs(plan.launches, operand, products)
        for item, cost in zip(plan.launches, found, strict=True):
            assert cost is None or cost.bytes > 0, item.kernel
        assert any(found)
    heads = Operand("spectral", 256, 64, 1024)
    launches = maps.dualize([heads], H200, precision="float16").launches
    (cost,) = (cost for cost in attribution.costs(launches, heads, costs.ours(64, 1024)) if cost and cost.flops > 1e9)
    assert cost.flops == costs.flops(costs.OURS["ours, six steps"], workloads.CASES["64 x 1024, 256 of them"])
    assert cost.bytes == costs.least_bytes(workloads.CASES["64 x 1024, 256 of them"])


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(300, 300), (200, 800)])
def test_intervals_hold_gaussian_singular_values(n, m):
    values = np.linalg.svd(np.random.default_rng(0).standard_normal((n, m)), compute_uv=False)
    for norm in (2, 8):
        low, high = costs.interval(n, m, norm)
        scaled = values / (values**norm).sum() ** (1 / norm)
        assert scaled[0] == pytest.approx(high, rel=0.04)
        assert scaled[scaled >= 0.01 * scaled[0]][-1] > 0.95 * low
    assert costs.error(costs.OURS["ours, six steps"], n, m) < 1e-3
    # FLOAT32 continues the iteration of FLOAT16.
    assert len(FLOAT32.steps) > len(FLOAT16.steps)


def test_the_readme_shows_these_tables():
    text = (BENCHES / "README.md").read_text()
    for table in (costs.targets, costs.largest_ratios, costs.errors):
        assert table() in text, f"benches/gpu/README.md: put in what costs.{table.__name__}() gives now"


def test_shapes_as_a_user_types_them():
    assert list(workloads.chosen(None, None)) == list(workloads.CASES)
    assert list(workloads.chosen(["8192"], None)) == ["2048 x 8192", "8192 x 8192"]
    assert workloads.chosen(None, ["2x3x4"]) == {"2x3x4": workloads.Case([(2, 3, 4)])}
    assert list(workloads.chosen(["GPT"], ["2x3x4"])) == ["GPT-2 small", "2x3x4"]
    for wrong in ("3x4", "ax1x2", "1x0x2", ""):
        with pytest.raises(ValueError, match="a shape"):
            workloads.parse(wrong)


def test_a_ratio_counts_only_at_equal_accuracy():
    def row(**entries):
        made = {"contestants": {name.replace("_", " "): entry for name, entry in entries.items()}}
        workloads.judge(made)
        return made["contestants"]

    slow, fast = {"ms": 2.0, "errors": [0.3, 0.03]}, {"ms": 1.0, "errors": [0.7, 0.7]}
    found = row(ours={"ms": 0.5, "errors": [0.01, 0.02]}, slow=slow, fast=fast, broken={"problem": "no"})["ours"]
    assert found | {"ratio": 2.0, "fastest rival": "fast", "as accurate": True, "more accurate rivals": []} == found
    # Errors are compared batch by batch: a better first batch does not make up for a worse second one.
    found = row(ours={"ms": 0.5, "errors": [0.01, 0.05]}, slow=slow, fast=fast)["ours"]
    assert (found["as accurate"], found["more accurate rivals"]) == (False, ["slow"])
    assert "LESS ACCURATE than slow" in workloads.verdict("ours", found)
    # A rival without a finite result does not count; before errors are known nothing is claimed; without a result of ours there is no win.
    found = row(ours={"ms": 0.5, "errors": [0.01]}, fast={"ms": 0.1, "errors": [None]}, slow={"ms": 2.0, "errors": [0.3]})["ours"]
    assert (found["fastest rival"], found["as accurate"]) == ("slow", True)
    assert row(ours={"ms": 0.5}, slow=slow)["ours"]["as accurate"] is None
    assert row(ours={"ms": 0.5, "errors": [0.01]}, slow={"ms": 2.0})["ours"]["as accurate"] is None
    assert row(ours={"ms": 0.5, "errors": [None]}, slow={"ms": 2.0, "errors": [0.3]})["ours"]["as accurate"] is False
    assert "ratio" not in row(ours={"ms": 0.5, "errors": [0.01]})["ours"]
    assert workloads.verdict("x", {"problem": "no"}) == "x: no"


class Clock:
    """CuPy's streams and events under the control of the test: one microsecond passes from each record to the next."""

    now = 0

    def __init__(self, **options):
        self.ptr = self.at = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def synchronize(self):
        pass

    def record(self, stream):
        Clock.now += 1
        self.at = Clock.now


class Array(np.ndarray):
    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Executable:
    def __init__(self, plan, stream):
        self.launches, self.base, self.ordinal = plan.launches, 1 << 30, 0
        self.graph = SimpleNamespace(launch=lambda stream: None)

    def __call__(self, addresses, scales):
        pass


@pytest.mark.parametrize("name", profile_launches.MAPS)
def test_profile_without_a_device(monkeypatch, tmp_path, name):
    """Every step of the profile except the device's own."""
    cuda = SimpleNamespace(
        Stream=Clock, Event=Clock, Device=Clock, get_elapsed_time=lambda start, end: (end.at - start.at) / 1e3,
    )  # fmt: skip
    fake = SimpleNamespace(
        cuda=cuda, RawKernel=lambda *source: lambda *launch: None, asarray=lambda x: x.view(Array), empty_like=np.empty_like,
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    )  # fmt: skip
    enqueued = []
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(profile_launches, "current", lambda: H200._replace(cache=2**16))
    monkeypatch.setattr(profile_launches.runtime, "Executable", Executable)
    monkeypatch.setattr(profile_launches.runtime, "enqueue", lambda item, stream, device: enqueued.append(item.kernel))
    monkeypatch.setattr(sys, "argv", ["profile", str(tmp_path / "out.json"), "--shapes", "2x300x257+1x40x50", "--maps", name])
    profile_launches.main()
    (report,) = json.loads((tmp_path / "out.json").read_text())
    launched = sum(row["launches"] for row in report["launches"])
    assert launched * (profile_launches.WARMUP + profile_launches.ROUNDS) == sum(kernel != "upload" for kernel in enqueued)
    assert report["map"] == name
    assert report["sum us"] == 0  # on this clock an event alone takes as long as an event after a launch
    assert report["graph us"] == pytest.approx(1)
    assert sum(row["flops"] for row in report["launches"]) == pytest.approx(report["flops"])
    assert report["flops"] > 0
