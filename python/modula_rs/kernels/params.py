"""The structs that the kernels take by value, as NumPy types with the same layout as in the .cu files.

Every unsigned 64-bit field is an address. In a plan it is an offset into the workspace, and 0 is null; see ``launches.relocate``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: The number of 8-byte words that one launch of upload.cu writes. The parameters of a kernel may take 4 KB.
UPLOAD_WORDS = 480
MOST_STEPS = 8


def _struct(**fields: str) -> np.dtype[Any]:
    return np.dtype([(name, *_field(kind)) for name, kind in fields.items()], align=True)


def _field(kind: str) -> tuple[Any, ...]:
    short = {"address": "u8", "long": "i8", "int": "i4", "float": "f4", "double": "f8"}
    name, _, count = kind.partition("*")
    return (short[name], (int(count),)) if count else (short[name],)


ENTRY = _struct(source="int", result="int", other="int", scale="int", offset="long", index="int", float_scale="int")
ROWS = _struct(entries="address", table="address", partial="address", rows="int", cols="int", mode="int", team="int")
FOLDING = _struct(
    partial="address", entries="address", table="address", total="address",
    count="int", fold="int", weight="double",
)  # fmt: skip
PACKING = _struct(
    entries="address", table="address", frobenius="address", out="address", stride="long",
    rows="int", cols="int", tall="int", chunks="int", size="double",
)  # fmt: skip
COMBINING = _struct(
    a="address", b="address", d="address", more="address", a_squares="address", b_squares="address", factor="address", stride="long",
    chunks="int", squares_count="int", alpha="float", beta="float", gamma="float", shift="float", root="float",
)  # fmt: skip
PRODUCT = _struct(
    a="address", b="address", c="address", d="address", a_stride="long", b_stride="long", c_stride="long", d_stride="long",
    b_jump="long", d_jump="long", squares="address", factor="address", partial="address",
    entries="address", table="address", parts="address", ready="address",
    tiles_m="int", tiles_n="int", chunks="int", matrices="int", pair="int", squares_count="int", factor_power="int",
    alpha="float", beta="float", gamma="float", rows="int", cols="int", dtype="int", tall="int",
)  # fmt: skip
SMALL = _struct(
    entries="address", table="address", work="address", norms="address", stride="long",
    rows="int", cols="int", tall="int", dtype="int", task="int", steps="int", restart="int",
    a=f"float*{MOST_STEPS}", b=f"float*{MOST_STEPS}", c=f"float*{MOST_STEPS}",
)  # fmt: skip
POWERS = _struct(
    squares="address", frobenius="address", norms="address", levels="int", matrices="int", count="int", unused="int",
    root="double", size="double",
)  # fmt: skip
POWER = _struct(
    entries="address", table="address", sums="address", squares="address", dots="address", image="address", inner="address",
    norms="address", basis="address", exponents="address", wanted="address",
    rows="int", cols="int", stripes="int", rows_per_stripe="int", tiles="int", tile_cols="int", phase="int", vectors="int",
    matrices="int", teams="int",
)  # fmt: skip
RESCALE = _struct(entries="address", table="address", norms="address", count="long")
UPLOAD = _struct(destination="address", count="int", unused="int", words=f"long*{UPLOAD_WORDS}")

#: The struct that each kernel takes, by the part of the kernel's name before the type or variant.
STRUCTS = {
    "row_norms": ROWS, "row_normalize": ROWS, "fold_rows": FOLDING, "pack": PACKING, "combine": COMBINING,
    "product": PRODUCT, "small": SMALL, "resident": SMALL, "norm_from_powers": POWERS, "power": POWER, "lanczos": POWER,
    "rescale": RESCALE, "store_norms": RESCALE, "upload": UPLOAD,
}  # fmt: skip

# Codes of types, modes, folds, tasks and phases, as in the enums of the .cu files.
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
SQUARES, LARGEST, ABSOLUTE, INNER, SIGN = range(5)
FOLD_MAX, FOLD_SUM, FOLD_ROOT = range(3)
DUALIZE, NORMALIZE, NORM = range(3)
BOTH, DOTS, SUMS = range(3)


def pack(struct: np.dtype[Any], **values: Any) -> np.ndarray[Any, Any]:
    """A struct with these values in its fields, and zero in all others.

    >>> pack(ROWS, rows=3)["rows"].item()
    3
    """
    block = np.zeros((), struct)
    for name, value in values.items():
        block[name] = value
    return block


def addresses(struct: np.dtype[Any]) -> list[str]:
    """The names of the fields that hold addresses.

    >>> addresses(FOLDING)
    ['partial', 'entries', 'table', 'total']
    """
    return [name for name in struct.names or () if struct[name] == np.dtype("u8")]
