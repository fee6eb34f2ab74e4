"""What stands in the way of one learning rate for every size of a network: its start, its logits, its branches, its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from modula_rs import _core
from modula_rs.norm import maps
from modula_rs.norm.table import Norm
from modula_rs.tracing.literals import Branch, Literals
from modula_rs.tracing.mass import MATRICES, OUTPUT
from modula_rs.tracing.multiples import Logits
from modula_rs.tracing.reading import Leaf

#: A start is far from norm 1 by this factor. A matrix of Gaussian entries of variance 1 / fan-in has norm 1 + sqrt(fan-in / fan-out): 2 if
#: it is square and 3 if it contracts by 4, at every width. Such starts train alike at all sizes.
FAR = 4.0
#: The factor for arrays whose norm depends on the width there: a last matrix, which passes it where the width exceeds the outputs; tables.
FAR_WITH_WIDTH = 2.0
#: An input is far from RMS 1 by this factor. Pixels from 0 to 1 (RMS 0.58) are not; pixels from 0 to 255 are.
FAR_INPUT = 2.0
#: Branches have too large factors if these sum to more than this. One over the number of blocks makes 2, with two branches each.
LARGEST_SUM = 3.0

TITLES = {
    "start": "norm of the initial weights, where 1 would start alike at every size",
    "logits": "scale of the logits, products of queries and keys",
    "branch": "factor of a residual branch",
    "input": "RMS of an input, which should be about 1",
}


@dataclass(frozen=True)
class Finding:
    """Something that stands in the way.

    ``path``: the array or arrays, or the input; ``what``: "start", "logits", "branch" or "input"; ``measured``: the norm of the initial
    weights, the scale of the logits, the factor of the branch over the factor of its skip, or the RMS of the input; ``suggestion``: the
    remedy.
    """

    path: str
    what: str
    measured: float
    suggestion: str


@dataclass(frozen=True)
class Report:
    """The findings, and notes on what could not be checked."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        lines = []
        for what, title in TITLES.items():
            own = [finding for finding in self.findings if finding.what == what]
            if not own:
                continue
            lines.append(f"{what}: {title}")
            rows = [_row(list(group)) for _, group in groupby(sorted(own, key=_likeness), _likeness)]
            width = max(len(row[0]) for row in rows)
            lines += [f"  {path.ljust(width)}  {measured:>7}  {suggestion}" for path, measured, suggestion in rows]
        return "\n".join([*(lines or ["nothing was found that stands in the way of transfer"]), *self.notes])


def _likeness(finding: Finding) -> tuple[str, str]:
    return finding.suggestion, f"{finding.measured:.2g}"


def _row(alike: Sequence[Finding]) -> tuple[str, str, str]:
    """Findings of the same kind and size as one line."""
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    return f"{alike[0].path}{more}", f"{alike[0].measured:.3g}", alike[0].suggestion


def starts(leaves: Sequence[Leaf], norms: Sequence[float | None]) -> list[Finding]:
    """Arrays whose initial norm is far from 1. Zeros are left out: they have no direction yet."""
    made = []
    for leaf, norm in zip(leaves, norms, strict=True):
        if norm is None or norm == 0:
            continue
        last = leaf.kind in MATRICES and leaf.kind != "Embed" and leaf.place == OUTPUT
        # The norm of a kernel adds up its taps as if they were alike; taps that are drawn apart add up to its square root.
        taps = leaf.roles[0].layout.taps ** 0.5 if leaf.kind in ("Conv2D", "Scale") else 1.0
        far = (FAR_WITH_WIDTH if last or leaf.kind == "Embed" else FAR) * taps
        if not np.isfinite(norm):
            made.append(Finding(leaf.path, "start", norm, "it has entries that are not finite"))
        elif leaf.kind not in MATRICES:
            gain = leaf.kind == "Scale" and not leaf.roles[0].based  # a small bias, or g in 1 + g, is a start at zero
            if norm > far or (gain and norm < 1 / far):
                made.append(Finding(leaf.path, "start", norm, f"divide it by {norm:.2g}"))
        elif last and norm > far:
            made.append(Finding(leaf.path, "start", norm, "it grows as the square root of the width: net.rescale(params)"))
        elif leaf.kind == "Embed" and norm < 1 / far:
            made.append(Finding(leaf.path, "start", norm, "it falls as one over the square root of the width: net.rescale(params)"))
        elif norm > far or norm < 1 / FAR:
            which = "" if last or leaf.kind == "Embed" else ', "all"'
            made.append(Finding(leaf.path, "start", norm, f"net.rescale(params{which})"))
    return made


