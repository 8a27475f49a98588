"""Builds the two extension modules from one set of objects, and the kernels of a GPU beside them.

Why not plain setuptools: kernels of each instruction set need flags of their own, and an object must be rebuilt when a header it
includes or a flag changes. Each object therefore keeps a depfile (from the compiler) and a record of its command line.

CUDA: every .cu under csrc/cuda becomes mimo_ultraspeed/_cuda/<name>.fatbin, machine code that the core gives the driver
(libcuda.so.1, which is opened when a model asks for device="cuda"). Nothing is linked to CUDA, so the package imports anywhere;
_cuda/build.json says what was built, or why nothing was.

Environment: MIMO_SANITIZE=1 builds with AddressSanitizer and UBSan; MIMO_WERROR=1 makes warnings errors; CC and CXX pick the
compilers; MIMO_CUDA=0 leaves CUDA out, 1 fails without it, auto (the default) builds it where nvcc is found; CUDA_HOME is where to
look for nvcc first; MIMO_CUDA_ARCH is a list such as "sm_90a,sm_100a" (the default: sm_90a).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import warnings
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
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Nothing of a C++ library is linked. Where the CPU has no fused multiply-add, _probe leaves these files' functions out.
CXX_FLAGS = ["-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", *(["-mavx2", "-mfma"] if X86 else [])]


def sanitize() -> bool:
    return os.environ.get("MIMO_SANITIZE") == "1"


def common_flags() -> list[str]:
    flags = ["-fPIC", "-fvisibility=hidden", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-O1", "-g1", "-fno-var-tracking", "-fno-omit-frame-pointer", *SANITIZERS] if sanitize() else ["-O3", "-DNDEBUG"]
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


# Tests of csrc/cuda without a GPU, which stand on .cc files.
NEED_CXX = (
    "python/probe_bodies.c",
    "python/probe_device.c",
    "python/probe_machine.c",
    "cuda/host.c",
    "cuda/host_machine.c",
    "cuda/fake.c",
    "cuda/fake_library.c",
    "cuda/fake_work.c",
    "cuda/trace.c",
)


def sources() -> dict[str, list[Path]]:
    """The .c files of the core, of _core's own binding and of _probe's; the .cc files are _probe's too."""
    groups: dict[str, list[Path]] = {"core": [], "_core": [], "_probe": []}
    for path in sorted(CSRC.rglob("*.c")):
        room = path.parent.relative_to(CSRC).as_posix()
        if room in ISA_FOLDERS and room not in ISA_FLAGS:
            continue
        if path.relative_to(CSRC).as_posix() in NEED_CXX:
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


# ---- CUDA ----


