"""Programs that hang, crash, print nonsense or do not die, and the verdict on each."""

from __future__ import annotations

import sys
import time

import pytest
from modula_rs.kernels import isolate


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ('print(\'{"error": 0.5, "promise": 1}\')', "ok"),
        ('print(\'{"error": 1.5, "promise": 1}\')', "wrong: 1.5, promised 1"),
        ('print(\'{"error": NaN, "promise": 1}\')', "wrong: nan"),
        ('print(\'{"error": null, "promise": 1}\')', "wrong: None"),
        ('print(\'{"error": -1, "promise": 1}\')', "wrong: -1, promised 1"),
        ('print(\'{"verdict": "ok"}\')', "fault: it ended without a result"),
        ('print(\'{"verdict": "ok", "error": 9, "promise": 1}\')', "wrong: 9, promised 1"),
        ('print(\'{"verdict": "hung"}\'); import os; os._exit(3)', "hung"),
        ("print('all is well')", "fault: it ended without a result"),
        ('import sys; print(\'{"error": 0, "promise": 1}\'); sys.exit(5)', "fault: exit code 5"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "fault: SIGSEGV"),
        ("raise RuntimeError('cudaErrorIllegalAddress')", "fault: exit code 1"),
        ('print(\'{"error": 0, "promise": 1}\', flush=True); import time; time.sleep(60)', "hung"),
        ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", "hung"),
    ],
)
def test_verdicts_on_programs(code, verdict):
    start = time.monotonic()
    entry = isolate.judged(isolate.isolated(python(code), 2.5))
    assert entry["verdict"] == verdict
    assert time.monotonic() - start < 12
    assert ("last lines" in entry) == (verdict != "ok")


@pytest.mark.parametrize(
    ("code", "output", "verdict"),
    [
        (3, '{"verdict": "not tried: no kernel"}', "not tried: no kernel"),
        (3, '{"verdict": "does not load: a\\n\\u001b[2J\\ud800b\\tc"}', "does not load: a [2J b c"),
        (3, '{"verdict": "' + "x" * 1000 + '"}', "x" * 300),
        (3, '{"verdict": " "}', "fault: it reported nothing"),
        (-11, '{"verdict": "not tried: no kernel"}', "fault: SIGSEGV"),
        (-99, '{"error": 0, "promise": 1}', "fault: signal 99"),
        (0, '{"verdict": "ok ", "error": 9, "promise": 1}', "wrong: 9, promised 1"),
        (0, '{"error": "\\u001b", "promise": 1}', "wrong: "),
        (0, '{"error": 1, "promise": 1}', "ok"),
        (0, '{"error": 1}', "fault: it ended without a result"),
    ],
)
def test_verdicts_on_results(code, output, verdict):
    entry = isolate.judged(isolate.Ended(code, f"before\n{output}\nafter", 1.23))
    assert (entry["verdict"], entry["seconds"]) == (verdict, 1.2)
    assert entry["verdict"].isprintable()


def test_children_of_a_program_go_with_it():
    """A child that is left would hold the device, and a child that holds the output must not block us."""
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']).pid, flush=True)"
    ended = isolate.isolated(python(code), 20)
    assert ended.code == 0
    stat = f"/proc/{int(ended.output)}/stat"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(stat) as file:
                if file.read().split()[2] == "Z":  # dead, but not yet waited for
                    break
        except FileNotFoundError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives")


def test_a_process_that_does_not_die_is_left_behind(monkeypatch):
    """Such as a process that is stuck in a driver."""
    monkeypatch.setattr(isolate, "PATIENCE", 0.2)
    monkeypatch.setattr(isolate.os, "killpg", lambda group, number: killed.append(group))
    killed: list[int] = []
    start = time.monotonic()
    ended = isolate.isolated(python("import time; time.sleep(8)"), 0.5)
    assert ended.code is None
    assert time.monotonic() - start < 5
    assert len(killed) == 1
    (child,) = isolate._left_behind
    child.kill()
    child.wait(10)
    isolate._left_behind.clear()
