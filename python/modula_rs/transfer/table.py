"""The table of a sweep: one row per run, as a NumPy structured array, in CSV or in Parquet."""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modula_rs.checks import shown
from modula_rs.files import expect_file, write_whole


class Size(NamedTuple):
    """The size from which a network is built. Mass and context are None for the architecture's own values.

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

    #: Columns of :attr:`records`. A mass of NaN or a context of 0 stands for the architecture's own value.
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
        """All rows as a structured array with the columns of :attr:`DTYPE`; the first column is as wide as the longest name."""
        rows = [row._replace(mass=math.nan if row.mass is None else row.mass, context=row.context or 0) for row in self.rows]
        longest = max((len(row.optimizer) for row in rows), default=0)
        _, *others = self.DTYPE.descr
        return np.array([tuple(row) for row in rows], [("optimizer", f"U{max(32, longest)}"), *others])

    @property
    def optimizers(self) -> list[str]:
        """Names of the optimizers, in order of appearance."""
        return list(dict.fromkeys(row.optimizer for row in self.rows))

    @property
    def sizes(self) -> list[Size]:
        """The different sizes, sorted."""
        return sorted({row.size for row in self.rows}, key=lambda size: tuple(value or 0 for value in size))

    def where(self, **wanted: Any) -> Table:
        """The rows whose columns have the given values; ``size=`` selects by size."""
        return Table(row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items()))

    def to_csv(self, path: str | Path) -> None:
        """Writes the table as CSV, with numbers in full precision and an empty field for None. An existing file is replaced at once."""
        lines = [_line(Row._fields), *(_line(row) for row in self.rows)]
        write_whole(Path(path), "".join(lines).encode("utf-8", "surrogatepass"))

    def to_parquet(self, path: str | Path) -> None:
        """Writes the table as Parquet; ImportError if pyarrow is missing."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ImportError("writing Parquet needs pyarrow: pip install pyarrow") from None
        columns = {name: [getattr(row, name) for row in self.rows] for name in Row._fields}
        content = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), content)
        write_whole(Path(path), content.getvalue())

    @classmethod
    def read_csv(cls, path: str | Path) -> Table:
        """A table that :meth:`to_csv` or a sweep wrote; TableError, naming the file and the line, for anything else.

        An incomplete last line is left out. Each line of a sweep's points has a checksum, and a line that does not match its checksum is
        refused.
        """
        expect_file(Path(path))
        return cls(parse(path, Path(path).read_bytes()))


#: The last column of a file of points.
CHECKSUM = "checksum"


def header_of_points() -> str:
    """The first line of a file of points."""
    return _line([*Row._fields, CHECKSUM])


def line_of_point(row: Row) -> str:
    """A row as a line that ends in a checksum of the rest."""
    return _line([*row, _checksum(row)])


def parse(path: str | Path, content: bytes) -> list[Row]:
    """The rows in the content of a file; ``path`` names it in errors."""
    rows = []
    try:
        text = content[: content.rfind(b"\n") + 1].decode("utf-8", "surrogatepass")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        names = next(reader, None)
        checked = names == [*Row._fields, CHECKSUM]
        if names != list(Row._fields) and not checked:
            raise TableError(f"{path}: expected a first line of {','.join(Row._fields)}")
        for fields in reader:
            row = _row(path, reader.line_num, fields[: len(Row._fields)] if checked else fields)
            if checked and fields[len(Row._fields) :] != [_checksum(row)]:
                raise TableError(f"{path}: line {reader.line_num} does not fit its checksum: {shown(','.join(fields))}")
            rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is no table of a sweep: {error}") from None
    return rows


def _line(fields: Sequence[Any]) -> str:
    """Fields as a line of CSV, with None as an empty field and floats in full precision."""
    text = io.StringIO()
    # Python 3.11 does not quote a field with a carriage return, and so would end the line there.
    careful = any(isinstance(field, str) and "\r" in field for field in fields)
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if careful else csv.QUOTE_MINIMAL)
    writer.writerow(["" if field is None else field for field in fields])
    return text.getvalue()


def _checksum(row: Row) -> str:
    return f"{zlib.crc32(_line(row).encode('utf-8', 'surrogatepass')):08x}"


def _row(path: str | Path, line: int, fields: list[str]) -> Row:
    try:
        optimizer, width, depth, mass, context, rate, seed, train, test = fields
        row = Row(
            optimizer, int(width), int(depth), float(mass) if mass else None, int(context) if context else None,
            float(rate), int(seed), float(train), float(test),
        )  # fmt: skip
        if any(isinstance(value, float) and math.isnan(value) for value in row):
            raise ValueError
        return row
    except ValueError:
        raise TableError(f"{path}: line {line} is no row of a sweep: {shown(','.join(fields))}") from None