def logits(found: Sequence[Logits], paths: Sequence[str]) -> list[Finding]:
    """Logits whose scale is not smaller than one over the square root of the features."""
    made = []
    for own in found:
        if own.scale * own.size**0.5 < 0.99:
            continue
        root = ", not by its square root" if abs(own.scale * own.size**0.5 - 1) < 0.01 else ""
        suggestion = f"divide by {own.size}, the number of features that are summed{root}"
        made.append(Finding(_named(own.arrays, paths), "logits", own.scale, suggestion))
    return made


def branches(found: Sequence[Branch], paths: Sequence[str]) -> list[Finding]:
    """Branches whose factors do not fall as their number grows. Branches with a learned gain are left out."""
    made = []
    for own in found:
        factor = own.factor / own.skip if own.skip else float("inf")
        if own.learned or own.number < 2 or (factor < 0.99 and factor * own.number <= LARGEST_SUM):
            continue
        suggestion = f"x + f(x) / {own.number:g}, since {own.number:g} branches follow one another"
        made.append(Finding(_named(own.last, paths), "branch", factor, suggestion))
    return made


def inputs(named: Sequence[tuple[str, Any]]) -> list[Finding]:
    """Inputs of numbers whose RMS is far from 1. Inputs of zeros are left out: they only stand for a shape."""
    made = []
    for name, array in named:
        rms = _rms(array)
        if rms and not 1 / FAR_INPUT <= rms <= FAR_INPUT:
            made.append(Finding(name, "input", rms, f"divide it by {rms:.3g}"))
    return made


def _rms(array: Any) -> float | None:
    """The RMS of an array of real numbers; None for anything else."""
    if not hasattr(array, "shape") or type(array).__name__ == "ShapeDtypeStruct":
        return None
    try:
        numbers = np.asarray(array, np.float64)
    except (TypeError, ValueError):
        return None
    if np.dtype(array.dtype).kind in "biu" or not numbers.size:
        return None
    return float(np.sqrt(np.mean(numbers**2)))


def start_scale(leaf: Leaf) -> float:
    """The literal that counts for the start of an array: one above 1, such as the square root of the features."""
    return max(leaf.roles[0].scale, 1.0)


def norm_of(leaf: Leaf, rows: Sequence[Any], arrays: Sequence[Any]) -> float:
    """The norm of an array times its literal scale, with 1 where its atom starts; NaN if it is not finite.

    ``rows``: its rows in the norm; ``arrays``: the array of each.
    """
    for array in arrays:
        if not np.isfinite(np.asarray(array, np.float64)).all():
            return float("nan")
    alone = Norm(_core.Norm.of_rows([(*row[:6], 1.0, 1.0, None) for row in rows]))
    targets = 1 / sum(int(row[3]) for row in rows)
    return float(maps.measure(alone, arrays)) * targets * start_scale(leaf)


def _named(bits: int, paths: Sequence[str]) -> str:
    """The paths of some arrays, as one path with braces if they differ in one part."""
    own = [path.split("/") for at, path in enumerate(paths) if bits >> at & 1]
    apart = [at for at, parts in enumerate(zip(*own, strict=False)) if len(set(parts)) > 1]
    if len(own) > 1 and len({len(path) for path in own}) == 1 and len(apart) == 1:
        at = apart[0]
        return "/".join([*own[0][:at], "{" + ",".join(path[at] for path in own) + "}", *own[0][at + 1 :]])
    return ", ".join(map("/".join, own)) if own else "the inputs"


def report(leaves: Sequence[Leaf], norms: Sequence[float | None], found: Literals | None, named: Sequence[tuple[str, Any]]) -> Report:
    """The report on arrays with these norms, on the literals of the program if there is one, and on inputs with their names."""
    paths, notes = [leaf.path for leaf in leaves], []
    if all(norm is None for norm in norms):
        notes.append("the start was not checked, because only shapes are known: net.check(params)")
    made = starts(leaves, norms)
    if found is None:
        notes.append("logits and branches were not checked, because a table that was loaded has no program")
    else:
        made += logits(found.logits, paths) + branches(found.branches, paths)
    return Report(tuple(made + inputs(named)), tuple(notes))
