"""The cost of the cases of compare.py, computed: flops, bytes, and the ratios that assumed rates allow. Nothing here is measured.

    PYTHONPATH=python python benches/gpu/costs.py

A method is the list of its products, from which flops and bytes follow. Sizes are the sizes of one matrix, n x m with n <= m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from modula_rs.kernels.schedule import FLOAT16, Schedule, schedule
from workloads import CASES, Case

#: Operations or bytes a second of an H200: PEAK by data sheet; CUBLAS at 8192^3 and COPY, a device copy, as reported.
PEAK, CUBLAS, COPY = 989e12, 790e12, 4.3e12
#: Reported rates of five plain steps on an H100: 1024 x 8192 batched (0.386 ms a matrix), 8192 x 8192 (26.1 ms).
BATCHED, LARGE = 472e12, 633e12
JORDAN = (3.4445, -4.7750, 2.0315)
#: You Jiacheng's coefficients, as used by Dion and by the Gram-space implementations.
DION = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012),
)  # fmt: skip
FIVE = schedule("float16", "fast")


class Product(NamedTuple):
    """One matrix product, (rows x inner) times (inner x cols), in 16 bits."""

    purpose: str  # "gram", "inner" or "apply"
    rows: int
    cols: int
    inner: int
    one_factor: bool = False  # A A^T or A A, whose factor is read once
    symmetric: bool = False  # only half of the result is computed

    @property
    def flops(self) -> int:
        return (1 if self.symmetric else 2) * self.rows * self.cols * self.inner

    @property
    def bytes(self) -> int:
        """Bytes if each factor is read once and the result is written once. A term added to the product is always one of its factors."""
        factors = self.rows * self.inner + (0 if self.one_factor else self.inner * self.cols)
        return 2 * (factors + self.rows * self.cols)


def plain(n: int, m: int, steps: int = 5, symmetric: bool = False) -> Iterator[Product]:
    """x <- a x + (b R + c R^2) x with R = x x^T, which takes three products a step."""
    for _ in range(steps):
        yield Product("gram", n, n, m, True, symmetric)
        yield Product("inner", n, n, n, True, symmetric)
        yield Product("apply", n, m, n)


def gram_space(n: int, m: int, steps: int, restart: int, symmetric: bool) -> Iterator[Product]:
    """The iteration on R = x x^T alone; x is formed anew before step ``restart`` and at the end."""
    gram = Product("gram", n, n, m, True, symmetric)
    square, general = (Product("inner", n, n, n, one_factor, symmetric) for one_factor in (True, False))
    yield gram
    for t in range(steps):
        if t == restart:
            yield from (Product("apply", n, m, n), gram)
        yield square  # Z = b R + c R^2
        if t not in (0, restart):
            yield general  # Q = Z Q + a Q
        if t + 1 not in (restart, steps):
            yield from (general, general)  # W = R Z + a R, R = Z W + a W
    yield Product("apply", n, m, n)


def ours(n: int, m: int, steps: Schedule = FLOAT16) -> list[Product]:
    """The products that orthogonal.py launches."""
    return list(gram_space(n, m, len(steps.steps), steps.restart, symmetric=True))


class Method(NamedTuple):
    """Products, coefficients, and the Schatten norm by which X is divided, by its power (2: Frobenius)."""

    products: Callable[[int, int], list[Product]]
    schedule: Schedule
    norm: int


OURS = {
    "ours, six steps": Method(ours, FLOAT16, 8),
    "ours, fast": Method(lambda n, m: ours(n, m, FIVE), FIVE, 8),
}
RIVALS = {
    "plain": Method(lambda n, m: list(plain(n, m)), Schedule((JORDAN,) * 5), 2),
    "Gram": Method(lambda n, m: list(gram_space(n, m, 5, 2, symmetric=False)), Schedule(DION), 2),
}


def edges(case: Case) -> Iterator[tuple[int, int, int]]:
    """(count, short edge, long edge) of each batch."""
    return ((count, *sorted((rows, cols))) for count, rows, cols in case.shapes)


def flops(method: Method, case: Case) -> int:
    """Operations that the method needs."""
    return sum(count * product.flops for count, n, m in edges(case) for product in method.products(n, m))


def least_bytes(case: Case) -> int:
    """The bytes of float32 input and output, each once: the least for any method, if a matrix stays on the chip in between."""
    return 8 * case.elements


def moved_bytes(method: Method, case: Case) -> int:
    """The bytes moved if every product is a kernel and no cache keeps anything.

    An element is read for the norm (4 bytes), read and rounded to 16 bits (4 + 2), then moved by the products, and converted to float32 (2
    + 4).
    """
    return 16 * case.elements + sum(count * product.bytes for count, n, m in edges(case) for product in method.products(n, m))


def least_seconds(method: Method, case: Case, rate: float) -> float:
    """Roofline: the time at ``rate`` or at the speed of a copy, whichever is longer."""
    return max(flops(method, case) / rate, least_bytes(case) / COPY)


def rival_seconds(case: Case, rate: float) -> float:
    """The time of the faster rival: its products at ``rate``, or its kernels' memory traffic, whichever is longer."""
    return min(max(flops(rival, case) / rate, moved_bytes(rival, case) / COPY) for rival in RIVALS.values())


