"""The command line: one line per mistake, and sweeps that can be stopped and continued."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from modula_rs import cli, transfer

SWEEP = ["sweep", "--arch", "resmlp", "--widths", "8", "--depths", "2"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["demo", "--widths", "a"], "--widths: expected whole numbers of at least 1, got 'a'"),
        (["demo", "--seeds", "0"], "--seeds: expected whole numbers of at least 1, got '0'"),
        (["demo", "--steps", "1.5"], "--steps: expected whole numbers of at least 1, got '1.5'"),
        (["inspect", "vgg"], "architectures are resmlp, rescnn and gpt, got 'vgg'"),
        (["inspect", "gpt", "--mass", "-1"], "--mass: expected positive numbers, got '-1'"),
        ([*SWEEP, "--data", "digits"], "required: --out"),
        (
            [*SWEEP, "--data", "digits", "--rates", "1..x", "--out", "o"],
            "expected learning rates like 0.25, 2^-3, or 2^-5..2^2, got '1..x'",
        ),
        ([*SWEEP, "--data", "digits", "--rates", "0", "--out", "o"], "expected learning rates like"),
        ([*SWEEP, "--data", "digits", "--rates", "sgd=1", "--out", "o"], "--rates names 'sgd', which is none of the optimizers"),
        ([*SWEEP, "--data", "words.doc", "--out", "o"], "data is digits, stdlib, or a file ending in .txt or .npz, got words.doc"),
        ([*SWEEP, "--data", "missing.npz", "--out", "o"], "missing.npz: No such file"),
        ([*SWEEP, "--data", "digits", "--optimizers", "lion", "--out", "o"], "optimizers are normed-adam, normed-sgd"),
        (["sweep", "--arch", "gpt", "--widths", "8", "--depths", "2", "--data", "digits", "--out", "o"], "gpt takes text, and digits is"),
        ([*SWEEP, "--data", "x" * 5000 + ".npz", "--out", "o"], "x" * 1900),
        ([*SWEEP, "--data", "digits", "--out", "a\0b"], "'a\\x00b': embedded null byte"),
        (["demo", "--out", os.devnull], os.devnull),
        (["sweep", "--arch", "vgg", "--widths", "8", "--depths", "2", "--data", "digits", "--out", "o"], "architectures are resmlp"),
    ],
)
def test_a_mistake_gets_one_line(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("modula-rs: ")
    assert expected in err


def test_help_is_no_mistake(capsys):
    assert cli.main(["sweep", "--help"]) == 0
    assert "--optimizers" in capsys.readouterr().out


def test_inspect_shows_targets(capsys):
    assert cli.main(["inspect", "resmlp", "--width", "8", "--depth", "3"]) == 0
    out = capsys.readouterr().out
    assert "mass 3, sensitivity 1, 8 atoms" in out
    assert "(3, 2, 8, 8)" in out


@pytest.mark.slow
def test_rates_of_one_optimizer_and_of_the_others(tmp_path):
    arguments = ["--data", str(_data(tmp_path)), "--steps", "2", "--out", str(tmp_path / "out")]
    rates = ["--optimizers", "normed-sgd,adam,sgd", "--rates", "2^-1,1", "adam=2^-9..2^-8", "adam=0.3"]
    assert cli.main([*SWEEP, *arguments, *rates]) == 0
    table = transfer.Table.read_csv(tmp_path / "out" / "table.csv")
    tried = {name: [row.rate for row in table.where(optimizer=name)] for name in table.optimizers}
    assert tried == {"normed-sgd": [0.5, 1.0], "adam": [2.0**-9, 2.0**-8, 0.3], "sgd": [0.5, 1.0]}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resmlp", "rescnn", "gpt"])
def test_every_architecture_trains_and_is_swept(arch, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    given = ["--arch", arch, "--data", str(text if arch == "gpt" else _data(tmp_path)), "--context", "8", "--steps", "4"]
    assert cli.main(["train", *given, "--width", "8", "--depth", "2", "--every", "2", "--out", str(tmp_path / "run")]) == 0
    log = np.loadtxt(tmp_path / "run" / "log.csv", delimiter=",", skiprows=1)
    assert log[:, 0].tolist() == [2, 4]
    assert np.isfinite(log).all()

    axes = ["--masses", "0.5", *(["--contexts", "4,8"] if arch == "gpt" else [])]
    sweep = ["--widths", "4", "--depths", "1", "--optimizers", "normed-adam", "--rates", "2^-3", *axes]
    assert cli.main(["sweep", *given, *sweep, "--out", str(tmp_path / "sweep")]) == 0
    table = transfer.Table.read_csv(tmp_path / "sweep" / "table.csv")
    contexts = (4, 8) if arch == "gpt" else (None,)
    assert table.sizes == [transfer.Size(4, 1, 0.5, context) for context in contexts]
    assert np.isfinite(table.records["train_loss"]).all()


def _data(folder):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 5, 5, 2)).astype(np.float32)
    np.savez(folder / "dots.npz", x=x, y=(x.mean(axis=(1, 2)) > 0).dot([1, 2]))
    return folder / "dots.npz"


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_where_it_was(tmp_path):
    # A process that a shell starts in the background ignores interrupts, and so does Python in it, unless a handler is set.
    listen = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    arguments = [
        *(sys.executable, "-c", f"import signal, sys; {listen}; from modula_rs.cli import main; sys.exit(main())"),
        *("sweep", "--arch", "resmlp", "--data", _data(tmp_path), "--widths", "4,6", "--depths", "1,2,3"),
        *("--optimizers", "normed-sgd,adam", "--rates", "2^-4..2^-2", "--steps", "40", "--out", tmp_path / "out"),
    ]
    points = tmp_path / "out" / "points.csv"
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 500
    while not (points.exists() and len(points.read_text().splitlines()) > 1) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130, err
    assert err.endswith("modula-rs: stopped; what was finished is kept\n")
    assert "Traceback" not in err
    kept = points.read_text().splitlines()
    assert 1 < len(kept) < 1 + 6 * 6

    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = points.read_text().splitlines()
    assert lines[: len(kept)] == kept
    assert len(lines) == len(set(lines)) == 1 + 6 * 6
    # Without a terminal, a line per size is shown, and no control characters.
    assert "\x1b" not in done.stderr
    assert f"/{6 - (len(kept) - 1) // 6}, " in done.stderr
    assert "The best rate" in done.stdout
    assert {name for name in os.listdir(tmp_path / "out") if "." in name} >= {
        "table.csv",
        "report.txt",
        "curves.png",
        "sizes.png",
        "settings.json",
    }


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "modula_rs", *map(str, arguments)], capture_output=True, text=True, check=False, **options)


def test_the_version():
    import modula_rs

    done = run("--version")
    assert done.stdout == f"modula-rs {modula_rs.__version__}\n"
    assert done.returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_tree_on_any_terminal(encoding):
    done = run("inspect", "resmlp", "--width", "8", "--depth", "2", env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    branches = "└─ " if encoding == "utf-8" else "`- "
    assert branches.encode("utf-8").decode(encoding if encoding == "utf-8" else "ascii") in done.stdout
    code = "import modula_rs as mr; print(mr.Linear(2, 3).named('ä') @ mr.Tanh())"
    if encoding != "ascii":  # the name is shown unchanged where the encoding has its characters
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": encoding}, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*SWEEP, "--data", "digits", "--rates", "1e-320..1e308", "--out", "o"], "at most 100 learning rates"),
        ([*SWEEP, "--data", "digits", "--rates", "1e-300", "--out", "o"], "in the range of float32"),
        ([*SWEEP, "--data", "digits", "--rates", "nan", "--out", "o"], "expected learning rates"),
        ([*SWEEP, "--data", "garbage.npz", "--out", "o"], "garbage.npz"),
        ([*SWEEP, "--data", "one.npz", "--out", "o"], "one.npz"),
        ([*SWEEP, "--data", "folder.npz", "--out", "o"], "folder.npz"),
        ([*SWEEP, "--data", "digits", "--out", "file"], "Not a directory: 'file'"),
        ([*SWEEP, "--data", "digits", "--out", "damaged"], "settings.json is damaged"),
        (["train", *SWEEP[1:3], "--width", "8", "--depth", "2", "--data", "digits", "--out", "file"], "Not a directory: 'file'"),
        (["train", *SWEEP[1:3], "--width", "8", "--depth", "2", "--data", "digits", "--out", "damaged", "--resume"], "no whole"),
        (["inspect", "resmlp", "--width", "0"], "expected whole numbers of at least 1"),
        (["inspect", "resmlp", "--width", "9" * 400], "expected whole numbers"),
    ],
)
def test_odd_files_and_sizes_get_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage.npz").write_bytes(b"PK\x03\x04 no zip")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "settings.json").write_text("[" * 100_000)
    (tmp_path / "damaged" / "points.csv").touch()
    (tmp_path / "damaged" / "checkpoint.safetensors").write_bytes(b"hello")
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("modula-rs: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.slow
def test_a_network_beyond_the_memory_gets_one_line(tmp_path):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (12 << 30,) * 2); from modula_rs.cli import main; sys.exit(main())"
    arguments = ["train", "--arch", "resmlp", "--width", "200000000", "--depth", "2", "--data", "digits", "--out", "big"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("modula-rs: ")
    assert done.stderr.count("\n") == 1


def test_a_defect_gets_one_line_too_and_its_place_if_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("modula_rs.cli.inspect._run", lambda options: {}["x"])
    assert cli.main(["inspect", "gpt"]) == 1
    assert capsys.readouterr().err == "modula-rs: KeyError: 'x' (a defect; MODULA_RS_TRACEBACK=1 shows where)\n"
    monkeypatch.setenv("MODULA_RS_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main(["inspect", "gpt"])


def test_a_second_interrupt_at_the_end_shows_nothing():
    code = (
        "import os, signal, sys, threading; from modula_rs import cli\n"
        "def stop(options): signal.raise_signal(signal.SIGINT)\n"
        "cli.inspect._run = stop; sys.argv = ['modula-rs', 'inspect', 'gpt']; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import atexit; atexit.register(signal.raise_signal, signal.SIGINT); sys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "\nmodula-rs: stopped\n"


@pytest.mark.parametrize(
    "module", [cli.demo, cli.sweep, cli.train, cli.inspect, cli.doctor, cli.completion], ids=lambda module: module.__name__
)
def test_examples_of_the_help_are_right(module):
    lines = [line.split(" > ")[0].split() for line in module.EXAMPLES.strip().splitlines()]
    assert all(words[0] == "modula-rs" for words in lines)
    for words in lines:
        cli.parser().parse_args(words[1:])


def test_help_shows_examples_and_exit_codes(capsys):
    assert cli.main(["sweep", "--help"]) == 0
    assert cli.sweep.EXAMPLES.strip().splitlines()[0] in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert "130 Ctrl-C" in capsys.readouterr().out


def test_inspect_in_json(capsys):
    assert cli.main(["inspect", "resmlp", "--width", "8", "--depth", "3", "--block-depth", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    _, blocks, _ = found["leaves"]
    assert found["mass"] == 3.0
    assert blocks["shape"] == [3, 2, 8, 8]
    assert len(blocks["targets"]) == blocks["copies"] == 6


@pytest.mark.slow
def test_sweep_and_train_in_json(tmp_path, capsys):
    assert cli.main([*SWEEP, "--data", "digits", "--steps", "4", "--rates", "0.5", "1e30", "--json", "--out", str(tmp_path / "sweep")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["optimizer"] for entry in found["best"]} == {entry["optimizer"] for entry in found["drift"]}
    assert found["runs"] >= 2
    run = ["train", "--arch", "resmlp", "--data", "digits", "--width", "8", "--depth", "2", "--steps", "4", "--every", "2", "--json"]
    assert cli.main([*run, "--out", str(tmp_path / "run")]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["step"] for entry in entries][-1] == 4


def test_doctor_in_json(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert {"subject", "found", "state", "advice"} == set(json.loads(capsys.readouterr().out)[0])


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    assert "inspect" in capsys.readouterr().out
