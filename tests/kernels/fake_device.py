"""Runs benches/gpu/case.py on a device with chosen faults: ``FAKE_DEVICE`` is JSON, {"STAGE NAME": fault}; all other cases succeed.

A fault is "hang", "deaf" (hangs and ignores all signals that can be ignored), "stuck" (hangs, and the device does not answer any more),
"crash", "exit", "wrong", "nan", "silent" (ends without a result) or "liar" (reports success with a large error).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

MACHINE = {
    "card": "NVIDIA Fake", "capability": [9, 0], "processors": 132, "driver": 13000, "nvrtc": [13, 0], "cupy": "14.2.0", "sources": "x",
}  # fmt: skip


def main(stage: str, name: str) -> None:
    lost = Path(os.environ["FAKE_STATE"])
    with lost.with_name("asked").open("a") as stream:
        stream.write(f"{stage} {name}\n")
    fault = json.loads(os.environ["FAKE_DEVICE"]).get(f"{stage} {name}", "")
    if stage == "probe" and lost.exists():
        fault = "hang"
    if fault == "stuck":
        lost.touch()
    if fault == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    if fault in ("hang", "stuck", "deaf"):
        print("waiting for the device", flush=True)
        time.sleep(600)
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "exit":
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")
    if fault == "silent":
        return
    said = {"error": {"wrong": 0.31, "liar": 7.0, "nan": float("nan")}.get(fault, 0.1), "promise": 1.0 if fault != "wrong" else 0.02}
    print(json.dumps(({"machine": MACHINE} if stage == "versions" else {}) | ({"verdict": "ok"} if fault == "liar" else {}) | said))


if __name__ == "__main__":
    main(*sys.argv[1:])