class Need(NamedTuple):
    """The demands of a target on a method: a rate and a bandwidth, and the larger of their shares of the data sheet and a copy."""

    rate: float
    bandwidth: float

    @property
    def share(self) -> float:
        return max(self.rate / PEAK, self.bandwidth / COPY)


def need(method: Method, case: Case, rival_rate: float, target: float) -> Need:
    """The demands of ``target`` times the rivals' speed."""
    seconds = rival_seconds(case, rival_rate) / target
    return Need(flops(method, case) / seconds, least_bytes(case) / seconds)


def interval(n: int, m: int, norm: int, above: float = 0.01) -> tuple[float, float]:
    """The range of a Gaussian n x m matrix's singular values over its Schatten norm, without those below ``above`` of the largest.

    Marchenko and Pastur (1967): they lie between sqrt m - sqrt n and sqrt m + sqrt n, with known moments of their squares.
    """
    c = n / m
    largest = math.sqrt(m) + math.sqrt(n)
    moment = {2: n * m, 8: n * m**4 * (1 + 6 * c + 6 * c**2 + c**3)}[norm]  # the mean of the sum of sigma^norm
    size = moment ** (1 / norm)
    return max(math.sqrt(m) - math.sqrt(n), above * largest) / size, largest / size


def error(method: Method, n: int, m: int) -> float:
    """Worst |1 - sigma| on Gaussian matrices, without rounding."""
    x = np.geomspace(*interval(n, m, method.norm), 100_001)
    return float(np.abs(method.schedule.value(x) - 1).max())


def slowest_rival(method: Method, case: Case, rate: float, target: float) -> float:
    """The rate of the rivals' products above which ``target`` is out of reach for a method at ``rate``.

    It is infinite if the rivals' memory traffic alone takes long enough.
    """
    seconds = target * least_seconds(method, case, rate)
    able = [rival for rival in RIVALS.values() if moved_bytes(rival, case) / COPY < seconds]
    return min((flops(rival, case) / seconds for rival in able), default=math.inf)


def asks(method: Method, case: Case, rival_rate: float, target: float) -> str:
    """A table cell: the rate or bandwidth that a target demands, in bold if it exceeds what a good library reaches on the chip."""
    found = need(method, case, rival_rate, target)
    by_rate = found.rate / PEAK >= found.bandwidth / COPY
    text = f"{found.rate / 1e12:.0f} TFLOP/s" if by_rate else f"{found.bandwidth / 1e12:.1f} TB/s"
    text += f" ({found.share:.0%})" + (" no" if found.share > 1 else "")
    return f"**{text}**" if found.rate > CUBLAS or found.bandwidth > COPY else text


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def quantities() -> str:
    """Operations and bytes of every method."""
    every = OURS | RIVALS
    header = ["case", *(f"{name}, GFLOP" for name in every), "least MB", *(f"{name} moved, MB" for name in RIVALS)]
    rows = [
        [name, *(f"{flops(method, case) / 1e9:.4g}" for method in every.values()), f"{least_bytes(case) / 1e6:.4g}",
         *(f"{moved_bytes(rival, case) / 1e6:.4g}" for rival in RIVALS.values())]
        for name, case in CASES.items()
    ]  # fmt: skip
    return markdown(header, rows)


