"""Compiles modules for one architecture and prints, as JSON, what each kernel takes.

A program of its own, since bad inline assembly can crash NVRTC.
"""

from __future__ import annotations

import json
import re
import sys


def resources(log: str) -> dict[str, dict[str, int]]:
    """Registers, static shared memory, stack frame and spills of each kernel, from the assembler's report."""
    found: dict[str, dict[str, int]] = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'", 1)[0]
        shared = re.search(r"(\d+) bytes smem", part)
        stack, stores, loads = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()
        found[name] = {
            "registers": int(re.search(r"Used (\d+) registers", part)[1]),
            "shared": int(shared[1]) if shared else 0,
            "stack": int(stack),
            "spills": int(stores) + int(loads),
        }
    return found


def main(arch: str, modules: list[str]) -> None:
    from modula_rs.kernels.compile import compile_module

    report = {}
    for module in modules:
        cubin, log = compile_module(module, arch)
        assert cubin[:4] == b"\x7fELF"
        # "Serialized" products (wgmma) are only a remark, though they cost half the speed.
        assert not (warnings := [line for line in log.splitlines() if "warning" in line.lower() or "serialized" in line]), warnings
        report[module] = {"bytes": len(cubin), "kernels": resources(log)}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
