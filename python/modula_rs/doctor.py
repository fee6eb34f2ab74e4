"""``modula-rs doctor``: shows on one screen what is installed, what will be used, and what could be better."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from modula_rs import _core
from modula_rs.backend import gpu
from modula_rs.kernels import check
from modula_rs.kernels.compile import cache_directory

#: The verdict of a line: as good as it can be, could be better, or installed and not working.
GOOD, BETTER, BROKEN = "ok", "could be better", "broken"
_MARKS = {GOOD: " ", BETTER: "-", BROKEN: "!"}
_INDENT = " " * 17
#: Array libraries, and the extra that installs each.
_LIBRARIES = {"numpy": "", "jax": "jax", "optax": "jax", "cupy": "cuda13", "ml_dtypes": "jax"}


class Line(NamedTuple):
    """One subject: its state, a verdict, and what to do if it could be better."""

    subject: str
    found: str
    state: str = GOOD
    advice: str = ""

    def text(self, width: int = 0) -> str:
        """The line and the advice below it, wrapped to ``width`` columns (0: not wrapped).

        >>> print(Line("CPU", "AVX2, 2 of 4 threads", BETTER, "modula_rs.set_num_threads sets how many").text(40))
        - CPU            AVX2, 2 of 4 threads
                         -> modula_rs.set_num_threads
                         sets how many
        """
        parts = [f"{_MARKS[self.state]} {self.subject:<14} {self.found}", *([f"{_INDENT}-> {self.advice}"] if self.advice else [])]
        if width <= len(_INDENT):
            return "\n".join(parts)
        wrapper = textwrap.TextWrapper(width, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)
        return "\n".join(wrapper.fill(part) for part in parts)


def lines() -> Iterator[Line]:
    """Every line. Nothing is compiled or run.

    >>> from modula_rs import doctor
    >>> [line.subject for line in doctor.lines()][:3]
    ['modula-rs', 'CPU', 'numpy']
    """
    version, profile, target = _core.build_info()
    yield Line(
        "modula-rs", f"{version}, {target}, Python {platform.python_version()}", GOOD if profile == "release" else BETTER,
        "" if profile == "release" else "this is a debug build, many times slower: pip install modula-rs",
    )  # fmt: skip
    yield _cpu()
    for name, extra in _LIBRARIES.items():
        yield from _library(name, extra)
    if _installed("jax"):
        yield _jax()
    yield from _gpu()
    yield _cache()


def _cpu() -> Line:
    threads, cores, instructions = _core.num_threads(), os.cpu_count() or 1, _core.instruction_set()
    found = f"{instructions}, {threads} of {cores} threads"
    if threads < cores:
        return Line("CPU", found, BETTER, "modula_rs.set_num_threads and RAYON_NUM_THREADS set how many threads the maps use")
    if instructions == "baseline" and platform.machine() in ("x86_64", "AMD64"):
        return Line("CPU", found, BETTER, "a CPU (or a virtual machine that shows) AVX2 is several times as fast")
    return Line("CPU", found)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _library(name: str, extra: str) -> Iterator[Line]:
    if not _installed(name):
        if name in ("jax", "cupy"):
            what = "for its arrays" if name == "jax" else "for its arrays, and for kernels in JAX, on an NVIDIA GPU"
            yield Line(name, "not installed", GOOD, f'{what}: pip install "modula-rs[{extra}]"')
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own warnings about its GPU, which has lines of its own here
            module: Any = importlib.import_module(name)
        yield Line(name, str(getattr(module, "__version__", "of unknown version")))
    except Exception as error:  # whatever it raises, the package is installed but cannot be used
        yield Line(name, _said(error), BROKEN, f'it cannot be imported: pip install --force-reinstall "modula-rs[{extra or "jax"}]"')


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _jax() -> Line:
    """Whether the maps on JAX arrays run in Rust on the CPU, or the reason why not."""
    try:
        from modula_rs.backend.jax import choice, rust  # needs JAX, which is optional

        if choice() == "jnp":
            return Line("JAX on the CPU", "jax.numpy, as MODULA_RS_CPU_BACKEND asks")
        rust.register()
    except ValueError as error:
        return Line("JAX on the CPU", str(error), BROKEN)
    except Exception as error:  # the exception that `rust.available` turns into a warning
        return Line("JAX on the CPU", "jax.numpy", BETTER, f"Rust is faster, but cannot be called: {_said(error)}")
    return Line("JAX on the CPU", "Rust, by JAX's foreign function interface")


def _gpu() -> Iterator[Line]:
    """The state of each kind of GPU and of its kernels."""
    try:
        gpu.choice()
    except ValueError as error:  # which every map on a GPU raises too, and every map on JAX arrays
        yield Line("GPU", str(error), BROKEN)
        return
    if not _installed("cupy"):
        return
    try:
        ordinals = list(check.kinds().values()) or [0]
    except Exception:  # there is no GPU, or CuPy is broken: `gpu_status` says which
        ordinals = [0]
    for ordinal in ordinals:
        yield from _status(gpu.gpu_status(ordinal), f"GPU {ordinal}" if len(ordinals) > 1 else "GPU")


def _status(status: dict[str, Any], subject: str) -> Iterator[Line]:
    if status["device"] is None:
        old = "InsufficientDriver" in status["reason"]
        yield Line(subject, f"none: {status['reason']}", GOOD, "if there is a GPU: update its driver" if old else "")
        return
    if status["reason"] is not None:
        yield Line(subject, f"{status['device']}: CuPy's own products, since kernels cannot run: {status['reason']}")
        return
    bad = {family: verdict for family, verdict in status["families"].items() if verdict != "ok"}
    unknown = [family for family, verdict in bad.items() if verdict == "not checked"]
    wrong = {family: verdict for family, verdict in bad.items() if not verdict.startswith(("not checked", "not tried"))}
    used = f"{len(status['allowed'])} kernels' files in use" if status["allowed"] else "CuPy's own products"
    advice = f"check its kernels once: {gpu.CHECK}" if unknown else ""
    yield Line(subject, f"{status['device']}, {used} (backend {status['backend']!r})", BETTER if unknown else GOOD, advice)
    for family, verdict in wrong.items():
        yield Line(f"  {family}", verdict, BROKEN, "it is off; the portable way takes its place. Please report it")


def _cache() -> Line:
    advice = "MODULA_RS_CACHE names a folder to keep compiled kernels in"
    directory = cache_directory()
    if directory is None:
        return Line("cache", "none: there is no home directory", BETTER, advice)
    existing = next(folder for folder in (directory, *directory.absolute().parents) if os.path.lexists(folder))
    if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
        return Line("cache", str(directory))
    return Line("cache", f"{directory}, which cannot be written", BETTER, advice)


def run(*, quick: bool = False) -> int:
    """Prints every line; unless ``quick``, first checks the kernels of GPUs that nobody has checked. Returns 0 if nothing is broken."""
    status = 0
    if not quick and _installed("cupy") and any(line.state == BETTER for line in _gpu()):
        status = check.main([])
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    broken = False
    for line in lines():
        print(line.text(width))
        broken |= line.state == BROKEN
    if broken:
        print("\nWhat is marked ! is installed and does not work.", file=sys.stderr)
    return 1 if broken or status else 0
