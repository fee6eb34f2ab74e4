"""Fixtures that many files use, and the mark ``gpu``, whose tests are skipped, with the reason, if there is no CUDA device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compiling import compile_quickly

compile_quickly()


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Lets JAX arrays be float64."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def in_jnp() -> Iterator[None]:
    """Runs the maps on JAX arrays in `jax.numpy`, as on platforms without code of our own."""
    from modula_rs.backend import jax

    with jax.cpu_backend("jnp"):
        yield


#: Packages with the names of real ones; pytest would import them to look for examples.
collect_ignore = ["kernels/fake"]


def missing_gpu() -> str | None:
    """The reason why there is no GPU to test on, or None."""
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except ImportError:
        return "CuPy is not installed"
    except Exception as error:
        return f"no CUDA device: {error}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    reason = missing_gpu() if wanted else None
    if reason:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=reason))
