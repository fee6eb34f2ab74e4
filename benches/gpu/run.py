"""Everything a machine with an NVIDIA GPU can say about the kernels, in one command:

    python benches/gpu/run.py --wheel dist/modula_rs-*.whl --out gpu-results

Unpacks the wheel beside the results (nothing is built or downloaded), runs the tests marked ``gpu``, the comparison with the rivals, the
profile of every launch, and compute-sanitizer over every kernel, and writes ``results.json`` after each. ``--only`` picks stages; each
stays within its share of ten minutes.
Copy ``results.json`` to ``benches/results/gpu-<device>-<date>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for each stage: together under ten minutes. What would be missed most comes first.
STAGES = {"tests": 160, "compare": 250, "profile": 60, "sanitizer": 110}
#: The last case of a stage takes up to so many seconds: none begins later than that before the end.
LAST_CASE = {"compare": 70, "profile": 15}


def environment(wheel: Path | None, out: Path) -> dict[str, str]:
    """The wheel's package, or the source tree's own, first on the path."""
    package = ROOT / "python"
    if wheel is not None:
        package = out / "wheel"
        shutil.rmtree(package, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(package)
    paths = [str(package), str(ROOT / "benches" / "gpu"), str(ROOT / "tests" / "gpu")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "MODULA_RS_CACHE": str(out / "cubins"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def run(name: str, command: list[str], env: dict[str, str], out: Path) -> dict:
    """One stage, its output kept in a log."""
    start = time.monotonic()
    log = out / f"{name}.log"
    (out / f"{name}.json").unlink(missing_ok=True)  # of an earlier run
    with (
        log.open("w") as stream,
        subprocess.Popen(command, env=env, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True) as child,
    ):
        try:
            code: int | str = child.wait(timeout=STAGES[name])
        except subprocess.TimeoutExpired:
            code = "timeout"
            os.killpg(child.pid, signal.SIGKILL)  # with its children: none may hold the device into the next stage
    tail = log.read_text().splitlines()[-12:]
    print(f"--- {name}: exit {code}", *tail, sep="\n", flush=True)
    return {"exit": code, "seconds": round(time.monotonic() - start, 1), "last lines": tail}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a built wheel; default: the package in this source tree")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    env = environment(options.wheel, out)
    sanitizer = shutil.which("compute-sanitizer")
    commands = {
        "tests": [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--override-ini=addopts=", "tests/kernels"],
        "sanitizer": [sanitizer or "compute-sanitizer", "--error-exitcode", "1", sys.executable, "benches/gpu/sanitize.py"],
        "compare": [sys.executable, "benches/gpu/compare.py", str(out / "compare.json")],
        "profile": [sys.executable, "benches/gpu/profile_launches.py", str(out / "profile.json")],
    }
    for name, seconds in LAST_CASE.items():
        commands[name] += ["--seconds", str(STAGES[name] - seconds)]
    results = {}
    for name in options.only:
        if name == "sanitizer" and sanitizer is None:
            results[name] = {"exit": "compute-sanitizer is not installed"}
        else:
            results[name] = run(name, commands[name], env, out)
        for stage, title in (("compare", "measured"), ("profile", "launches")):
            if stage in results and (out / f"{stage}.json").exists():
                results[title] = json.loads((out / f"{stage}.json").read_text())
        (out / "results.json").write_text(json.dumps(results, indent=1))  # at once, should the machine be taken away
    print(f"wrote {out / 'results.json'}")
    if any(stage.get("exit") != 0 for name, stage in results.items() if name in STAGES):
        sys.exit(1)


if __name__ == "__main__":
    main()
