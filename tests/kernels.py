"""Runs the tests with the kernels of other processors, which add up and round matrix products otherwise.

    make kernels                                        all tests under every setting, and a line for each: hours
    python tests/kernels.py --setting portable TEST...  under one of them; all that follows is pytest's

A setting tells a library to use fewer of the processor's instructions than it could. Intel's MKL listens to
MKL_ENABLE_INSTRUCTIONS on Intel's processors alone, to MKL_CBWR everywhere. Under a setting that changes none of the
results of `fingerprint` the kernels are those of a setting before it, so the tests are not run again.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "own": "",
    "mkl-sse4.2": "MKL_ENABLE_INSTRUCTIONS=SSE4_2",
    "mkl-avx2": "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "mkl-avx512": "MKL_ENABLE_INSTRUCTIONS=AVX512",
    "mkl-compatible": "MKL_CBWR=COMPATIBLE",
    "torch-default": "ATEN_CPU_CAPABILITY=default",
    "torch-avx2": "ATEN_CPU_CAPABILITY=avx2",
    "onednn-sse4.1": "ONEDNN_MAX_CPU_ISA=SSE41",
    "onednn-avx2": "ONEDNN_MAX_CPU_ISA=AVX2",
    "portable": "MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Prescott",
}
PYTEST = ("-m", "pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
COMPUTE = """
import zlib
import torch
torch.set_num_threads(1)
a, b = (torch.arange(131 * n).mul(7919).remainder(1009).sub(504).div(997).view(n, 131) for n in (67, 59))
images, filters = a[:60, :128].reshape(10, 3, 16, 16), b[:24, :128].reshape(4, 3, 16, 16)
products = [a @ b.T, a @ b[0], a.double() @ b.double().T, torch.conv2d(images, filters), a.exp(), a.sum(1)]
numbers = [product.numpy() for product in products] + [a.numpy() @ b.numpy().T]
print(zlib.crc32(b"".join(some.tobytes() for some in numbers)))
"""


def main() -> None:
    """Runs the tests under each setting that was asked for; exit code 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, help="one of them, default: all")
    args, rest = parser.parse_known_args()
    seen: dict[str, str] = {}
    failed = False
    for name in [args.setting] if args.setting else SETTINGS:
        mark = fingerprint(SETTINGS[name])
        if mark in seen:
            print(f"{name:<16} the kernels of {seen[mark]}", flush=True)
            continue
        seen[mark] = name
        start = time.monotonic()
        result = run(SETTINGS[name], *PYTEST, *rest)
        outcome = f"{'FAILED' if result.returncode else 'passed'} in {time.monotonic() - start:.0f} s"
        failed |= result.returncode != 0
        print(f"{result.stdout}{result.stderr}" if result.returncode else "", end="")
        print(f"{name:<16} {outcome}, {SETTINGS[name] or 'no variable set'}", flush=True)
    sys.exit(failed)


def fingerprint(setting: str) -> str:
    """A checksum of products and sums under a setting, which other kernels change."""
    result = run(setting, "-c", COMPUTE)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(setting: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python under a setting, in a process of its own: libraries choose their kernels when they are loaded."""
    variables = dict(pair.split("=") for pair in setting.split())
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)


if __name__ == "__main__":
    main()
