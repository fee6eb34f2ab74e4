"""The table of a sweep: one row per run, as a NumPy structured array, in CSV or in Parquet."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray


class Size(NamedTuple):
    """What a network is built from. Mass and context are None where the architecture's own are meant.

    >>> from modula_rs.transfer import Size
    >>> str(Size(64, 4)), str(Size(64, 4, mass=0.5))
    ('width 64, 4 blocks', 'width 64, 4 blocks, mass 0.5')
    """

    width: int
    depth: int
    mass: float | None = None
    context: int | None = None

    def __str__(self) -> str:
        parts = [f"width {self.width}", f"{self.depth} block{'s' if self.depth != 1 else ''}"]
        parts += [f"mass {self.mass:g}"] if self.mass is not None else []
        parts += [f"context {self.context}"] if self.context is not None else []
        return ", ".join(parts)


class Row(NamedTuple):
    """One run. Losses are in the units of the loss (nats for cross-entropy), infinite where the run diverged."""

    optimizer: str
    width: int
    depth: int
    mass: float | None
    context: int | None
    rate: float
    seed: int
    train_loss: float
    test_loss: float

    @property
    def size(self) -> Size:
        """The size of the network that was trained."""
        return Size(self.width, self.depth, self.mass, self.context)


class TableError(ValueError):
    """A file that is no table of a sweep."""


class Table:
    """Rows of a sweep, in the order given.

    >>> from modula_rs.transfer import Row, Table
    >>> table = Table([Row("adam", 64, 4, None, None, 0.5, seed, 0.1 + seed, 0.2) for seed in range(3)])
    >>> table.records["train_loss"]
    array([0.1, 1.1, 2.1])
    >>> len(table.where(seed=1)), [str(size) for size in table.sizes]
    (1, ['width 64, 4 blocks'])
    """

    #: Columns of :attr:`records`. A mass of NaN or a context of 0 is the architecture's own.
    DTYPE = np.dtype(
        [
            ("optimizer", "U32"),
            ("width", np.int64),
            ("depth", np.int64),
            ("mass", np.float64),
            ("context", np.int64),
            ("rate", np.float64),
            ("seed", np.int64),
            ("train_loss", np.float64),
            ("test_loss", np.float64),
        ]
    )

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"<Table of {len(self)} runs: {', '.join(self.optimizers) or 'none'} at {len(self.sizes)} sizes>"

    @property
    def records(self) -> NDArray[np.void]:
        """All rows as a structured array with the columns of :attr:`DTYPE`."""
        rows = [row._replace(mass=math.nan if row.mass is None else row.mass, context=row.context or 0) for row in self.rows]
        return np.array([tuple(row) for row in rows], self.DTYPE)

    @property
    def optimizers(self) -> list[str]:
        """Names of the optimizers, in order of appearance."""
        return list(dict.fromkeys(row.optimizer for row in self.rows))

    @property
    def sizes(self) -> list[Size]:
        """The different sizes, sorted."""
        return sorted({row.size for row in self.rows}, key=lambda size: tuple(value or 0 for value in size))

    def where(self, **wanted: Any) -> Table:
        """The rows whose columns have the values given; ``size=`` is one of them."""
        return Table(row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items()))

    def to_csv(self, path: str | Path) -> None:
        """Writes the table as CSV, numbers in full precision, an empty field for None."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            write_header(file)
            write_rows(file, self.rows)

    def to_parquet(self, path: str | Path) -> None:
        """Writes the table as Parquet; ImportError without pyarrow."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ImportError("writing Parquet needs pyarrow: pip install pyarrow") from None
        columns = {name: [getattr(row, name) for row in self.rows] for name in Row._fields}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    @classmethod
    def read_csv(cls, path: str | Path) -> Table:
        """A table that :meth:`to_csv` or a sweep wrote; TableError, naming the line, for anything else.

        A last line that was cut off in the middle of writing is left out.
        """
        text = Path(path).read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        whole = lines[:-1] if lines and not lines[-1].endswith("\n") else lines
        reader = csv.reader(whole)
        if next(reader, None) != list(Row._fields):
            raise TableError(f"{path}: expected a first line of {','.join(Row._fields)}")
        return cls(_row(path, reader.line_num, fields) for fields in reader)


def write_header(file: TextIO) -> None:
    """The names of the columns."""
    csv.writer(file, lineterminator="\n").writerow(Row._fields)


def write_rows(file: TextIO, rows: Iterable[Row]) -> None:
    """One line per row; floats so that they read back to the same bits."""
    csv.writer(file, lineterminator="\n").writerows(["" if value is None else value for value in row] for row in rows)


def _row(path: str | Path, line: int, fields: list[str]) -> Row:
    try:
        optimizer, width, depth, mass, context, rate, seed, train, test = fields
        return Row(
            optimizer, int(width), int(depth), float(mass) if mass else None, int(context) if context else None,
            float(rate), int(seed), float(train), float(test),
        )  # fmt: skip
    except ValueError:
        raise TableError(f"{path}: line {line} is no row of a sweep: {','.join(fields)}") from None
