"""What normalize and dualize cost on many devices, beside a training step: bytes and operations of one device, from the plan itself.

python benches/devices.py                 # GPT from 125 M to 175 B parameters on 8 to 4096 devices
python benches/devices.py --plan 1.3B 64  # the whole plan of one case

Nothing runs on a device, and nothing is measured: these are counts, of the code that chooses the schemes. Weights are split over "fsdp"
along their last axis and copied over "data". A step is 6 operations for each parameter and token; its traffic is two all-gathers of the
weights and one reduction of the gradients, as in fully sharded training, in float32.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import modula_rs as mr
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from modula_rs.backend.jax.sharded.run import gram_scheme
from modula_rs.norm.distribution import amount


class Model(NamedTuple):
    """The sizes of Brown et al. (2020), table 2.1, and the tokens of a batch there."""

    width: int
    depth: int
    heads: int
    tokens: float


MODELS = {
    "125M": Model(768, 12, 12, 0.5e6),
    "350M": Model(1024, 24, 16, 0.5e6),
    "1.3B": Model(2048, 24, 16, 1e6),
    "6.7B": Model(4096, 32, 32, 2e6),
    "13B": Model(5120, 40, 40, 2e6),
    "175B": Model(12288, 96, 96, 3.2e6),
}
DEVICES = (8, 64, 512, 4096)
#: The most devices over which one axis of the weights is split.
MOST = 128


def plans(name: str, devices: int) -> tuple[mr.Module, dict[str, Any], int]:
    """The network, the plans of both maps, and the number of devices over which weights are split."""
    width, depth, heads, _ = MODELS[name]
    m = mr.GPT(50304, 2048, heads, width, width // heads, width // heads, depth)
    fsdp = max(ways for ways in (1, 2, 4, 8, 16, 32, 64, 128) if ways <= min(devices, MOST) and width % ways == 0)
    mesh = AbstractMesh((devices // fsdp, fsdp), ("data", "fsdp"))
    where = [NamedSharding(mesh, PartitionSpec(*[None] * (len(leaf.shape) - 1), "fsdp")) for leaf in m.leaves]
    with gram_scheme(True):
        return m, {method: m.plan(None, method, shardings=where) for method in ("normalize", "dualize")}, fsdp


def row(name: str, devices: int) -> list[str]:
    """One line of the table."""
    m, made, fsdp = plans(name, devices)
    numbers = sum(_size(leaf.shape) for leaf in m.leaves)
    step = 6 * numbers * MODELS[name].tokens / devices
    traffic = 4 * 4.0 * numbers * (fsdp - 1) / fsdp  # two all-gathers, and an all-reduce or reduce-scatter counted as an all-reduce
    cells = [name, str(devices), f"{devices // fsdp} x {fsdp}", amount(step, ""), amount(traffic, "B")]
    for method in ("normalize", "dualize"):
        plan = made[method]
        cells += [amount(plan.bytes, "B"), f"{plan.bytes / traffic:.2%}", amount(plan.flops, ""), f"{plan.flops / step:.2%}"]
    return cells


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def table() -> str:
    """The table in Markdown."""
    head = ["model", "devices", "data x fsdp", "flops of a step", "bytes of a step"]
    for method in ("normalize", "dualize"):
        head += [f"{method}: bytes", "of the step's", "flops", "of the step's"]
    rows = [row(name, devices) for name in MODELS for devices in DEVICES]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Prints the table, or one plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plan", nargs=2, metavar=("MODEL", "DEVICES"), help=f"the plans of a model ({', '.join(MODELS)}) on so many devices"
    )
    args = parser.parse_args()
    if args.plan is None:
        print(table())
        return
    for plan in plans(args.plan[0], int(args.plan[1]))[1].values():
        print(plan, end="\n\n")


if __name__ == "__main__":
    main()
