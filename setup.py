"""Builds the two extension modules from one set of objects.

Why not plain setuptools: kernels of each instruction set need flags of their own, and an object must be rebuilt when a header it
includes or a flag changes. Each object therefore keeps a depfile (from the compiler) and a record of its command line.

Environment: MIMO_SANITIZE=1 builds with AddressSanitizer and UBSan; MIMO_WERROR=1 makes warnings errors; CC and CXX pick the
compilers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM = platform.machine().lower() in ("aarch64", "arm64")


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", sysconfig.get_config_var("CC") or "cc"))[:1]


def cxx_compiler() -> list[str] | None:
    """What compiles the .cc files, operation bodies of csrc/cuda for the host; None: nothing, and _probe goes without them."""
    command = shlex.split(os.environ.get("CXX", sysconfig.get_config_var("CXX") or "c++"))[:1]
    return command if command and shutil.which(command[0]) else None


def accepts(flag: str) -> bool:
    """Whether the compiler knows the flag: the newest instruction sets are left out where it is too old for them."""
    command = [*compiler(), flag, "-E", "-x", "c", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# A folder that is not listed for this machine is not compiled; cpu/dispatch.c learns of the others by MIMO_HAVE_*.
ISA_FLAGS: dict[str, list[str]] = {}
if X86:
    ISA_FLAGS["cpu/avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    if accepts("-mavxvnni"):
        ISA_FLAGS["cpu/avxvnni"] = ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]
    ISA_FLAGS["cpu/avx512"] = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
if ARM:
    ISA_FLAGS["cpu/neon"] = ["-march=armv8.2-a+dotprod"]
ISA_FOLDERS = ("cpu/avx2", "cpu/avxvnni", "cpu/avx512", "cpu/neon")

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Wpointer-arith"]
C_FLAGS = ["-std=c11", "-Wstrict-prototypes", "-Wmissing-prototypes"]
# Nothing of a C++ library is linked.
CXX_FLAGS = ["-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"]


def sanitize() -> bool:
    return os.environ.get("MIMO_SANITIZE") == "1"


def common_flags() -> list[str]:
    flags = ["-fPIC", "-fvisibility=hidden", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    flags += (
        ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        if sanitize()
        else ["-O3", "-DNDEBUG"]
    )
    flags += WARNINGS + (["-Werror"] if os.environ.get("MIMO_WERROR") == "1" else [])
    flags += [f"-DMIMO_HAVE_{folder.split('/')[1].upper()}=1" for folder in ISA_FLAGS]
    return [*flags, f"-I{CSRC}"]


def python_flags() -> list[str]:
    import numpy

    return [
        "-DPy_LIMITED_API=0x030B0000",
        "-DNPY_NO_DEPRECATED_API=NPY_1_25_API_VERSION",
        "-DNPY_TARGET_VERSION=NPY_1_25_API_VERSION",
        f"-isystem{numpy.get_include()}",
        f"-isystem{sysconfig.get_path('include')}",
        f"-DMIMO_HAVE_HOST_BODIES={int(cxx_compiler() is not None)}",
    ]


def sources() -> dict[str, list[Path]]:
    """The .c files of the core, of _core's own binding and of _probe's; the .cc files are _probe's too."""
    groups: dict[str, list[Path]] = {"core": [], "_core": [], "_probe": []}
    for path in sorted(CSRC.rglob("*.c")):
        room = path.parent.relative_to(CSRC).as_posix()
        if room in ISA_FOLDERS and room not in ISA_FLAGS:
            continue
        if path.name == "probe_cuda.c" or path == CSRC / "cuda/host.c":
            groups["_probe"] += [path] if cxx_compiler() is not None else []
        elif room != "python":
            groups["core"].append(path)
        elif path.name.startswith("probe"):
            groups["_probe"].append(path)
        elif path.name == "module.c":
            groups["_core"].append(path)
        else:  # types, errors, arrays: both modules have them
            groups["core"].append(path)
    if cxx_compiler() is not None:
        groups["_probe"] += sorted(CSRC.rglob("*.cc"))
    return groups


class ObjectCache:
    """Compiles one file, unless its object is newer than all it was made from and was made by the same command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiler = compiler()

    def flags(self, source: Path) -> list[str]:
        room = source.parent.relative_to(CSRC).as_posix()
        flags = common_flags() + (CXX_FLAGS if source.suffix == ".cc" else C_FLAGS) + ISA_FLAGS.get(room, [])
        return flags + python_flags() if room == "python" else flags

    def compile(self, source: Path) -> Path:
        target = self.folder / source.relative_to(CSRC).with_suffix(".o")
        depfile, record = target.with_suffix(".d"), target.with_suffix(".cmd")
        compilers = cxx_compiler() if source.suffix == ".cc" else self.compiler
        command = [*(compilers or []), *self.flags(source), "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
        digest = hashlib.sha256("\0".join(command).encode()).hexdigest()
        if self.is_current(target, depfile, record, digest):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        subprocess.run(command, check=True)
        record.write_text(digest)
        return target

    @staticmethod
    def is_current(target: Path, depfile: Path, record: Path, digest: str) -> bool:
        try:
            if record.read_text() != digest:
                return False
            made = target.stat().st_mtime_ns
            names = depfile.read_text().replace("\\\n", " ").split(":", 1)[1]
            return all(Path(name).stat().st_mtime_ns <= made for name in shlex.split(names))
        except (OSError, IndexError):
            return False


class BuildExtension(build_ext):
    """Compiles the objects once, in parallel, and links each module from its share of them."""

    def build_extensions(self) -> None:
        flavour = "sanitize" if sanitize() else "release"
        cache = ObjectCache(Path(self.build_temp).resolve() / flavour)
        groups = sources()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = {name: list(pool.map(cache.compile, files)) for name, files in groups.items()}
        for extension in self.extensions:
            name = extension.name.rsplit(".", 1)[1]
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            link = [*cache.compiler, "-shared", "-pthread", *(["-fsanitize=address,undefined"] if sanitize() else [])]
            subprocess.run([*link, *map(str, objects["core"] + objects[name]), "-o", str(target), "-lm"], check=True)


class StableAbiWheel(bdist_wheel):
    """Tags the wheel cp311-abi3: both modules keep to the limited API of Python 3.11."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, plat = super().get_tag()
        return "cp311", "abi3", plat


def extension(name: str) -> Extension:
    files = [path.relative_to(ROOT).as_posix() for path in CSRC.rglob("*") if path.suffix in (".c", ".h", ".def", ".cc")]
    return Extension(f"mimo_ultraspeed.{name}", sources=[f for f in files if f.endswith(".c")], depends=files, py_limited_api=True)


setup(
    ext_modules=[extension("_core"), extension("_probe")],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": StableAbiWheel},
)
