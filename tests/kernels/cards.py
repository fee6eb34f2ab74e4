"""A dozen GPUs as the planner sees them, from the vendor's data sheets: capability, multiprocessors, shared memory of a block, L2 cache."""

from __future__ import annotations

from modula_rs.kernels.device import H200, Device

T4 = Device((7, 5), 40, 65_536, 4 << 20)
V100 = Device((7, 0), 80, 98_304, 6 << 20)
A100 = Device((8, 0), 108, 166_912, 40 << 20)
RTX3090 = Device((8, 6), 82, 101_376, 6 << 20)
L4 = Device((8, 9), 58, 101_376, 48 << 20)
RTX4090 = Device((8, 9), 128, 101_376, 72 << 20)
H100 = Device((9, 0), 132, 232_448, 50 << 20)
B200 = Device((10, 0), 148, 232_448, 126 << 20)
B300 = Device((10, 3), 160, 232_448, 126 << 20)
RTX5090 = Device((12, 0), 170, 101_376, 96 << 20)
SPARK = Device((12, 1), 48, 101_376, 24 << 20)

#: The cards that the kernels support, and cards that are too old.
CARDS = {
    "A100": A100, "RTX 3090": RTX3090, "L4": L4, "RTX 4090": RTX4090, "H100": H100, "H200": H200, "B200": B200, "B300": B300,
    "RTX 5090": RTX5090, "DGX Spark": SPARK,
}  # fmt: skip
OLD = {"T4": T4, "V100": V100}