def nvcc_candidates() -> list[Path]:
    """Where nvcc may be: the toolkit the user names, the PATH's, the system's, then the nvidia-cuda-nvcc wheel of this environment
    (an isolated build does not import from it, but knows where it is)."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = [home / "bin/nvcc" for home in homes]
    on_path = shutil.which("nvcc")
    if on_path is not None:
        found.append(Path(on_path))
    found.append(Path("/usr/local/cuda/bin/nvcc"))
    for key in ("purelib", "platlib"):
        site = Path(sysconfig.get_path(key))
        found += sorted(site.glob("nvidia/cu*/bin/nvcc"), reverse=True) or [site / "nvidia/cu13/bin/nvcc"]
    return list(dict.fromkeys(found))


def cuda_wanted() -> str:
    wanted = os.environ.get("MIMO_CUDA", "auto") or "auto"
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"MIMO_CUDA: expected 0, 1 or auto, found {wanted!r}")
    return wanted


def cuda_archs() -> list[str]:
    archs = (os.environ.get("MIMO_CUDA_ARCH") or "sm_90a").replace(" ", "").split(",")
    for arch in archs:
        if not re.fullmatch(r"sm_\d+[af]?", arch):
            raise SystemExit(f"MIMO_CUDA_ARCH: expected a list such as sm_90a,sm_100a, found {arch!r}")
    return archs


class CudaBuild:
    """Compiles csrc/cuda/**/*.cu, each into one file of machine code: for the chosen architectures, of which its folder (sm90) may
    need later ones."""

    def __init__(self, folder: Path, nvcc: Path) -> None:
        self.folder = folder
        self.nvcc = nvcc
        told = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
        match = re.search(r"release [\d.]+, V([\d.]+)", told)
        self.version = match[1] if match else "unknown"

    @staticmethod
    def archs(source: Path) -> list[str]:
        least = re.fullmatch(r"sm(\d+)", source.parent.name)
        return [arch for arch in cuda_archs() if least is None or int(re.sub(r"\D", "", arch)) >= int(least[1])]

    def flags(self, archs: list[str]) -> list[str]:
        flags = ["-std=c++17", "-O3", f"-I{CSRC}", "-DNDEBUG"]
        for arch in archs:
            flags += ["-gencode", f"arch={arch.replace('sm_', 'compute_')},code={arch}"]
        # A float operation is what is written, as on the CPU: contraction is off, division and square root round correctly.
        flags += [
            "--fmad=false",
            "--prec-div=true",
            "--prec-sqrt=true",
            "--ftz=false",
            "-Xcompiler",
            "-Wall,-Wextra",
            "-Xptxas",
            "-v",
        ]
        return flags + (["-Werror", "all-warnings"] if os.environ.get("MIMO_WERROR") == "1" else [])

    def compile(self, source: Path) -> Path:
        """The .fatbin; what ptxas said of registers and memory is beside it (.ptxas)."""
        target = self.folder / f"{source.stem}.fatbin"
        depfile, record, log = (target.with_suffix(suffix) for suffix in (".d", ".cmd", ".ptxas"))
        command = [
            str(self.nvcc),
            "-fatbin",
            *self.flags(self.archs(source)),
            "-MMD",
            "-MF",
            str(depfile),
            str(source),
            "-o",
            str(target),
        ]
        digest = hashlib.sha256("\0".join([*command, self.version]).encode()).hexdigest()
        if ObjectCache.is_current(target, depfile, record, digest):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{source.relative_to(ROOT)}: nvcc ended with status {done.returncode}:\n{done.stdout}")
        log.write_text(done.stdout)
        record.write_text(digest)
        return target


def build_cuda(folder: Path, destination: Path) -> None:
    """Writes destination/*.fatbin and build.json, which says what was built: {built, reason, nvcc, version, archs}."""
    wanted = cuda_wanted()
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    told: dict[str, object] = {"built": False}
    candidates = nvcc_candidates()
    nvcc = next((path for path in candidates if os.access(path, os.X_OK)), None)
    if wanted == "0":
        told["reason"] = "left out by MIMO_CUDA=0 when the package was built"
    elif nvcc is None:
        tried = ", ".join(map(str, candidates))
        told["reason"] = (
            f"no nvcc when the package was built (tried {tried}); install a CUDA toolkit or `pip install nvidia-cuda-nvcc`"
        )
    else:
        try:
            build = CudaBuild(folder, nvcc)
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                for path in pool.map(
                    build.compile, [source for source in sorted((CSRC / "cuda").rglob("*.cu")) if build.archs(source)]
                ):
                    shutil.copy2(path, destination / path.name)
            told |= {"built": True, "nvcc": str(nvcc), "version": build.version, "archs": cuda_archs()}
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            if wanted == "1" or os.environ.get("MIMO_WERROR") == "1":
                raise
            warnings.warn(f"CUDA kernels were not built, the package has CPU kernels only: {error}", stacklevel=1)
            told["reason"] = f"its kernels did not compile when the package was built: {str(error).splitlines()[0]}"
    if wanted == "1" and not told["built"]:
        raise SystemExit(f"MIMO_CUDA=1: {told['reason']}")
    (destination / "build.json").write_text(json.dumps(told, indent=1) + "\n")


class BuildExtension(build_ext):
    """Compiles the objects once, in parallel, and links each module from its share of them."""

    def build_extensions(self) -> None:
        # An editable install would get a fresh folder each time, and compile everything again.
        temp = ROOT / "build/temp" if self.editable_mode else Path(self.build_temp).resolve()
        cache = ObjectCache(temp / ("sanitize" if sanitize() else "release"))
        groups = sources()
        first = Path(self.get_ext_fullpath(self.extensions[0].name))
        build_cuda(temp / "cuda", first.parent / "_cuda")
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = {name: list(pool.map(cache.compile, files)) for name, files in groups.items()}
        for extension in self.extensions:
            name = extension.name.rsplit(".", 1)[1]
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            link = [*cache.compiler, "-shared", "-pthread", *(["-fsanitize=address,undefined"] if sanitize() else [])]
            subprocess.run([*link, *map(str, objects["core"] + objects[name]), "-o", str(target), "-lm", "-ldl"], check=True)

    def copy_extensions_to_source(self) -> None:
        """For --inplace and editable installs: what lies beside the modules goes with them."""
        super().copy_extensions_to_source()
        here = ROOT / "mimo_ultraspeed/_cuda"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(Path(self.build_lib).resolve() / "mimo_ultraspeed/_cuda", here)


class StableAbiWheel(bdist_wheel):
    """Tags the wheel cp311-abi3: both modules keep to the limited API of Python 3.11."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, plat = super().get_tag()
        return "cp311", "abi3", plat


def extension(name: str) -> Extension:
    files = [path.relative_to(ROOT).as_posix() for path in CSRC.rglob("*") if path.suffix in (".c", ".h", ".def", ".cc", ".cu")]
    return Extension(f"mimo_ultraspeed.{name}", sources=[f for f in files if f.endswith(".c")], depends=files, py_limited_api=True)


setup(
    ext_modules=[extension("_core"), extension("_probe")],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": StableAbiWheel},
)
