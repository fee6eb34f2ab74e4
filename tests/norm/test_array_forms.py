"""Arrays in every form that NumPy has, against a clean copy: every map gives the same bits and does not change its input."""

import ctypes
from multiprocessing import shared_memory

import modula_rs as mr
import numpy as np
import pytest
from longer import SEED, TIMES
from numpy.lib.stride_tricks import sliding_window_view


class Own(np.ndarray):
    """A subclass that adds nothing."""


def unaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def strided(a, step):
    room = np.zeros((*a.shape[:-1], a.shape[-1] * abs(step)), a.dtype)
    room[..., :: abs(step)] = a
    view = room[..., :: abs(step)]
    return view if step > 0 else np.ascontiguousarray(view[..., ::-1])[..., ::-1]


def field(a):
    rows = np.zeros(a.shape, [("before", np.int8), ("value", a.dtype), ("after", np.float64)])
    rows["value"] = a
    return rows["value"]


def mapped(a, folder):
    np.save(folder / "a.npy", a)
    return np.load(folder / "a.npy", mmap_mode="r")


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def foreign(a):
    buffer = (ctypes.c_char * a.nbytes).from_buffer_copy(a.tobytes())
    return np.frombuffer(buffer, a.dtype).reshape(a.shape)


FORMS = {
    "Fortran's order": lambda a, folder: np.asfortranarray(a),
    "every second": lambda a, folder: strided(a, 2),
    "every third": lambda a, folder: strided(a, 3),
    "backwards": lambda a, folder: strided(a, -1),
    "all axes backwards": lambda a, folder: np.ascontiguousarray(np.flip(a))[(slice(None, None, -1),) * a.ndim],
    "transposed": lambda a, folder: np.ascontiguousarray(a.T).T,
    "axes moved": lambda a, folder: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0),
    "a window": lambda a, folder: np.pad(a, 2)[(slice(2, -2),) * a.ndim],
    "a sliding window": lambda a, folder: sliding_window_view(np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 3)]), a.shape[-1], -1)[..., 0, :],
    "the other byte order": lambda a, folder: a.astype(a.dtype.newbyteorder()),
    "strided in the other byte order": lambda a, folder: strided(a.astype(a.dtype.newbyteorder()), 2),
    "unaligned": lambda a, folder: unaligned(a),
    "unaligned in the other byte order": lambda a, folder: unaligned(a.astype(a.dtype.newbyteorder())),
    "read-only": lambda a, folder: read_only(a),
    "bytes": lambda a, folder: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "of C": lambda a, folder: foreign(a),
    "from a file": mapped,
    "a field of a record": lambda a, folder: field(a),
    "a subclass": lambda a, folder: a.view(Own),
    "a record array": lambda a, folder: field(a).view(np.ndarray),
    "a piece of a larger one": lambda a, folder: np.stack([a + 1, a, a - 1])[1],
    "an extra axis removed": lambda a, folder: a[:, None][:, 0] if a.ndim else a,
}


def network():
    return mr.Scale(4) @ mr.Bias(4) @ (mr.Linear(4, 4) @ mr.Tanh()) ** 2 @ mr.Linear(4, 3) @ mr.Embed(3, 5)


MAPS = {
    "norm": lambda m, w: [np.asarray(m.norm(w))],
    "dual_norm": lambda m, w: [np.asarray(m.dual_norm(w))],
    "normalize": lambda m, w: m.normalize(w, 0.7),
    "dualize": lambda m, w: m.dualize(w),
    "project": lambda m, w: m.project(w),
    "radius": lambda m, w: m.radius(w),
    "regularize": lambda m, w: m.regularize(w, 0.1),
    "forward": lambda m, w: [m(np.array([0, 3, 1]), w)],
    "gradients": lambda m, w: m.vjp(np.array([0, 3, 1]), w)[1](np.ones((3, 4), np.float32))[1],
    "adam": lambda m, w: mr.optim.adam(w, mr.optim.adam_init(w))[0],
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_bits_of_a_clean_copy(form, dtype, tmp_path):
    m = network()
    for seed in range(SEED, SEED + TIMES):
        rng = np.random.default_rng(seed)
        clean = [rng.standard_normal(leaf.shape).astype(dtype) for leaf in m.leaves]
        odd = []
        for place, a in enumerate(clean):
            folder = tmp_path / f"{seed} {place}"
            folder.mkdir()
            odd.append(FORMS[form](a, folder))
        for name, run in MAPS.items():
            expected, got = run(m, clean), run(m, odd)
            for a, b in zip(expected, got, strict=True):
                assert np.asarray(b).dtype.newbyteorder("=") == np.asarray(a).dtype, name
                assert np.asarray(b, np.asarray(a).dtype).tobytes() == np.asarray(a).tobytes(), name
        for a, b in zip(clean, odd, strict=True):
            np.testing.assert_array_equal(a, b)


def test_memory_shared_with_other_processes():
    a = np.random.default_rng(0).standard_normal((4, 4))
    memory = shared_memory.SharedMemory(create=True, size=a.nbytes)
    try:
        view = np.ndarray(a.shape, a.dtype, memory.buf)
        view[...] = a
        m = mr.Linear(4, 4)
        assert m.dualize([view])[0].tobytes() == m.dualize([a])[0].tobytes()
        del view
    finally:
        memory.close()
        memory.unlink()
