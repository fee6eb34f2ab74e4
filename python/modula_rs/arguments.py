"""Types of command-line arguments."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

#: A range with more learning rates than this is taken for a typing error.
_MOST_RATES = 100


class Items(argparse.Action):
    """A list separated by spaces or commas, each item parsed by ``each``: ``--widths 32 64`` or ``--widths 32,64``."""

    def __init__(self, *args: Any, each: Callable[[str], Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self.each = each

    def __call__(self, parser: argparse.ArgumentParser, space: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Parses the values and stores them."""
        given: Sequence[str] = [item for value in values for item in value.split(",") if item]
        try:
            items = [self.each(item) for item in given]
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        if not items:
            raise argparse.ArgumentError(self, "expected at least one value")
        setattr(space, self.dest, items)


def whole(text: str) -> int:
    """An integer of at least 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers of at least 1, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """An integer of at least 0."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"expected positive numbers, got {text!r}")
    return value


def rate(text: str) -> list[float]:
    """Learning rates: a number, a power of two, or a range by factors of two.

    >>> rate("0.3"), rate("2^-3"), rate("2^-1..2^2"), rate("0.3..1.2")
    ([0.3], [0.125], [0.5, 1.0, 2.0, 4.0], [0.3, 0.6, 1.2])
    """
    ends = [_number(part) for part in text.split("..")]
    if len(ends) > 2 or None in ends or (low := ends[0]) is None or (high := ends[-1]) is None or high < low:
        raise argparse.ArgumentTypeError(f"expected learning rates like 0.25, 2^-3, or 2^-5..2^2, got {text!r}")
    count = math.floor(math.log2(high) - math.log2(low) + 1e-9) + 1
    if count > _MOST_RATES:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_RATES} learning rates, and {text!r} is {count}")
    return [math.ldexp(low, step) for step in range(count)]


def named_rates(text: str) -> tuple[str, list[float]]:
    """Learning rates with the name of the optimizer that they are for (``name=rates``), or with an empty name, for all optimizers.

    >>> named_rates("2^-1..2^0"), named_rates("adam=2^-9")
    (('', [0.5, 1.0]), ('adam', [0.001953125]))
    """
    name, _, rates = text.rpartition("=")
    return name, rate(rates)


def _number(text: str) -> float | None:
    power = re.fullmatch(r"2(?:\^|\*\*)([+-]?\d{1,3})", text.strip())
    try:
        value = 2.0 ** int(power[1]) if power else float(text)
    except (ValueError, OverflowError):
        return None
    return value if 0 < value < math.inf else None
