"""Kernels of a library (library.py) called from Python, on arrays."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from .library import HERE, compile_c, nvcc, ptx
from .translate import translate

__all__ = ["ENTRIES", "MOE", "Fault", "Library"]

ENTRIES = 512
MOE = np.dtype(
    [
        ("experts", np.uint32), ("expert", np.uint16, ENTRIES), ("begin", np.uint16, ENTRIES + 1), ("mask", np.uint8, ENTRIES),
        ("row", np.uint8, ENTRIES), ("weight", np.float32, ENTRIES), ("chosen", np.uint16, ENTRIES),
        ("share", np.float32, ENTRIES), ("first", np.uint8, ENTRIES),
    ],
    align=True,
)  # fmt: skip
"""A mimo_moe (csrc/cuda/moe.h)."""


class Fault(RuntimeError):
    """A kernel broke a rule, or nobody in it could go on."""


class Library:
    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.ptx_fault.restype = ctypes.c_char_p

    @classmethod
    def of(cls, source: str, folder: Path, counted: bool = False) -> Library:
        """Of the kernels in a file beside this one, compiled to a folder, if nobody has. counted: see `executed`."""
        compiler = nvcc()
        assert compiler is not None
        target = folder / f"{Path(source).stem}{'-counted' if counted else ''}.so"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                compile_c(translate(ptx(HERE / source, compiler), counted), target)
        return cls(target)

    @property
    def executed(self) -> int:
        """Instructions of all threads so far but moves, of kernels that are counted."""
        return ctypes.c_uint64.in_dll(self.library, "ptx_executed").value

    def run(
        self, kernel: str, *parameters: Any, ctas: int = 1, threads: int = 32, shared: int = 0, seed: int = 0, races: bool = True
    ) -> None:
        """Arrays are memory of the device for the call; other parameters are 32 bits. Fault says what was wrong."""
        lib = self.library
        lib.ptx_set(ctypes.c_uint64(seed), int(races))
        arrays = [value for value in parameters if isinstance(value, np.ndarray)]
        values = [
            ctypes.c_uint64(value.ctypes.data) if isinstance(value, np.ndarray) else ctypes.c_uint32(value) for value in parameters
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        for array in arrays:
            lib.ptx_memory(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 1)
        try:
            result = lib.ptx_launch(kernel.encode(), ctas, threads, shared, pointers, 1)
        finally:
            for array in arrays:
                lib.ptx_memory(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 0)
        if result != 0:
            raise Fault(lib.ptx_fault().decode())
