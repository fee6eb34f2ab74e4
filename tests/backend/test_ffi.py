"""The maps in Rust inside compiled JAX programs, against the same maps in `jax.numpy`, and everything around the call."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from compiling import with_flags
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend import jax as jax_backend
from modula_rs.backend.jax import rust as jax_rust
from operations import Operations
from spectra import battery

BATCHES = [
    Batch("spectral", 2, 20, 30),
    Batch("rms", 1, 1, 7),
    Batch("row_rms", 2, 30, 8),
    Batch("max_abs", 2, 1, 9),
    Batch("spectral", 0, 3, 4),
    Batch("spectral", 1, 20, 30),
]
backend = Operations(jax_backend)
MAPS: dict[str, Callable[[Any, Any], Any]] = {
    "norms": lambda a, s: backend.norms(BATCHES, a),
    "dual_norms": lambda a, s: backend.dual_norms(BATCHES, a),
    "normalize": lambda a, s: backend.normalize(BATCHES, a, s)[0],
    "dualize": lambda a, s: backend.dualize(BATCHES, a, s),
    "dualize, fast": lambda a, s: backend.dualize(BATCHES, a, s, "fast"),
    "project": lambda a, s: backend.project(BATCHES, a, s),
}


def example(dtype: Any = jnp.float32, seed: int = 0) -> tuple[list[jax.Array], list[jax.Array]]:
    """Arrays and scales for the batches."""
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.standard_normal(group[1:4]), dtype) for group in BATCHES]
    return arrays, [jnp.asarray(rng.uniform(1, 2, group.count), jnp.float32) for group in BATCHES]


def both(function: Callable[[], Any]) -> Iterator[tuple[Any, Any]]:
    """The leaves of a result from Rust, each with the leaf from `jax.numpy`."""
    results = []
    for name in ("rust", "jnp"):
        with mr.cpu_backend(name):
            results.append([np.asarray(x) for x in jax.tree.leaves(function())])
    yield from zip(*results, strict=True)


def assert_same(function: Callable[[], Any], tolerance: float = 3e-6) -> None:
    for rust, pure in both(function):
        assert rust.dtype == pure.dtype
        assert rust.shape == pure.shape
        rounding = tolerance if rust.dtype in (np.float32, np.float64) else 2 * float(jnp.finfo(rust.dtype).eps)
        rust, pure = rust.astype(np.float64), pure.astype(np.float64)
        np.testing.assert_allclose(rust, pure, rtol=rounding, atol=rounding * np.max(np.abs(pure), initial=0, where=np.isfinite(pure)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.float16, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
def test_all_maps_give_the_same_values_to_rounding(dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        arrays, scales = example(dtype)

        def everything() -> Any:
            _, vectors = backend.normalize(BATCHES, arrays, scales)
            turned = [x + jnp.roll(x, 1) / 4 for x in arrays]
            made, _ = backend.normalize(BATCHES, turned, scales, [None if v is None else jnp.abs(v) for v in vectors])
            return [function(arrays, scales) for function in MAPS.values()], made

        assert_same(everything, 1e-5)


@pytest.mark.slow
def test_the_same_values_on_any_spectrum() -> None:
    entries = np.stack(list(battery(70, 90).values())).astype(np.float32)
    group = [Batch("spectral", *entries.shape)]
    array, scale = [jnp.asarray(entries)], [jnp.ones(len(entries))]
    # Rank one, or many equal singular values: both ways find the same norm, to rounding.
    assert_same(lambda: backend.norms(group, array), 1e-4)  # the Lanczos method may stop a step earlier or later
    # Rounding is amplified by the largest pole's 1 / 7e-5, in the directions far below the largest singular value.
    assert_same(lambda: backend.dualize(group, array, scale), 2e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_the_same_on_what_is_not_a_number_and_on_zeros(bad: float) -> None:
    arrays, scales = example()
    arrays = [x if x.size == 0 else x.at[0].multiply(0).at[0, 0, 0].set(bad) for x in arrays]
    for name in ("norms", "normalize", "dualize"):
        assert_same(lambda name=name: MAPS[name](arrays, scales))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_same_at_any_scale(scale: float) -> None:
    arrays, scales = example()
    arrays = [x * scale for x in arrays]
    for name in ("norms", "normalize", "dualize"):
        assert_same(lambda name=name: MAPS[name](arrays, scales), 1e-5)


def test_one_call_for_all_leaves_and_nothing_copied() -> None:
    arrays, scales = example()
    with mr.cpu_backend("rust"):
        text = jax.jit(MAPS["dualize"]).lower(arrays, scales).compile().as_text()
    assert text.count('custom_call_target="modula_rs_apply"') == 1
    assert text.count(" copy(") <= 1  # the copy of the empty leaf, which is returned as it is


@pytest.mark.slow
def test_vmap_folds_into_one_call() -> None:
    arrays, scales = example()
    stacks = [jnp.stack([x, 2 * x, jnp.roll(x, 1)]) for x in arrays]
    vectors = [jnp.ones((g.count, VECTORS, g.cols)) if g.geometry == "spectral" else None for g in BATCHES]
    mapped = jax.vmap(lambda a, s: (backend.normalize(BATCHES, a, s, vectors)[0], MAPS["norms"](a, s)), in_axes=(0, None))
    assert_same(lambda: mapped(stacks, scales), 1e-5)
    with mr.cpu_backend("rust"):
        text = jax.jit(mapped).lower(stacks, scales).as_text()
        twice = jax.vmap(jax.vmap(lambda a: MAPS["norms"](a, scales)))([jnp.stack([x, -x]) for x in stacks])
        flat = jax.vmap(lambda a: MAPS["norms"](a, scales))(stacks)
    assert text.count("@modula_rs_factors") == 1
    for deep, once in zip(twice, flat, strict=True):
        np.testing.assert_array_equal(deep[0], once)
        np.testing.assert_array_equal(deep[1], once)


@pytest.mark.slow
def test_gradients_come_from_the_pure_path() -> None:
    arrays, scales = example()
    assert_same(lambda: jax.grad(lambda a: sum(jnp.sum(x**3) for x in MAPS["dualize"](a, scales)))(arrays), 1e-5)


def test_scan_and_the_same_bits_every_time() -> None:
    arrays, scales = example()
    with mr.cpu_backend("rust"):
        step = lambda a, _: (MAPS["dualize"](a, scales), None)  # noqa: E731
        first, again = (jax.jit(lambda a: jax.lax.scan(step, a, length=3)[0])(arrays) for _ in range(2))
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_through_a_module_inside_jit() -> None:
    m = mr.MLP(10, 20, width=20, depth=2)
    gradient = [jnp.asarray(np.random.default_rng(0).standard_normal(leaf.shape), jnp.float32) for leaf in m.leaves]
    # A square Gaussian matrix has singular values near 0, whose directions amplify rounding.
    assert_same(lambda: jax.jit(lambda g: (m.normalize(g, nonfinite="propagate"), m.dualize(g, nonfinite="propagate")))(gradient), 1e-3)


def test_choosing() -> None:
    with pytest.raises(ValueError, match="'cuda'"):
        mr.set_cpu_backend("cuda")
    arrays, scales = example()
    lower = lambda: jax.jit(lambda a: MAPS["dualize"](a, scales)).lower(arrays).as_text()  # noqa: E731
    assert "modula_rs_apply" in lower()
    with mr.cpu_backend("jnp"):
        assert "modula_rs_apply" not in lower()
    mr.set_cpu_backend("jnp")
    try:
        assert "modula_rs_apply" not in lower()
        with mr.cpu_backend("auto"):
            assert "modula_rs_apply" in lower()
    finally:
        mr.set_cpu_backend("auto")


def test_a_jax_too_new_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_rust, "_interface_version", lambda: (0, 99))
    for function in (jax_rust.available, jax_rust.register):
        function.cache_clear()
    try:
        arrays, scales = example()
        with pytest.warns(RuntimeWarning, match=r"version 0\.99 .* known are 0\.1 to 0\.5") as seen:
            MAPS["norms"](arrays, scales)
        assert len(seen) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            MAPS["normalize"](arrays, scales)
        with mr.cpu_backend("rust"), pytest.raises(RuntimeError, match=r"version 0\.99"):
            MAPS["norms"](arrays, scales)
    finally:
        for function in (jax_rust.available, jax_rust.register):
            function.cache_clear()


FLOATS, SCALES = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32), jnp.ones(2)
ARRAY = jnp.ones((2, 3, 4))
FACTORS, ESTIMATES = jax.ShapeDtypeStruct((2, 1, 2), jnp.float32), jax.ShapeDtypeStruct((2, VECTORS, 4), jnp.float32)
SPECTRAL = np.array([0], np.int32)
EXACT = {"operation": np.array([2], np.int32), "accuracy": np.array([0], np.int32)}


@pytest.mark.parametrize(
    ("name", "results", "operands", "attributes", "message"),
    [
        ("norms", [jax.ShapeDtypeStruct((2,), jnp.float32)], [jnp.ones((2, 3, 4), jnp.int32)], {}, "XLA type 4"),
        ("norms", [jax.ShapeDtypeStruct((2,), jnp.float16)], [ARRAY], {}, "float32 or float64"),
        ("norms", [jax.ShapeDtypeStruct((4,), jnp.float32)], [jnp.ones(4)], {}, "at least two axes"),
        ("norms", [jax.ShapeDtypeStruct((2,), jnp.float32)], [ARRAY, ARRAY], {}, "expected 1 arguments, got 2"),
        ("norms", [jax.ShapeDtypeStruct((2,), jnp.float32)], [ARRAY], {"geometry": np.array([9], np.int32)}, "no geometry has index 9"),
        ("norms", [jax.ShapeDtypeStruct((2,), jnp.float32)], [ARRAY], {"geometry": np.array([0], np.int64)}, "of int32"),
        ("norms", [jax.ShapeDtypeStruct((2,), jnp.float32)], [ARRAY], {"geometry": "spectral"}, "must be an array"),
        ("apply", [FLOATS], [ARRAY, SCALES], {}, "attribute operation is missing"),
        ("apply", [FLOATS], [ARRAY, SCALES], {"operation": np.array([1], np.int32)}, "attribute accuracy is missing"),
        ("apply", [FLOATS], [ARRAY, SCALES], {"operation": np.array([99], np.int32)}, "operation must be one index below"),
        ("apply", [FLOATS], [ARRAY, SCALES], {"operation": np.array([-1], np.int32)}, "operation must be one index below"),
        ("apply", [FLOATS], [ARRAY, SCALES], {"operation": np.array([1, 1], np.int32)}, "operation must be one index below"),
        ("apply", [FLOATS], [ARRAY, jnp.ones(3)], EXACT, "expected 2 scales, got 3"),
        ("apply", [jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)], [ARRAY, SCALES], EXACT, "expected 24 numbers in a result, got 30"),
        ("apply", [jax.ShapeDtypeStruct((2, 3, 4), jnp.float16)], [ARRAY, SCALES], EXACT, "dtype of its array"),
        ("apply", [FLOATS], [ARRAY], EXACT, "expected 2 arguments, got 1"),
        ("factors", [FACTORS], [ARRAY, SCALES], {}, "expected 2 results, got 1"),
        ("factors", [FLOATS, ESTIMATES], [ARRAY, SCALES], {}, "expected 4 numbers in the factors of a leaf, got 24"),
        ("factors", [jax.ShapeDtypeStruct((2, 1, 2), jnp.float16), ESTIMATES], [ARRAY, SCALES], {}, "else of float32"),
        ("factors", [FACTORS, ESTIMATES], [ARRAY, SCALES, jnp.ones((2, VECTORS, 3))], {}, "vectors must have one shape"),
    ],
)
def test_what_does_not_fit_is_an_error_and_the_process_lives(
    name: str, results: Any, operands: Any, attributes: dict[str, Any], message: str
) -> None:
    jax_rust.register()
    call = jax.ffi.ffi_call(f"modula_rs_{name}", results)
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(call(*operands, **{"geometry": SPECTRAL, **attributes}))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from modula_rs.backend import Batch, jax as backend

def normalize(batches, arrays, scales):
    return backend.apply("unit", batches, arrays, scales)[0]

def dualize(batches, arrays, scales):
    return backend.apply("direction", batches, arrays, scales)[0]

assert jax.device_count() == 2
mesh = Mesh(np.array(jax.devices()), ("x",))
rng = np.random.default_rng(0)
arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in [(4, 20, 30), (2, 1, 7), (2, 70, 80)]]
scales = [jnp.ones(len(a)) for a in arrays]
whole = [Batch("spectral", 4, 20, 30), Batch("rms", 2, 1, 7), Batch("spectral", 2, 70, 80)]
for name in ("rust", "jnp"):
    with backend.cpu_backend(name):
        for specs in ([P("x"), P("x"), P("x")], [P("x"), P(), P("x")]):
            batches = [Batch(g.geometry, g.count // 2 if s else g.count, g.rows, g.cols) for g, s in zip(whole, specs)]
            for function in (normalize, dualize):
                local = jax.shard_map(lambda a, s: function(batches, a, s), mesh=mesh, in_specs=(specs, specs), out_specs=specs)
                expected = function(whole, arrays, scales)
                placed = [jax.device_put(a, NamedSharding(mesh, P("x"))) for a in arrays]
                for got in (jax.jit(local)(arrays, scales), jax.jit(lambda a, s: function(whole, a, s))(placed, scales)):
                    for x, y in zip(got, expected):
                        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
print("fine")
"""


@pytest.mark.slow
def test_under_shard_map_and_with_sharded_arrays() -> None:
    environment = {**os.environ, "XLA_FLAGS": with_flags("--xla_force_host_platform_device_count=2"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr[-3000:]


@pytest.mark.slow
def test_the_environment_variable() -> None:
    for value, expected in (("jnp", "False"), ("rust", "True")):
        code = "from modula_rs.backend import jax; print(jax._in_rust())"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "MODULA_RS_CPU_BACKEND": value}, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == expected, done.stderr
