"""Untrusted data: data that would train on something else than was given are refused, in one line that names the file."""

import io
import os
import random
import resource
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longer import SEED, TIMES
from modula_rs import data

X = np.random.default_rng(0).standard_normal((100, 4))
Y = np.arange(100) % 3


def load(folder, name="d.npz", **arrays):
    np.savez(folder / name, **arrays)
    return data.load(str(folder / name))


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X, "y": Y + 2**32}, "labels must be the numbers of classes"),
        ({"x": X, "y": Y + 2**31}, "labels must be the numbers of classes"),
        ({"x": X, "y": Y.astype(np.uint64) + np.uint64(2**64 - 3)}, "labels must be the numbers of classes"),
        ({"x": X, "y": np.where(Y == 2, 10**6, Y)}, "below 1000000, got 1000000"),
        ({"x": X, "y": Y - 1}, "labels must be one integer >= 0"),
        ({"x": X, "y": Y.astype(float)}, "labels must be one integer >= 0"),
        ({"x": X, "y": Y[:, None]}, "labels must be one integer >= 0"),
        ({"x": X[:, :0], "y": Y}, "must have features"),
        ({"x": X[:0], "y": Y[:0]}, "0 examples are too few"),
        ({"x": X[:, 0], "y": Y}, "inputs must be numbers of shape"),
        ({"x": X * 1j, "y": Y}, "inputs must be numbers"),
        ({"x": X.astype(str), "y": Y}, "inputs must be numbers"),
        ({"x": np.where(X > 2, np.inf, X), "y": Y}, "inputs must be finite"),
        ({"x": np.where(X > 2, np.nan, X), "y": Y}, "inputs must be finite"),
        ({"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]}, "x_test holds no examples"),
        ({"x_train": X, "y_train": Y, "x_test": X[:5] * 1e60, "y_test": Y[:5]}, "inputs held out must not be larger"),
        ({"x_train": X, "y_train": Y, "x_test": X[:5], "y_test": Y[:5] + 2**32}, "labels must be the numbers"),
        ({"x_train": X, "y_train": Y, "x_test": X[:5, :3], "y_test": Y[:5]}, r"examples have shape \(4,\), those held out \(3,\)"),
        ({"x": np.full((100, 4), 7.0), "y": Y}, "inputs of all examples are equal"),
        ({"x": X * 0, "y": Y}, "inputs of all examples are equal"),
        ({"x": X, "y": Y, "test_x": X, "test_y": Y}, "test_x and test_y would not be used"),
        ({"x": X, "y": Y, "x_test": X}, "x_test would not be used"),
        ({"x": X, "y": Y, "y_test": Y}, "y_test would not be used"),
        ({"x": X, "y": Y, "x_train": X, "y_train": Y}, "x and y would not be used"),
        ({"x": X, "y": Y, "x_train": X}, "x_train would not be used"),
        ({"a": X}, "expected arrays x_train and y_train .* got a"),
        ({}, "got none"),
    ],
)
def test_data_that_would_become_other_data_are_refused(tmp_path, arrays, said):
    with pytest.raises(data.DataError, match=f"^{tmp_path}/d.npz: |^d.npz: ") as caught:
        load(tmp_path, **arrays)
    assert caught.match(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [1e-300, 1e-38, 1e-30, 1e-10, 1.0, 1e10, 1e30, 1e38, 1e300])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_inputs_of_any_size_come_to_rms_1(tmp_path, factor, offset):
    given, plain = load(tmp_path, x=(X + offset) * factor, y=Y), load(tmp_path, x=X + offset, y=Y)
    assert rms(given.inputs[given.train]) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(given.inputs, plain.inputs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(given.labels, plain.labels)


@settings(max_examples=50 * TIMES, deadline=None)
@given(st.integers(-1000, 1000), st.sampled_from(["f8", "f4", "f2", ">f8", "u1", "i8", "?"]), st.integers(1, 3))
def test_inputs_are_those_of_float64_to_rounding(exponent, kind, channels):
    x = np.random.default_rng(abs(exponent)).standard_normal((60, 2, channels))
    with np.errstate(all="ignore"):
        x = np.ldexp(x, exponent if kind in ("f8", ">f8") else 0)
        x = {"u1": np.abs(x * 50), "?": x > 0}.get(kind, x).astype(kind)
    examples = data._examples("x", x, np.arange(60) % 3, None, None)
    order = np.random.default_rng(0).permutation(60)
    wide = np.ldexp(x[order].astype(np.float64), -exponent if kind in ("f8", ">f8") else 0)
    seen = wide[:54]
    expected = (wide - seen.mean((0, 1))) / (rms(seen - seen.mean((0, 1))) or 1)
    np.testing.assert_allclose(examples.inputs, expected, rtol=1e-4, atol=1e-4)


def claim(kind, count):
    """The header of an array that claims ``count`` numbers."""
    said = f"{{'descr': {kind}, 'fortran_order': False, 'shape': ({count},), }}"
    return np.lib.format.magic(1, 0) + b"\x76\x00" + said.encode().ljust(118)


def damaged(whole):
    """Damaged archives, as pairs of name and bytes."""
    yield "empty", b""
    yield "no zip", b"PK\x03\x04 no zip"
    yield "text", b"hello"
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    yield "one array", single.getvalue()
    yield "half", whole[: len(whole) // 2]
    for name, change in {
        "encrypted": lambda member: setattr(member, "flag_bits", 1),
        "unknown compression": lambda member: setattr(member, "compress_type", 99),
    }.items():
        content = io.BytesIO(whole)
        with zipfile.ZipFile(content, "a") as archive:
            for member in archive.infolist():
                change(member)
            archive._didModify = True
        yield name, content.getvalue()
    for name, text in {
        "no header": b"\x93NUMPY\x01\x00\x76\x00(",
        "other": b"hello",
        "code": b"\x93NUMPY\x01\x00\x18\x00__import__('os').getpid()",
        "huge": claim("'<f8'", 2**60),
        "negative": claim("'<f8'", -5),
        "objects": claim("'|O'", 1) + b"cos\n_exit\n(I3\ntR.",
    }.items():
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for member in ("x.npy", "y.npy"):
                archive.writestr(member, text)
        yield name, content.getvalue()


def test_damaged_archives_are_refused_in_one_line(tmp_path):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=X, y=Y)
    for name, content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(data.DataError, match=r"d\.npz") as caught:
            data.load(str(path))
        assert "\n" not in str(caught.value), name


def test_archives_changed_at_random_are_read_as_they_were_or_refused(tmp_path):
    path, rng = tmp_path / "d.npz", random.Random(SEED)
    np.savez_compressed(path, x=X, y=Y)
    whole, expected = path.read_bytes(), data.load(str(path))
    for _ in range(300 * TIMES):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            got = data.load(str(path))
        except data.DataError as error:
            got = None if "d.npz" in str(error) and "\n" not in str(error) else error
        assert got is None or (np.array_equal(got.inputs, expected.inputs) and np.array_equal(got.labels, expected.labels)), got


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe" * 100)
    (tmp_path / "empty.txt").write_bytes(b"")
    for name in ("pipe.npz", "pipe.txt", "folder.npz", "folder.txt", "missing.npz", "missing.txt", "bytes.txt", "empty.txt", "a\0.txt"):
        with pytest.raises(data.DataError) as caught:
            data.load(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_small_file_that_claims_much_is_refused_unread(tmp_path):
    path = tmp_path / "d.npz"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    size, check = 100 << 20, 0
    for _ in range(100):
        check = zlib.crc32(bytes(1 << 20), check)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y.npy", b"")
        info = zipfile.ZipInfo("x.npy")
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, b"")
        info.compress_size, info.file_size, info.CRC = len(packed), size, check
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(data.DataError, match=r"x.npy claims 104857600 bytes, packed into"):
        data.load(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.mark.slow
def test_memory_of_bytes_and_of_text_is_a_small_multiple(tmp_path):
    """Bytes become float32, four times their size; each one-byte character of a text becomes a four-byte token."""
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).integers(0, 255, (200, 100_000), np.uint8), y=np.arange(200) % 3)
    (tmp_path / "d.txt").write_text("the quick brown fox " * 1_000_000)
    code = (
        "import resource, sys, numpy as np; from modula_rs import data; np.random.default_rng(); used = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = used(); data.load(sys.argv[1]); print((used() - before) * 1024)"
    )
    for name, multiple in (("d.npz", 11), ("d.txt", 9)):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=True)
        assert float(done.stdout) < multiple * 20_000_000, name


