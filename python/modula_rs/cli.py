"""The command line, ``modula-rs``: parses arguments, and reports each mistake in one line.

Each command imports what it needs itself, so that ``--help`` does not wait for JAX, and :func:`require` names a missing optional package.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from modula_rs import __version__
from modula_rs.arguments import Items, fraction, named_rates, rate, seed, whole

#: Exit codes: a mistake of the user; a defect, or a closed output; an interruption by Ctrl-C (the code that shells use).
_USAGE, _FAILED, _INTERRUPTED = 2, 1, 130
#: Modules whose packages have another name.
_PACKAGES = {"sklearn": "scikit-learn"}


class Usage(Exception):
    """A mistake in the arguments; the message is one line that says what was expected."""


#: The exceptions that bad values and sizes raise. JAX reports a lack of memory by a RuntimeError.
_EXPECTED = (Usage, ImportError, ValueError, OSError, MemoryError, ArithmeticError, RuntimeError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    >>> from modula_rs.cli import main
    >>> main(["inspect", "resmlp", "--width", "8", "--depth", "2", "--input-dim", "4", "--output-dim", "3"])  # doctest: +ELLIPSIS
    mass 3...
    0
    """
    options = argparse.Namespace()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # print escapes for characters that the terminal cannot show
    try:
        options = _parser().parse_args(arguments)
        code: int | None = options.command(options)
    except BrokenPipeError:  # the reader of the output has ended, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except _EXPECTED as error:  # the library's messages are one line too
        return _say(error, _USAGE)
    except KeyboardInterrupt:
        if arguments is None:  # the process is about to end, and a second Ctrl-C should not interrupt its last steps
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        kept = "; what was finished is kept" if getattr(options, "keeps", False) else ""
        print(f"\nmodula-rs: stopped{kept}", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as leave:  # --help and --version
        return int(leave.code or 0)
    except Exception as error:
        if os.environ.get("MODULA_RS_TRACEBACK"):
            raise
        return _say(f"{type(error).__name__}: {error} (a defect; MODULA_RS_TRACEBACK=1 shows where)", _FAILED)
    return code or 0


def _say(error: Exception | str, code: int) -> int:
    """Prints one line to standard error, and returns the exit code."""
    text = " ".join(str(error).split()) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
    print(f"modula-rs: {textwrap.shorten(text, 2000)}", file=sys.stderr)
    return code


def require(extra: str, *modules: str) -> None:
    """Raises Usage, with the name of the extra to install, unless all these modules are installed.

    >>> from modula_rs.cli import require
    >>> require("demo", "numpy")
    """
    missing = [_PACKAGES.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Usage(f'{" and ".join(missing)} missing: pip install "modula-rs[{extra}]"')


class _Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="modula-rs", description="The modular norm: one learning rate for every width and depth.")
    parser.add_argument("--version", action="version", version=f"modula-rs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_demo(commands.add_parser("demo", help="train ResMLPs of many sizes on handwritten digits and draw their learning rate curves"))
    _add_sweep(commands.add_parser("sweep", help="sweep learning rates and sizes of a network on your data"))
    _add_train(commands.add_parser("train", help="train one network, with checkpoints"))
    _add_inspect(commands.add_parser("inspect", help="show a network's tree with masses, sensitivities and targets"))
    _add_doctor(commands.add_parser("doctor", help="say what this installation is and will use, and prove its GPU kernels"))
    return parser


# ---- demo ------------------------------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--widths", nargs="+", action=Items, each=whole, metavar="N", help="widths of the networks")
    parser.add_argument("--blocks", nargs="+", action=Items, each=whole, metavar="N", help="numbers of residual blocks")
    parser.add_argument("--seeds", type=whole, metavar="N", help="how many seeds")
    parser.add_argument("--steps", type=whole, metavar="N", help="steps of each run")
    parser.add_argument(
        "--out", type=Path, default=Path("modula-rs-demo"), metavar="DIR", help="folder for demo.csv and demo.png (%(default)s)"
    )
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> None:
    require("demo", "jax", "optax", "sklearn", "matplotlib", "rich")
    from modula_rs import demo

    given = {name: value for name in ("widths", "blocks", "seeds", "steps") if (value := getattr(options, name)) is not None}
    demo.run(options.out, **given)


# ---- sweep -----------------------------------------------------------------------------------------------------------------


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", required=True, metavar="ARCH", help="resmlp, rescnn or gpt")
    parser.add_argument("--data", required=True, metavar="DATA", help="digits, stdlib (Python's own source), or a file: .txt or .npz")
    parser.add_argument("--block-depth", type=whole, default=2, metavar="N", help="layers in a block of resmlp and rescnn (%(default)s)")
    parser.add_argument(
        "--final-norm", action=argparse.BooleanOptionalAction, default=True,
        help="whether the head of resmlp and rescnn divides its input by the RMS; the paper's do not",
    )  # fmt: skip
    parser.add_argument("--context", type=whole, default=64, metavar="N", help="characters in a window of text (%(default)s)")
    parser.add_argument("--steps", type=whole, default=200, metavar="N", help="steps of each run (%(default)s)")
    parser.add_argument("--batch-size", type=whole, default=32, metavar="N", help="examples or windows in a batch (%(default)s)")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_network(parser)
    parser.add_argument("--widths", nargs="+", action=Items, each=whole, required=True, metavar="N")
    parser.add_argument("--depths", nargs="+", action=Items, each=whole, required=True, metavar="N", help="numbers of blocks")
    parser.add_argument("--masses", nargs="+", action=Items, each=fraction, metavar="M", help="masses of all blocks together")
    parser.add_argument("--contexts", nargs="+", action=Items, each=whole, metavar="N", help="lengths of the windows of text")
    parser.add_argument(
        "--optimizers", nargs="+", action=Items, each=str, default=["normed-adam", "normed-sgd", "adam"], metavar="NAME",
        help="of normed-adam, normed-sgd, dualized-sgd, adam, sgd",
    )  # fmt: skip
    parser.add_argument(
        "--rates", nargs="+", action=Items, each=named_rates, metavar="R",
        help="learning rates, like 0.25, 2^-3, or 2^-5..2^2 (by factors of 2); adam=2^-9..2^-4 for one optimizer alone; "
        "each has a range of its own otherwise",
    )  # fmt: skip
    parser.add_argument("--seeds", type=whole, default=1, metavar="N", help="how many seeds (%(default)s)")
    parser.add_argument("--metric", choices=("train", "test"), default="train", help="the loss to report and draw (%(default)s)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for points, tables and pictures; finished points are skipped"
    )
    parser.set_defaults(command=_sweep, keeps=True)


def _sweep(options: argparse.Namespace) -> None:
    require("demo", "jax", "optax", "matplotlib", *(["sklearn"] if options.data == "digits" else []))
    from modula_rs import data, transfer
    from modula_rs.files import write_whole

    dataset = data.load(options.data, options.context)
    table = transfer.sweep(
        transfer.architecture(options.arch, dataset, options.block_depth, options.final_norm),
        dataset,
        widths=options.widths,
        depths=options.depths,
        masses=options.masses or (None,),
        contexts=options.contexts or (None,),
        optimizers=options.optimizers,
        rates=_rates(options.rates or [], options.optimizers),
        seeds=options.seeds,
        recipe=transfer.Recipe(steps=options.steps, batch_size=options.batch_size),
        out=options.out,
        progress=True,
    )
    metric = f"{options.metric}_loss"
    table.to_csv(options.out / "table.csv")
    if importlib.util.find_spec("pyarrow"):
        table.to_parquet(options.out / "table.parquet")
    title = f"{options.arch} on {dataset.name}, {options.steps} steps"
    transfer.plot_curves(table, options.out / "curves.png", metric=metric, title=title)
    transfer.plot_sizes(table, options.out / "sizes.png", metric=metric, title=title)
    text = transfer.report(table, metric)
    write_whole(options.out / "report.txt", (text + "\n").encode("utf-8", "surrogatepass"))
    print(text)
    print(f"\nWrote table.csv, report.txt, curves.png and sizes.png to {options.out}.")


def _rates(given: Sequence[tuple[str, list[float]]], optimizers: Sequence[str]) -> dict[str, list[float]]:
    """The learning rates of each optimizer: those given under its name, or else those given without a name."""
    found: dict[str, list[float]] = {}
    for name, values in given:
        if name not in ("", *optimizers):
            raise Usage(f"--rates names {name!r}, which is none of the optimizers ({', '.join(optimizers)})")
        found.setdefault(name, []).extend(values)
    return {name: found[key] for name in optimizers if (key := name if name in found else "") in found}


# ---- train -----------------------------------------------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_network(parser)
    parser.add_argument("--width", type=whole, required=True, metavar="N")
    parser.add_argument("--depth", type=whole, required=True, metavar="N", help="number of blocks")
    parser.add_argument("--mass", type=fraction, metavar="M", help="mass of all blocks together")
    parser.add_argument(
        "--optimizer", default="normed-adam", metavar="NAME", help="normed-adam, normed-sgd, dualized-sgd, adam or sgd (%(default)s)"
    )
    parser.add_argument("--rate", type=rate, default=[0.25], metavar="R", help="learning rate, like 0.25 or 2^-3 (0.25)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights and data order (%(default)s)")
    parser.add_argument("--every", type=whole, default=100, metavar="N", help="steps between checkpoints (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for checkpoint.safetensors and log.csv")
    parser.set_defaults(command=_train, keeps=True)


def _train(options: argparse.Namespace) -> None:
    require("demo", "jax", "optax", *(["sklearn"] if options.data == "digits" else []))
    require("test", "safetensors")
    from modula_rs import data, transfer
    from modula_rs.transfer import single

    if options.optimizer not in transfer.OPTIMIZERS:
        raise Usage(f"--optimizer is one of {', '.join(transfer.OPTIMIZERS)}, got {options.optimizer!r}")
    if len(options.rate) != 1:
        raise Usage("--rate is one learning rate, like 0.25 or 2^-3; a range is for sweep")
    dataset = data.load(options.data, options.context)
    build = transfer.architecture(options.arch, dataset, options.block_depth, options.final_norm)
    module = build(transfer.Size(options.width, options.depth, options.mass))

    def report(entry: single.Entry) -> None:
        losses = f"train loss {entry.train_loss:.4f}, test loss {entry.test_loss:.4f}"
        print(f"step {entry.step}/{options.steps}: {losses}, {transfer.duration(entry.seconds)}", flush=True)

    single.train(
        module,
        dataset,
        (options.optimizer, transfer.OPTIMIZERS[options.optimizer]),
        options.rate[0],
        options.out,
        recipe=transfer.Recipe(steps=options.steps, batch_size=options.batch_size),
        seed=options.seed,
        every=options.every,
        resume=options.resume,
        report=report,
    )


# ---- inspect ---------------------------------------------------------------------------------------------------------------


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arch", metavar="ARCH", help="resmlp, rescnn or gpt")
    parser.add_argument("--width", type=whole, default=64, metavar="N", help="(%(default)s)")
    parser.add_argument("--depth", type=whole, default=4, metavar="N", help="number of blocks (%(default)s)")
    parser.add_argument("--block-depth", type=whole, default=2, metavar="N", help="layers in a block of resmlp and rescnn (%(default)s)")
    parser.add_argument("--mass", type=fraction, metavar="M", help="mass of all blocks together")
    parser.add_argument("--context", type=whole, default=64, metavar="N", help="window of a gpt (%(default)s)")
    parser.add_argument("--input-dim", type=whole, metavar="N", help="features, channels or different tokens of the input (64, 3, 65)")
    parser.add_argument("--output-dim", type=whole, default=10, metavar="N", help="classes of resmlp and rescnn (%(default)s)")
    parser.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace) -> None:
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
    print(f"mass {module.mass:g}, sensitivity {module.sensitivity:g}, {module.atoms} atoms\n")
    print(module)
    print(f"\n{'weights':<32} {'shape':<20} {'copies':>6} {'mass':>9}   target of each copy")
    targets: dict[str, list[float]] = {}
    for target in module.targets():
        targets.setdefault(target.path, []).append(target.target)
    for leaf in module.leaves:
        own = targets[leaf.path]
        span = f"{own[0]:.4g}" if min(own) == max(own) else f"{min(own):.4g} .. {max(own):.4g}"
        print(f"{leaf.path:<32} {leaf.shape!s:<20} {leaf.copies:>6} {leaf.mass:>9.4g}   {span}")


# ---- doctor ----------------------------------------------------------------------------------------------------------------


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="start nothing: do not check the kernels of a GPU")
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from modula_rs import doctor

    return doctor.run(quick=options.quick)
