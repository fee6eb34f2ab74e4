"""Compiles kernels for one architecture and prints the resources of each as JSON.

This is a separate program because bad inline assembly can crash NVRTC. ``module`` stands for all its kernels, ``module:kernel`` for one.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from concurrent.futures import ThreadPoolExecutor


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


def missing_bytes(binary: bytes) -> int:
    """The number of bytes by which a 64-bit ELF file is shorter than its section and program headers say."""
    assert binary[:5] == b"\x7fELF\x02"
    programs, sections = struct.unpack_from("<QQ", binary, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", binary, 54)
    ends = [programs + program_size * program_count, sections + section_size * section_count]
    for i in range(section_count):
        kind, _, _, offset, size = struct.unpack_from("<IQQQQ", binary, sections + i * section_size + 4)
        ends.append(offset + (0 if kind == 8 else size))  # a section of type 8 (NOBITS) takes no bytes of the file
    for i in range(program_count):
        header = binary[programs + i * program_size :][:program_size].ljust(program_size, b"\0")
        offset, _, _, size = struct.unpack_from("<QQQQ", header, 8)
        ends.append(offset + size)
    return max(ends) - len(binary)


def report(arch: str, wanted: str) -> dict:
    """The resources of one kernel, or of all kernels of a module."""
    from modula_rs.kernels.compile import compile_kernel

    module, _, kernel = wanted.partition(":")
    cubin, log = compile_kernel(module, kernel or None, arch)
    # The assembler reports "serialized" wgmma products as a remark only, although they cost half the speed.
    assert not (warnings := [line for line in log.splitlines() if "warning" in line.lower() or "serialized" in line]), warnings
    return {"bytes": len(cubin), "missing": missing_bytes(cubin), "kernels": resources(log)}


def main(arch: str, wanted: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        print(json.dumps(dict(zip(wanted, pool.map(lambda each: report(arch, each), wanted), strict=True))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
