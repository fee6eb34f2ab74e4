"""The processor time of maps on eight virtual devices, all devices together, over the time on one device; and the memory of a device.

python benches/devices_work.py [--large]

Both sides run in turn in one process, which tells the work of redundant or divided computations whatever else runs on the machine. Wall
times of virtual devices say nothing. Memory is what XLA plans: temporary and output bytes of one device, in shares (an eighth of the
weights).
"""

from __future__ import annotations

import argparse
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

ROUNDS = 5


def processor(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - begin


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="matrices of 512 x 1024 instead of 128 x 512")
    short, long = (512, 1024) if parser.parse_args().large else (128, 512)
    m = (mr.Linear(long, short) @ mr.Linear(short, long)) ** 8
    rng = np.random.default_rng(0)
    g = [jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for leaf in m.leaves]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    print(f"16 matrices of {short} x {long}, float32, 8 devices")
    print("| split | map | processor time over one device's, median (least to most) | temporary + output, shares |")
    print("| --- | --- | --- | --- |")
    for name, spec in (("copies", P()), ("rows", P(None, "x")), ("columns", P(None, None, "x")), ("stack", P("x"))):
        where = [NamedSharding(mesh, spec)] * len(g)
        placed = jax.device_put(g, where)
        vectors = {"one": m.normalize(g, vectors=None)[1], "all": m.normalize(placed, vectors=None)[1]}
        programs = {
            "dualize": (jax.jit(m.dualize), jax.jit(lambda g, where=where: m.dualize(g, shardings=where)), ()),
            "normalize, warm": (
                jax.jit(lambda g, v: m.normalize(g, vectors=v)),
                jax.jit(lambda g, v, where=where: m.normalize(g, vectors=v, shardings=where)),
                ("vectors",),
            ),
        }
        for label, (alone, together, extra) in programs.items():
            one = (g, vectors["one"]) if extra else (g,)
            every = (placed, vectors["all"]) if extra else (placed,)
            ratios, used = compared(lambda: alone(*one), together.lower(*every).compile(), every)  # noqa: B023
            used /= 4 * sum(x.size for x in g) / 8
            print(f"| {name} | {label} | {ratios[ROUNDS // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {used:.2f} |", flush=True)


def compared(alone: Callable[[], Any], together: Any, operands: tuple[Any, ...]) -> tuple[list[float], float]:
    """Sorted ratios of processor times, and the temporary and output bytes of a device."""
    for _ in range(2):  # the first calls load the programs
        jax.block_until_ready((alone(), together(*operands)))
    ratios = sorted(processor(lambda: together(*operands)) / processor(alone) for _ in range(ROUNDS))
    memory = together.memory_analysis()
    return ratios, float(memory.temp_size_in_bytes + memory.output_size_in_bytes)


if __name__ == "__main__":
    main()
