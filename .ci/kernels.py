"""Prints what ptxas said of every kernel; fails on spills, or more registers than a kernel may have: kernels.py BUILD_TEMP/cuda"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MOST_REGISTERS = 168  # with 256 threads a CTA; a multiprocessor has 65,536
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


def main(folder: Path) -> int:
    bad = 0
    kernels = 0
    print(f"{'kernel':<32}{'arch':>8}{'registers':>11}{'shared':>8}{'stack':>7}{'spilt':>7}")
    for log in sorted(folder.glob("*.ptxas")):
        for found in ENTRY.finditer(log.read_text()):
            shared = re.search(r"(\d+) bytes smem", found["rest"])
            spilt = int(found["stores"]) + int(found["loads"])
            wrong = spilt > 0 or int(found["registers"]) > MOST_REGISTERS
            bad += wrong
            kernels += 1
            print(
                f"{found['name']:<32}{found['arch']:>8}{found['registers']:>11}{shared[1] if shared else '0':>8}"
                f"{found['stack']:>7}{spilt:>7}{'  <-' if wrong else ''}"
            )
    if kernels == 0:
        print(f"no kernels in {folder}")
    print(f"{kernels} kernels, {bad} with spills or more than {MOST_REGISTERS} registers (shared: static, more comes at launch)")
    return 0 if kernels > 0 and bad == 0 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
