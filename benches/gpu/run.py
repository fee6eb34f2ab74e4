"""Measures and checks all kernels on a machine with an NVIDIA GPU, in one command that survives faults:

    python benches/gpu/run.py --wheel dist/modula_rs-*.whl --out gpu-results

Unpacks the wheel beside the results; nothing is built or downloaded. Every case is a process of its own (case.py) with a deadline. After
each failure another process asks whether the device still answers. The result of each case is one line of ``results.jsonl``, written at
once. The order: versions and loading, the proof of each family of kernels, single kernels beside cuBLAS, whole cases beside rivals, the
tests with proved kernels, compute-sanitizer on failures, a profile of every launch. Keep the file as
``benches/results/gpu-<device>-<date>.jsonl``.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python")] if (ROOT / "python").exists() else []

from modula_rs.kernels import verdicts  # noqa: E402  # of this source tree, where nothing is installed
from modula_rs.kernels.isolate import OK, isolated, judged  # noqa: E402
from workloads import CASES  # noqa: E402

#: The stages in order, each with the seconds that one of its cases may take.
STAGES = {"versions": 90, "families": 240, "kernels": 60, "cases": 90, "tests": 90, "sanitizer": 120, "profile": 60}
#: Seconds within which a working device answers.
PROBE = 30
#: Single kernels: the family and the part that is timed, see case.py.
KERNELS = [
    *(f"{family} {purpose} {size}" for family in ("product_mma", "product_wgmma", "product_wide") for purpose in ("symmetric", "apply")
      for size in (2048, 4096, 8192)),
    *(f"{family} {size}" for family in ("small", "resident") for size in (64, 128)), "small 256", "power 4096",
]  # fmt: skip

#: The cases of which every launch is timed.
PROFILED = ["GPT-2 small", "4096 x 4096"]


class Case(NamedTuple):
    """One process: its stage, its name, and the family of kernels that must be proved before it runs."""

    stage: str
    name: str
    family: str = ""


def cases(stages: Sequence[str]) -> Iterator[Case]:
    """All cases; the cheapest come first."""
    found = [Case("versions", "versions")]
    found += [Case("families", family, "" if family == "rows" else "rows") for family in verdicts.FAMILIES]
    found += [Case("kernels", name, name.split()[0]) for name in KERNELS]
    found += [Case("cases", name, "rows") for name in CASES]
    found += [Case("tests", name) for name in tests()]
    found += [Case("sanitizer", family) for family in verdicts.FAMILIES]
    found += [Case("profile", name, "rows") for name in PROFILED]
    return (case for case in found if case.stage in stages)


def tests() -> list[str]:
    """The tests that need a GPU, one by one."""
    tree = ast.parse((ROOT / "tests" / "kernels" / "test_kernels_gpu.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


class Session:
    """The results so far, and the file that holds them."""

    def __init__(self, child: Sequence[str], out: Path, env: dict[str, str], seconds: float) -> None:
        self.child, self.env, self.file = child, env, out / "results.jsonl"
        self.end = time.monotonic() + seconds
        self.families: dict[str, str] = {}
        self.machine: verdicts.Machine | None = None
        self.lost = ""  # the case after which the device did not answer
        for entry in self.earlier():
            self.know(str(entry.get("stage")), str(entry.get("case")), entry)

    def earlier(self) -> Iterator[dict[str, Any]]:
        """The lines that an earlier run wrote to the file; a line that was cut off or overwritten is left out, and the last one ended."""
        if not self.file.exists():
            return
        text = self.file.read_text(errors="replace")
        if text and not text.endswith("\n"):
            with self.file.open("a") as stream:
                stream.write("\n")
        for line in text.splitlines():
            with suppress(ValueError, RecursionError):
                if isinstance(entry := json.loads(line), dict):
                    yield entry

    def know(self, stage: str, name: str, entry: dict[str, Any]) -> None:
        """Remembers what later cases depend on."""
        verdict = str(entry.get("verdict"))
        if stage == "families":
            self.families[name] = verdict
        if stage == "versions":
            self.machine = _machine(entry.get("machine"))

    def run(self, case: Case) -> str:
        """Runs a case and returns its verdict; or says why it does not run."""
        reason = self.reason(case)
        entry = {"verdict": f"not tried: {reason}"} if reason else self.ask(case.stage, case.name, STAGES[case.stage])
        self.write(case, entry)
        verdict = str(entry["verdict"])
        self.know(case.stage, case.name, entry)
        if case.stage == "families" and self.machine is not None:
            verdicts.record(self.machine, case.name, entry)
        if failed(verdict):
            well = self.ask("probe", "probe", PROBE)
            self.write(Case("probe", f"after {case.stage} {case.name}"), well)
            if well["verdict"] != OK:
                self.lost = f"{case.stage} {case.name}"
        if case.stage == "versions" and not reason and verdict != OK:
            self.lost = "versions"
        return verdict

    def reason(self, case: Case) -> str:
        """The reason why a case should not run, or ""."""
        family = self.families.get(case.family, OK)
        if self.lost:
            return f"the device did not answer after {self.lost}"
        if time.monotonic() > self.end:
            return "no time was left"
        if family != OK:
            return f"{case.family} is {family}"
        if case.stage == "sanitizer" and self.families.get(case.name, OK).startswith((OK, "not tried")):
            return "nothing is known against it"
        if case.stage == "sanitizer" and shutil.which("compute-sanitizer") is None:
            return "compute-sanitizer is not installed"
        return ""

    def ask(self, stage: str, name: str, seconds: float) -> dict[str, Any]:
        """Runs one process, and returns its verdict."""
        return judged(isolated([*self.child, stage, name], seconds, self.env))

    def write(self, case: Case, entry: dict[str, Any]) -> None:
        """Writes a line of the file to the disk at once, in case the machine is taken away."""
        name = {"stage": case.stage, "case": case.name}
        line = json.dumps(name | entry | name)  # whatever the program calls itself
        with self.file.open("a") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        print(f"{case.stage:<10} {case.name:<40} {entry['verdict']}", flush=True)


def failed(verdict: str) -> bool:
    """Whether a case ran and did not succeed."""
    return verdict != OK and not verdict.startswith("not tried")


def _machine(fields: Any) -> verdicts.Machine | None:
    """The machine as the first case describes it: this process never touches the device."""
    try:
        return verdicts.Machine(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except (TypeError, AttributeError):
        return None


def environment(wheel: Path | None, out: Path) -> dict[str, str]:
    """The variables of a case: the wheel's package (or the source tree's) comes first on the path, and all proved families count.

    Families that otherwise run on request only count too.
    """
    package = ROOT / "python"
    if wheel is not None:
        package = out / "wheel"
        shutil.rmtree(package, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(package)
    paths = [str(package), *(str(ROOT / place) for place in ("benches/gpu", "tests/kernels", "tests/support"))]
    asked = [name for name, family in verdicts.FAMILIES.items() if family.on_request]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "MODULA_RS_CACHE": str(out / "cache"), "MODULA_RS_GPU_BACKEND": "auto",
        verdicts.EXTRA: " ".join(asked), "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; returns 0 if every case that ran succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a built wheel; default: the package in this source tree")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after this long")
    parser.add_argument("--child", default=shlex.join([sys.executable, str(Path(__file__).with_name("case.py"))]), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    env = environment(options.wheel, out)
    os.environ["MODULA_RS_CACHE"] = env["MODULA_RS_CACHE"]  # this process keeps verdicts there for the cases
    session = Session(shlex.split(options.child), out, env, options.seconds)
    found = [session.run(case) for case in cases(options.only)]
    print(f"wrote {session.file}")
    return 1 if any(failed(verdict) for verdict in found) else 0


if __name__ == "__main__":
    sys.exit(main())
