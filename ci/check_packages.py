"""Builds the source archive, from it the manylinux wheel, and tries both: what of a release can be tried on one Linux machine.

The wheel is audited, and installed on every Python from 3.11 on that this machine has: on the oldest with the oldest libraries, on the
newest with the newest. Quick tests of the archive run with the wheel. The crate is packaged as for the Rust index.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from try_wheel import try_wheel

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
GLIBC = "2_17"

#: What a distribution needs from the archive, and what a wheel must not put beside the package.
IN_ARCHIVE = (
    "LICENSE",
    "CHANGELOG.md",
    "Makefile",
    "tests/conftest.py",
    "docs/architecture.md",
    "examples/gpt.py",
    "rust/modula-core/benches/tree.rs",
)
IN_WHEEL = ("modula_rs/py.typed", "modula_rs/_core.pyi", "modula_rs/_core.abi3.so", "modula_rs/kernels/power.cu")
QUICK_TESTS = ("tests/network", "tests/norm/test_recipes.py", "tests/package/test_import.py")


def interpreters() -> list[str]:
    """A working interpreter of each version, the oldest first."""
    found = []
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for candidate in filter(None, candidates):
            answer = subprocess.run([candidate, "-c", "import venv, sys; print(sys.version)"], capture_output=True, text=True, check=False)
            if answer.stdout.startswith(version):
                found.append(str(candidate))
                break
    return found


def run(*command: str | Path, **options: object) -> None:
    """Runs a command, and shows it."""
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, **options)  # type: ignore[call-overload]


def archive(folder: Path) -> Path:
    """The source archive, unpacked; it must have what distributions need."""
    run(sys.executable, "-m", "maturin", "sdist", "--out", folder, cwd=ROOT)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    unpacked = folder / packed.name.removesuffix(".tar.gz")
    missing = [name for name in IN_ARCHIVE if not (unpacked / name).exists()]
    if missing:
        raise SystemExit(f"{packed.name} lacks {', '.join(missing)}")
    return unpacked


def wheel(source: Path, folder: Path) -> Path:
    """The wheel for every Linux with this glibc or a newer one, built from the archive and audited."""
    target = f"{platform.machine()}-unknown-linux-gnu"
    # maturin looks for zig through the python of the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CARGO_TARGET_DIR": str(ROOT / "target")}
    options = ("--release", "--locked", "--zig", "--target", target, "--compatibility", f"manylinux_{GLIBC}", "--out", folder)
    run(sys.executable, "-m", "maturin", "build", *options, cwd=source, env=environment)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as packed:
        names = packed.namelist()
    beside = [name for name in names if not name.startswith(("modula_rs/", "modula_rs-"))]
    missing = [name for name in IN_WHEEL if name not in names]
    if beside or missing or f"manylinux_{GLIBC}" not in built.name.replace("manylinux2014", "manylinux_2_17"):
        raise SystemExit(f"{built.name} has {beside} beside the package, and lacks {missing}")
    shown = subprocess.run([sys.executable, "-m", "auditwheel", "show", str(built)], capture_output=True, text=True, check=True).stdout
    if f"manylinux_{GLIBC}_" not in shown.replace("manylinux2014_", "manylinux_2_17_"):
        raise SystemExit(f"auditwheel does not agree that it is manylinux_{GLIBC}: {shown}")
    print(f"{built.name}, {built.stat().st_size / 2**20:.1f} MiB, audited")
    return built


def quick_tests(source: Path, built: Path) -> None:
    """Quick tests of the archive, with the package of the wheel."""
    package = source / "package"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", package, built)
    environment = {**os.environ, "PYTHONPATH": str(package)}
    run(sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *QUICK_TESTS, cwd=source, env=environment)


def main() -> None:
    """Builds, audits, installs, tries, tests."""
    with tempfile.TemporaryDirectory() as folder:
        source = archive(Path(folder))
        built = wheel(source, Path(folder))
        pythons = interpreters()
        for number, interpreter in enumerate(pythons):
            libraries = "oldest" if number == 0 else "newest" if number == len(pythons) - 1 else "numpy"
            try_wheel(built, libraries, interpreter)
        quick_tests(source, built)
    run("cargo", "package", "--package", "modula-core", "--locked", "--allow-dirty", "--no-verify", cwd=ROOT)


if __name__ == "__main__":
    main()
