"""Runs programs that may hang or crash in processes of their own, and gives a verdict on each within a deadline."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

#: Seconds to wait for a killed process to die. A process that is stuck in a driver does not die, and is abandoned.
PATIENCE = 10.0
OK, HUNG = "ok", "hung"
#: The most bytes that a program may write, and the last bytes of its output that are read.
MOST, KEPT = 200_000_000, 1_000_000
#: Errors and promises are smaller than this.
LARGEST = 1e300
TOO_LARGE = int(getattr(signal, "SIGXFSZ", 25))
#: The exit code of a program that could not be started.
NOT_STARTED = 127

#: Processes that did not die.
_left_behind: list[subprocess.Popen[bytes]] = []


class Ended(NamedTuple):
    """How a program ended: its exit code (None if it was killed at the deadline), its output, and the time that it took."""

    code: int | None
    output: str
    seconds: float


def isolated(command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> Ended:
    """Runs a command in a process group of its own, and kills the whole group after ``seconds``; returns at most `PATIENCE` later.

    A command that cannot be started, because there is no such program or no memory for it, ends with the code of a shell for this, 127.

    >>> import sys
    >>> isolated([sys.executable, "-c", "print('here')"], 60).output
    'here\\n'
    """
    start = time.monotonic()
    # The output goes to a file, not a pipe. A full pipe would block the program, and the output of a killed program would be lost.
    with tempfile.TemporaryFile() as log:
        try:
            child = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return Ended(NOT_STARTED, f"{error}", time.monotonic() - start)
        try:
            code = _waited(child, log, start + seconds)
        finally:  # kill its children too, however it ended, because a living child may hold the device
            _kill(child)
        log.seek(max(0, os.fstat(log.fileno()).st_size - KEPT))
        output = log.read(KEPT).decode(errors="replace")
    return Ended(code, output, time.monotonic() - start)


def _waited(child: subprocess.Popen[bytes], log: IO[bytes], deadline: float) -> int | None:
    """The exit code; None at the deadline, and the code of SIGXFSZ, a file that grew too large, for a program that fills the disk."""
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(min(left, 0.5))
        if os.fstat(log.fileno()).st_size > MOST:
            return -TOO_LARGE
    return child.poll()


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):  # the group has ended already
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _left_behind.append(child)


def last_json(output: str) -> dict[str, Any] | None:
    """The last line of the output that begins like a JSON object, which is the result of the program; None if it is no whole object.

    >>> last_json('compiling\\n{"error": 0.1, "promise": 0.2}\\nbye')
    {'error': 0.1, 'promise': 0.2}
    """
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):  # cut off, or garbage; an earlier line is not the result
                return None
            return found if isinstance(found, dict) else None
    return None


def judged(ended: Ended) -> dict[str, Any]:
    """The result of a program, with its ``verdict``.

    The verdict is ``"ok"`` only if the program exited with code 0 and its result has an ``error`` that is at most the ``promise``. Else it
    is ``"wrong: ..."``, ``"fault: ..."``, ``"hung"``, or the failure that the program itself reports, such as ``"does not load: ..."``.
    A program that a signal ended has a fault, whatever it reported before.
    """
    said = last_json(ended.output) or {}
    # JSON has no infinity and no NaN.
    strict = {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in said.items()}
    entry = {key: value for key, value in strict.items() if key != "verdict"} | {"seconds": round(ended.seconds, 1)}
    own = _one_line(str(said.get("verdict", OK))) or "fault: it reported nothing"
    if ended.code is None:
        entry["verdict"] = HUNG
    elif own != OK and ended.code >= 0:
        entry["verdict"] = own
    elif ended.code != 0:
        entry["verdict"] = f"fault: {_ending(ended.code)}"
    elif not {"error", "promise"} <= said.keys():
        entry["verdict"] = "fault: it ended without a result"
    else:
        entry["verdict"] = _compared(said["error"], said["promise"])
    if entry["verdict"] != OK:
        entry["last lines"] = [line[:400] for line in ended.output.splitlines()[-8:]]
    return entry


def _one_line(text: str) -> str:
    """A text that any file and any terminal can hold, since a program that lost its memory may print anything."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[:1000])
    return " ".join(shown.split())[:300]


def _compared(error: Any, promise: Any) -> str:
    if any(isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < LARGEST for number in (error, promise)):
        return f"wrong: {_one_line(str(error))[:80]}"
    return OK if 0 <= error <= promise else f"wrong: {error:.2g}, promised {promise:.2g}"


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
