"""How XLA compiles in the tests: quickly, because most programs are called only once; and once for all processes and later runs."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

#: Flags that make XLA's CPU compiler three to six times as fast: its older code generator, and one module of machine code.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
#: The first JAX that does not know these flags. A flag that is not known ends the process.
UNKNOWN_FROM = (0, 11)
#: Compiled programs of any size, which the workers, the processes that tests start, and later runs find here. JAX names each by its text,
#: the flags and the version. `pytest --cache-clear` removes them.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[2] / ".pytest_cache" / "d" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def compile_quickly() -> None:
    """Sets the environment of this process and of those that it starts.

    XLA's optimisation is not what the tests test; `make demo` and the trial of the wheel run with it.
    """
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    for name, value in CACHE.items():
        os.environ.setdefault(name, value)
    known = tuple(int(part) for part in version("jaxlib").split(".")[:2]) < UNKNOWN_FROM
    if known and QUICK not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = with_flags(QUICK)


def with_flags(more: str) -> str:
    """The value of XLA_FLAGS for a process with more flags than this one has."""
    return f"{os.environ.get('XLA_FLAGS', '')} {more}".strip()
