"""Concurrent writers and readers of one file, kill -9, and a full disk."""

import os
import random
import resource
import subprocess
import sys
import threading
import time

import modula_rs as mr
import numpy as np
import pytest
from longer import SEED, TIMES
from modula_rs.files import Busy, claimed, write_whole

WRITER = """
import sys, numpy as np, modula_rs as mr
m, k = mr.Linear(128, 128), int(sys.argv[2])
print("ready", flush=True)
while True:
    k += 1
    mr.checkpoint.save(sys.argv[1], m, [np.full((128, 128), k, np.float32)], {"k": k}, step=k)
"""

M = mr.Linear(128, 128)


def weights(k):
    return [np.full((128, 128), k, np.float32)]


def load(path):
    """The step in a file; all parts of the file must be of that step."""
    got = mr.checkpoint.load(path, M, weights(0), {"k": 0})
    assert (got.weights[0] == got.step).all()
    assert got.state["k"] == got.step
    return got.step


def writer(path, step=0):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(step)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def finish(process):
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_a_reader_beside_a_writer_gets_one_version(tmp_path):
    path = tmp_path / "run"
    mr.checkpoint.save(path, M, weights(0), {"k": 0})
    process, last, end = writer(path), 0, time.monotonic() + 2 * TIMES
    try:
        while time.monotonic() < end:
            step = load(path)
            assert step >= last
            last = step
    finally:
        finish(process)
    assert last > 0


@pytest.mark.slow
def test_threads_and_processes_saving_to_one_path_leave_it_whole(tmp_path):
    path, failed, end = tmp_path / "run", [], time.monotonic() + 2 * TIMES
    mr.checkpoint.save(path, M, weights(0), {"k": 0})
    process = writer(path, 10**6)

    def work(start):
        k = start
        while time.monotonic() < end:
            k += 1
            try:
                mr.checkpoint.save(path, M, weights(k), {"k": k}, step=k)
                load(path)
            except BaseException as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 2 * 10**6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(process)
    assert failed == []
    load(path)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_and_its_remains_go(tmp_path):
    path, rng, last = tmp_path / "run", random.Random(SEED), 0
    mr.checkpoint.save(path, M, weights(0), {"k": 0})
    for _ in range(6 * TIMES):
        process = writer(path, last)
        time.sleep(rng.uniform(0, 0.05))
        finish(process)
        step = load(path)
        assert step >= last
        last = step
        assert os.listdir(tmp_path) == ["run"]


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path, monkeypatch):
    path = tmp_path / "run"
    code = (
        "import os, sys; from pathlib import Path; from modula_rs import files; sync = os.fsync;"
        "os.fsync = lambda f: (print('now', flush=True), sys.stdin.read(), sync(f));"
        "files.write_whole(Path(sys.argv[1]), b'of the other')"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for other in others:
        other.stdout.readline()
    assert len(os.listdir(tmp_path)) == 2
    others[0].kill()
    others[0].communicate()
    write_whole(path, b"ours")
    assert len(os.listdir(tmp_path)) == 2
    others[1].communicate()
    assert path.read_bytes() == b"of the other"
    assert os.listdir(tmp_path) == ["run"]


def test_a_link_is_followed_and_rights_are_as_usual(tmp_path):
    (tmp_path / "latest").symlink_to(tmp_path / "folder" / "run")
    (tmp_path / "folder").mkdir()
    mask = os.umask(0o027)
    try:
        mr.checkpoint.save(tmp_path / "latest", M, weights(1), {"k": 1}, step=1)
    finally:
        os.umask(mask)
    assert (tmp_path / "latest").is_symlink()
    assert load(tmp_path / "folder" / "run") == 1
    assert (tmp_path / "folder" / "run").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["x" * 255, "a b", "[a]*?", "ä\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")])
def test_every_name_that_a_file_can_have(tmp_path, name):
    mr.checkpoint.save(tmp_path / name, M, weights(1), {"k": 1}, step=1)
    assert load(tmp_path / name) == 1
    assert len(os.listdir(tmp_path)) == 1


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "link")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="is no regular file"):
            write_whole(tmp_path / name, b"bytes")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    mr.checkpoint.save(path, M, weights(1), {"k": 1}, step=1)
    code = (
        "import resource, signal, sys, numpy as np, modula_rs as mr; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2);"
        "mr.checkpoint.save(sys.argv[1], mr.Linear(128, 128), [np.full((128, 128), 2, np.float32)], {'k': 2}, step=2)"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    for room in [0, 1, 5000, 65_000][: 2 + 2 * TIMES]:
        done = subprocess.run([sys.executable, "-c", code, str(path), str(room)], capture_output=True, text=True, check=False)
        assert done.stderr.strip().splitlines()[-1].startswith("OSError: [Errno 27] File too large")
        assert load(path) == 1
        assert os.listdir(tmp_path) == ["run"]


def test_a_claim_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from modula_rs.files import claimed\n"
        "with claimed(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(Busy), claimed(path):
        pass
    other.kill()
    other.communicate()
    with claimed(path):
        assert path.exists()
    assert not path.exists()
