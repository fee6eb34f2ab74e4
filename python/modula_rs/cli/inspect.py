"""``modula-rs inspect``: what a network is, as the norm sees it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from modula_rs.arguments import fraction, whole
from modula_rs.cli.networks import NETWORK, from_file
from modula_rs.cli.output import as_json
from modula_rs.cli.usage import Usage, require

if TYPE_CHECKING:
    from modula_rs.network.module import Module

HELP = "show a network's tree or table, with masses, sensitivities and targets"
EXAMPLES = """
    modula-rs inspect gpt --width 64 --depth 4
    modula-rs inspect --network model.py:build --data digits
    modula-rs inspect resmlp --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("arch", nargs="?", metavar="ARCH", help="resmlp, rescnn or gpt")
    parser.add_argument("--network", metavar="FILE.py:FUNCTION", help=NETWORK + "; --data gives the input of a model")
    parser.add_argument("--data", metavar="DATA", help="digits, stdlib, or a file: .txt or .npz; only with --network")
    parser.add_argument("--width", type=whole, default=64, metavar="N", help="(%(default)s)")
    parser.add_argument("--depth", type=whole, default=4, metavar="N", help="number of blocks (%(default)s)")
    parser.add_argument("--block-depth", type=whole, default=2, metavar="N", help="layers in a block of resmlp and rescnn (%(default)s)")
    parser.add_argument("--mass", type=fraction, metavar="M", help="mass of all blocks together")
    parser.add_argument("--context", type=whole, default=64, metavar="N", help="window of a gpt (%(default)s)")
    parser.add_argument("--input-dim", type=whole, metavar="N", help="features, channels or different tokens of the input (64, 3, 65)")
    parser.add_argument("--output-dim", type=whole, default=10, metavar="N", help="classes of resmlp and rescnn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    if (options.arch is None) == (options.network is None):
        raise Usage("inspect takes ARCH or --network FILE.py:FUNCTION, and not both (see modula-rs inspect --help)")
    if options.network is not None:
        _run_network(options)
        return
    from modula_rs import compound

    mass = {} if options.mass is None else {"blocks_mass": options.mass}
    if options.arch in ("resmlp", "rescnn"):
        build, channels = (compound.ResMLP, 64) if options.arch == "resmlp" else (compound.ResCNN, 3)
        module = build(options.width, options.depth, options.block_depth, options.input_dim or channels, options.output_dim, **mass)
    elif options.arch == "gpt":
        head = max(1, options.width // 4)
        module = compound.GPT(options.input_dim or 65, options.context, 4, options.width, head, head, options.depth, **mass)
    else:
        raise Usage(f"architectures are resmlp, rescnn and gpt, got {options.arch!r}")
    _show(module, options.json)


def _run_network(options: argparse.Namespace) -> None:
    require("jax", "jax")
    from modula_rs import data, transfer

    size = transfer.Size(options.width, options.depth, options.mass, options.context)
    made = from_file(options.network)(size)
    dataset = None if options.data is None else data.load(options.data, options.context)
    net = transfer.network(made, dataset, 32, options.mass)
    _show(net, options.json)


def _show(net: Any, scripted: bool) -> None:
    from modula_rs.network.module import Module

    if scripted:
        print(as_json(_data(net), indent=2))
    elif isinstance(net, Module):
        _print_module(net)
    else:
        print(net)
        print(f"\nmass {net.mass:g}, {len(net.leaves)} arrays, fingerprint {net.fingerprint}")


def _data(net: Any) -> dict[str, Any]:
    """What the tables show, as plain values."""
    targets, paths = _targets(net), {leaf.path for leaf in net.leaves}
    whole: dict[str, list[float]] = {}
    for path, own in targets.items():  # the parts of one array have a number after its path
        whole.setdefault(path if path in paths else path.rpartition("[")[0], []).extend(own)
    shown = ("path", "kind", "shape", "copies", "mass")
    leaves = [{**{name: getattr(leaf, name) for name in shown}, "targets": whole.get(leaf.path)} for leaf in net.leaves]
    tree = {"sensitivity": net.sensitivity, "atoms": net.atoms} if hasattr(net, "atoms") else {}
    return {"mass": net.mass, **tree, "fingerprint": net.fingerprint, "leaves": leaves}


def _print_module(module: Module) -> None:
    print(f"mass {module.mass:g}, sensitivity {module.sensitivity:g}, {module.atoms} atoms\n")
    print(module)
    print(f"\n{'weights':<32} {'shape':<20} {'copies':>6} {'mass':>9}   target of each copy")
    targets = _targets(module)
    for leaf in module.leaves:
        own = targets[leaf.path]
        span = f"{own[0]:.4g}" if min(own) == max(own) else f"{min(own):.4g} .. {max(own):.4g}"
        print(f"{leaf.path:<32} {leaf.shape!s:<20} {leaf.copies:>6} {leaf.mass:>9.4g}   {span}")


def _targets(net: Any) -> dict[str, list[float]]:
    """The targets of the copies of each path."""
    found: dict[str, list[float]] = {}
    for target in net.targets():
        found.setdefault(target.path, []).append(target.target)
    return found