def times() -> str:
    """Our least milliseconds on two rooflines, and the rivals' at three rates."""
    rates = [f"{rate / 1e12:.0f}" for rate in (PEAK, CUBLAS)]
    header = ["case", *(f"{name}, {rate}" for name in OURS for rate in rates)]
    header += [f"faster rival, {rate / 1e12:.0f}" for rate in (BATCHED, LARGE, CUBLAS)]
    rows = []
    for name, case in CASES.items():
        floors = [least_seconds(method, case, rate) for method in OURS.values() for rate in (PEAK, CUBLAS)]
        rows.append([name, *(f"{1e3 * x:.3g}" for x in (*floors, *(rival_seconds(case, rate) for rate in (BATCHED, LARGE, CUBLAS))))])
    return markdown(header, rows)


def largest_ratios() -> str:
    """Our roofline over the faster rival, at the rates reported for rivals and at the best rates of their libraries."""
    pairs = [("ours, six steps", PEAK, BATCHED), ("ours, six steps", PEAK, LARGE), ("ours, six steps", PEAK, CUBLAS)]
    pairs += [("ours, six steps", CUBLAS, LARGE), ("ours, fast", PEAK, LARGE), ("ours, fast", CUBLAS, LARGE)]
    header = ["case", "target", *(f"{name.removeprefix('ours, ')} {a / 1e12:.0f} / {b / 1e12:.0f}" for name, a, b in pairs)]
    rows = []
    for name, case in CASES.items():
        found = [rival_seconds(case, b) / least_seconds(OURS[method], case, a) for method, a, b in pairs]
        rows.append([name, f"{case.target:g}", *(f"**{x:.2f}**" if x < (case.target or 0) else f"{x:.2f}" for x in found)])
    return markdown(header, rows)


def targets() -> str:
    """The demands of each target, and the rate of the rivals above which the target is out of reach."""
    header = [
        "case",
        "target",
        *(f"{name.removeprefix('ours, ')}, rival at {rate / 1e12:.0f}" for name in OURS for rate in (BATCHED, LARGE)),
    ]
    header += [f"{name.removeprefix('ours, ')} at 790: rivals at most" for name in OURS]
    rows = []
    for name, case in CASES.items():
        target = case.target or 1.0
        cells = [asks(method, case, rate, target) for method in OURS.values() for rate in (BATCHED, LARGE)]
        for method in OURS.values():
            limit = slowest_rival(method, case, CUBLAS, target)
            cells.append("any" if limit == math.inf else f"{limit / 1e12:.0f}")
        rows.append([name, f"{target:g}", *cells])
    return markdown(header, rows)


def errors() -> str:
    """Worst error of every method, batch by batch."""
    every = OURS | RIVALS
    shapes = {f"{n} x {m}": (n, m) for case in CASES.values() for _, n, m in edges(case)}
    rows = [[name, *(f"{error(method, *shape):.4f}" for method in every.values())] for name, shape in shapes.items()]
    return markdown(["matrix", *every], rows)


TABLES = {
    "Operations and bytes (least: float32 in and out once; moved: every product a kernel of its own, no cache):": quantities,
    "Milliseconds, TFLOP/s as named, 4.3 TB/s:": times,
    "The largest ratio that any kernel could reach, ours at / rival at so many TFLOP/s (bold: below the target):": largest_ratios,
    "What the target asks of ours, as a share of 989 TFLOP/s or 4.3 TB/s (bold: above 790 TFLOP/s or 4.3 TB/s; no: above the "
    "data sheet), and the TFLOP/s of the rivals above which ours, at 790, cannot reach it:": targets,
    "Worst error on Gaussian matrices, singular values above a hundredth of the largest, without rounding:": errors,
}


if __name__ == "__main__":
    for title, table in TABLES.items():
        print(title, table(), sep="\n\n", end="\n\n")
