"""The cases that are compared, profiled and costed, and the judgement of a row of results; plain Python, which needs no GPU."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

#: (count, rows, cols) of one batch of equal matrices.
Shape = tuple[int, int, int]


class Case(NamedTuple):
    """The batches of one call, and the ratio to the best rival that the project aims at (None: no aim)."""

    shapes: list[Shape]
    target: float | None = None

    @property
    def elements(self) -> int:
        """The number of entries of all matrices."""
        return sum(math.prod(shape) for shape in self.shapes)


CASES = {
    "64 x 1024, 256 of them": Case([(256, 64, 1024)], 4.0),
    "128 x 1024, 128 of them": Case([(128, 128, 1024)], 4.0),
    "256 x 1024, 64 of them": Case([(64, 256, 1024)], 4.0),
    "1024 x 1024": Case([(1, 1024, 1024)], 1.3),
    "2048 x 8192": Case([(1, 2048, 8192)], 1.9),
    "4096 x 4096": Case([(1, 4096, 4096)], 1.35),
    "GPT-2 small": Case([(48, 768, 768), (12, 3072, 768), (12, 768, 3072)], 2.5),
    "8192 x 8192": Case([(1, 8192, 8192)], 1.35),  # the last, because it takes longest and time may run out
}


def parse(text: str) -> Case:
    """A case from a text COUNTxROWSxCOLS; several batches of one call are joined by ``+``.

    >>> parse("48x768x768+12x3072x768").shapes
    [(48, 768, 768), (12, 3072, 768)]
    """
    shapes: list[Shape] = []
    for part in text.split("+"):
        try:
            count, rows, cols = (int(number) for number in part.split("x"))
        except ValueError:
            raise ValueError(f"a shape is COUNTxROWSxCOLS, as in 16x512x2048, got {part!r}") from None
        if min(count, rows, cols) < 1:
            raise ValueError(f"a shape has positive sizes, got {part!r}")
        shapes.append((count, rows, cols))
    return Case(shapes)


def chosen(names: list[str] | None, shapes: list[str] | None) -> dict[str, Case]:
    """The cases whose names contain one of ``names``, then the cases of ``shapes``; all of `CASES` if neither is given."""
    wanted = names if names is not None else [] if shapes else [""]
    found = {name: case for name, case in CASES.items() if any(part in name for part in wanted)}
    return found | {text: parse(text) for text in shapes or []}


def judge(row: dict[str, Any]) -> None:
    """Adds to ``row["contestants"]``, for each entry of ours, the ratio to the fastest rival and whether it is as accurate.

    Entries hold ``ms`` and, once checked, ``errors``, one for each batch (None: not finite). ``as accurate`` is true if our errors are at
    most the errors of *every* rival, batch by batch, so that no speed is bought with accuracy; it is None before all are checked. A rival
    whose result is not finite does not count.
    """
    ran = {name: entry for name, entry in row["contestants"].items() if "ms" in entry}
    ours = {name: entry for name, entry in ran.items() if name.startswith("ours")}
    rivals = {name: entry for name, entry in ran.items() if name not in ours and None not in entry.get("errors", [])}
    if not rivals:
        return
    fastest = min(rivals, key=lambda name: rivals[name]["ms"])
    for entry in ours.values():
        entry["ratio"] = rivals[fastest]["ms"] / entry["ms"]
        entry["fastest rival"] = fastest
        if "errors" in entry and all("errors" in rival for rival in rivals.values()):
            better = [name for name, rival in rivals.items() if not _at_most(entry["errors"], rival["errors"])]
            entry["as accurate"], entry["more accurate rivals"] = not better, better
        else:
            entry["as accurate"] = None


def _at_most(mine: list[float | None], theirs: list[float | None]) -> bool:
    return all(a is not None and b is not None and a <= b for a, b in zip(mine, theirs, strict=True))


def verdict(name: str, entry: dict[str, Any]) -> str:
    """One line about one contestant."""
    if "ms" not in entry:
        return f"{name}: {entry['problem']}"
    line = f"{name}: {entry['ms']:.4f} ms"
    if "errors" in entry:
        line += ", error " + "/".join("not finite" if x is None else f"{x:.4f}" for x in entry["errors"])
    if "ratio" in entry:
        line += f", {entry['ratio']:.2f} times as fast as {entry['fastest rival']}"
        line += {True: "", None: ", accuracy not checked"}.get(entry["as accurate"], ", BUT LESS ACCURATE than ")
        line += ", ".join(entry.get("more accurate rivals", []))
    if entry.get("host bound"):
        line += " (bound by the host: an upper limit of its time)"
    return line
