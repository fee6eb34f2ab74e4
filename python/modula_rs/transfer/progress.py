"""Progress of a long sweep: a bar in a terminal, elsewhere a line per finished size, with the time left estimated from measured times."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

#: First guess of a job's fixed cost (compilation) in units of work, used until a job has finished.
_GUESSED_OVERHEAD = 2e11


class Clock:
    """Estimates the time left from jobs of known work: seconds = overhead + pace * work, fitted to the finished jobs.

    >>> clock = Clock([1e12, 1e12, 4e12], workers=1)
    >>> clock.finish(0, seconds=2.0); clock.finish(1, seconds=2.0)
    >>> 2.0 <= clock.left() <= 8.0
    True
    """

    def __init__(self, works: Sequence[float], workers: int) -> None:
        self.works, self.workers = list(works), workers
        self.seconds: dict[int, float] = {}
        self.running: dict[int, tuple[float, float]] = {}

    def update(self, job: int, fraction: float, seconds: float) -> None:
        """Records that a running job has done this fraction of its work in this time."""
        self.running[job] = (fraction, seconds)

    def finish(self, job: int, seconds: float) -> None:
        """Records that a job is done."""
        self.running.pop(job, None)
        self.seconds[job] = seconds

    @property
    def done(self) -> float:
        """The fraction of all work that is done."""
        costs = [work + _GUESSED_OVERHEAD for work in self.works]
        part = sum(costs[job] for job in self.seconds) + sum(costs[job] * fraction for job, (fraction, _) in self.running.items())
        return part / sum(costs) if costs else 1.0

    def left(self) -> float | None:
        """Seconds left; None before anything is measured."""
        predict = self._model()
        if predict is None:
            return None
        waiting = [predict(work) for job, work in enumerate(self.works) if job not in self.seconds and job not in self.running]
        going = [self._rest(predict(self.works[job]), *state) for job, state in self.running.items()]
        # The time is at least what perfect sharing among the workers would take, and at least the time of the longest job.
        return float(max([(sum(waiting) + sum(going)) / self.workers, *waiting, *going, 0.0]))

    def _rest(self, predicted: float, fraction: float, seconds: float) -> float:
        if fraction > 0.1:  # after a tenth, the job's own pace is a better estimate than the pace of other jobs
            return seconds * (1 - fraction) / fraction
        return max(predicted - seconds, predicted * 0.5)

    def _model(self) -> Any:
        samples = [(self.works[job], seconds) for job, seconds in self.seconds.items()]
        if not samples:
            samples = [(self.works[job], seconds / fraction) for job, (fraction, seconds) in self.running.items() if fraction > 0.1]
        if not samples:
            return None
        work, seconds = np.array(samples).T
        if len(samples) >= 3 and np.ptp(work) > 0:
            design = np.stack([np.ones_like(work), work], axis=1) / seconds[:, None]  # the fit minimises relative errors
            overhead, pace = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0]
            if overhead >= 0 and pace >= 0:
                return lambda amount: overhead + pace * amount
        pace = seconds.sum() / (work + _GUESSED_OVERHEAD).sum()
        return lambda amount: pace * (amount + _GUESSED_OVERHEAD)


class Progress:
    """Shows the jobs of a sweep as they run; several threads may call it. With ``shown=False`` it prints nothing."""

    def __init__(
        self, names: Sequence[str], works: Sequence[float], workers: int, shown: bool = True, stream: TextIO | None = None
    ) -> None:
        self._names, self._clock, self._shown = list(names), Clock(works, workers), shown
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._started: dict[int, float] = {}
        self._begun = time.perf_counter()
        self._bar = _bar(self._stream) if shown and self._stream.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, left="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, job: int) -> None:
        """Records that a worker has begun this job."""
        with self._lock:
            self._started[job] = time.perf_counter()
            self._clock.update(job, 0.0, 0.0)
            self._show(f"{self._names[job]}: compiling")

    def update(self, job: int, fraction: float) -> None:
        """Records that this fraction of the job is done."""
        with self._lock:
            self._clock.update(job, fraction, time.perf_counter() - self._started[job])
            self._show(self._names[job])

    def finish(self, job: int, summary: str) -> None:
        """Records that the job is done; ``summary`` is its result in words."""
        with self._lock:
            self._clock.finish(job, time.perf_counter() - self._started[job])
            line = f"{self._names[job]}: {summary}"
            if self._bar is not None:
                self._bar.console.print(line, highlight=False)
                self._show(self._names[job])
            elif self._shown:
                done, count = len(self._clock.seconds), len(self._names)
                left = self._clock.left()
                rest = f", about {duration(left)} left" if left and done < count else ""
                print(f"[{done}/{count}, {duration(time.perf_counter() - self._begun)}{rest}] {line}", file=self._stream, flush=True)

    def _show(self, text: str) -> None:
        if self._bar is not None:
            left = self._clock.left()
            self._bar.update(
                self._task, completed=self._clock.done, description=text, left="" if left is None else f"about {duration(left)} left"
            )


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(7.2), duration(83), duration(7265)
    ('7 s', '1 min 23 s', '2 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _bar(stream: TextIO) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(file=stream), transient=True)