@pytest.mark.parametrize(
    ("inputs", "labels", "held_out"),
    [
        (X, Y, 0), (X, Y, 100), (X, Y, -1), (X, Y + 2**32, 10), (X, Y - 1, 10), (X[:9], Y, 3), (X.tolist(), Y, 10), (X, Y.tolist(), 10),
        (X[:, :0], Y, 10), (X, Y, 1.5), (X, Y, None),
    ],
)  # fmt: skip
def test_examples_made_by_hand_are_checked_too(inputs, labels, held_out):
    with pytest.raises((ValueError, TypeError)):
        data.Examples("x", inputs, labels, held_out)


@pytest.mark.parametrize("context", [0, -1, None, "8", 2.0, 10**30, True])
def test_contexts_of_text(context):
    with pytest.raises(data.DataError):
        data.Text.of("to be or not to be " * 50, context)


@pytest.mark.parametrize("largest", [2, 128, 0x3000, 0x110000])
def test_tokens_are_the_characters(largest):
    """Of any character that a string can hold, half surrogates and NUL among them."""
    for seed in range(20 * TIMES):
        rng = np.random.default_rng([SEED, largest, seed])
        text = "".join(map(chr, rng.integers(0, largest, rng.integers(20, 400))))
        got = data.Text.of(text, 1)
        assert "".join(got.vocabulary[token] for token in got.tokens) == text
