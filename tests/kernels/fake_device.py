"""Runs benches/gpu/case.py on a device with chosen faults: ``FAKE_DEVICE`` is JSON, {"STAGE NAME": fault}; all other cases succeed.


A fault is

- "hang", "deaf" (and ignores all signals that can be ignored), "stuck" (and the device does not answer any more), "at exit" (after a good
  result);
- "crash", "exit", "killed" (as by the system when memory is short), "silent" (ends without a result);
- "wrong", "nan", "liar" (reports success with a large error), "boolean", "endless" (an infinite promise), "large" (a number that no float
  holds), "imposter" (calls itself another case), "texts" (numbers in quotes), "list" (a result that is no object);
- "excuse" (says that it was not tried, and crashes), "stopped" (as by a debugger), "orphan" (a good result, and a child in another session
  that lives on with the output open), "terminal" (a verdict that would clear a terminal, and that no encoding holds);
- "garbage", "partial" (a cut-off result after a good one), "deep" (JSON that no parser can nest), "bytes" (output that is no text beside
  a good result), "huge" (output without end).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MACHINE = {
    "card": "NVIDIA Fake", "capability": [9, 0], "processors": 132, "driver": 13000, "nvrtc": [13, 0], "cupy": "14.2.0", "sources": "x",
}  # fmt: skip

#: What is printed, where GOOD stands for a good result.
OUTPUTS = {
    "garbage": "GOOD\n{]}", "partial": 'GOOD\n{"error": 0.1, "prom', "deep": '{"a":' * 100_000,
    "large": f'{{"error": {"9" * 400}, "promise": 1}}',
    "boolean": '{"error": false, "promise": true}', "endless": '{"error": 5, "promise": Infinity}',
    "texts": '{"error": "0.1", "promise": "1"}', "list": '[{"error": 0, "promise": 1}]',
    "terminal": '{"verdict": "wrong:\\u001b[2J\\n\\ud800 cleared"}', "excuse": '{"verdict": "not tried: nothing to do"}',
    "imposter": '{"stage": "families", "case": "rows", "verdict": "wrong: imposter", "error": 0, "promise": 1}',
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
    good = '{"error": 0.1, "promise": 1.0}'
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "orphan":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"], start_new_session=True)
    if fault in OUTPUTS:
        sys.stdout.write(OUTPUTS[fault].replace("GOOD", good) + ("" if fault == "partial" else "\n"))
        if fault == "excuse":
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        return
    if fault == "bytes":
        sys.stdout.buffer.write(b"\xff\xfe\0\x80 \xc3\n" + good.encode() + b"\n\0\xff")
        return
    if fault == "killed":
        print(good, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "at exit":
        print(good, flush=True)
        time.sleep(600)
    while fault == "huge":
        print(good, "x" * 1_000_000, flush=True)
    said = {"error": {"wrong": 0.31, "liar": 7.0, "nan": float("nan")}.get(fault, 0.1), "promise": 1.0 if fault != "wrong" else 0.02}
    print(json.dumps(({"machine": MACHINE} if stage == "versions" else {}) | ({"verdict": "ok"} if fault == "liar" else {}) | said))


if __name__ == "__main__":
    main(*sys.argv[1:])
