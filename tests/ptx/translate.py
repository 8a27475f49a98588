"""From PTX, as nvcc writes it, to C that machine.h runs: translate(text) -> C.

A function of the PTX becomes one of C, a register a variable of its width that holds bits, a label a label. Only instructions that
nvcc has been seen to write for this project's kernels are known: another one is an error that names it. Semantics are those of the
PTX ISA, version 9.0; rounding is to the nearest even, and denormals are kept, as the project compiles its kernels (--ftz=false).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .arithmetic import Arithmetic
from .function import INT, SPACES, UnknownInstruction, bytes_of, label, split

__all__ = ["UnknownInstruction", "translate"]

TOKEN = re.compile(r"//[^\n]*|[^;{}]*?;|[{}]|[^;{}\n]*?:(?=\s)|\.[^\n;{}]*(?=\n)", re.S)


class _Function(Arithmetic):
    """With instructions on memory, of control, and of threads together."""

    # ---- memory ----

    def access(self, modifiers: list[str]) -> tuple[str, int, str, bool, bool, bool]:
        """Space, elements, type, strong, acquire, release."""
        *how, kind = modifiers
        space, count, strong, acquire, release = "generic", 1, False, False, False
        for m in how:
            if m in ("global", "shared", "local", "param"):
                space = m
            elif m in ("shared::cta",):
                space = "shared"
            elif m in ("v2", "v4"):
                count = int(m[1])
            elif m in ("volatile", "relaxed", "acquire", "release"):
                strong, acquire, release = True, m == "acquire", m == "release"
            elif m not in ("gpu", "sys", "cta", "nc"):
                raise ValueError(m)
        return space, count, kind, strong, acquire, release

    def touch(self, space: str, address: str, size: int, how: str, strong: bool, acquire: bool, release: bool) -> str:
        where = SPACES.get(space, "PTX_GENERIC")
        if strong:
            return f"ptx_touch_strong(t, {where}, {address}, {size}, {how}, {int(acquire)}, {int(release)})"
        return f"ptx_touch(t, {where}, {address}, {size}, {how})"

    def do_ld(self, modifiers: list[str], o: list[str]) -> None:
        space, count, kind, strong, acquire, _ = self.access(modifiers)
        targets = split(o[0][1:-1]) if o[0].startswith("{") else [o[0]]
        assert len(targets) == count
        c = INT.get(kind) or INT["b" + kind[1:]]
        size = bytes_of(kind)
        if space == "param" and self.register(re.split(r"[\[\]+ ]", o[1])[1]) is None:
            source = self.parameter(o[1])
        else:
            self.at()
            source = self.touch(space, self.address(o[1], space), size * count, "PTX_READ", strong, acquire, False)
        self.emit(f"{{ {c} value[{count}]; memcpy(value, {source}, sizeof value);")
        for i, target in enumerate(targets):
            self.put(target, kind if kind in INT else "b" + kind[1:], f"value[{i}]")
        self.emit("}")

    def parameter(self, text: str) -> str:
        match = re.fullmatch(r"\[(\w+)(?:\+(\d+))?\]", text.replace(" ", ""))
        assert match is not None
        for i, (name, _) in enumerate(self.parameters):
            if name == match[1]:
                return f"{f't->parameter[{i}]' if self.entry else f'(const uint8_t *)&parameter{i}'} + {match[2] or 0}"
        raise ValueError(text)

    def do_st(self, modifiers: list[str], o: list[str]) -> None:
        space, count, kind, strong, _, release = self.access(modifiers)
        if space == "param":  # of a call
            name = re.fullmatch(r"\[(\w+)(?:\+0)?\]", o[0].replace(" ", ""))
            assert name is not None
            self.arguments[name[1]] = self.use(o[1], kind)
            return
        sources = split(o[1][1:-1]) if o[1].startswith("{") else [o[1]]
        assert len(sources) == count
        bits = kind if kind in INT else "b" + kind[1:]
        size = bytes_of(kind)
        values = ", ".join(self.use(source, bits) for source in sources)
        self.at()
        to = self.touch(space, self.address(o[0], space), size * count, "PTX_WRITE", strong, False, release)
        self.emit(f"{{ const {INT[bits]} value[{count}] = {{{values}}}; memcpy({to}, value, sizeof value); }}")

    def do_atom(self, modifiers: list[str], o: list[str]) -> None:
        kind = modifiers[-1]
        assert set(modifiers[:-1]) <= {"global", "cas", "add", "exch", "relaxed", "acquire", "release", "acq_rel", "gpu", "sys"}
        acquire, release = bool({"acquire", "acq_rel"} & set(modifiers)), bool({"release", "acq_rel"} & set(modifiers))
        self.at()
        at = self.touch("global", self.address(o[1], "global"), bytes_of(kind), "PTX_UPDATE", True, acquire, release)
        c = INT[kind]
        self.emit(f"{{ {c} old, new; uint8_t *at = {at}; memcpy(&old, at, sizeof old);")
        if "cas" in modifiers:
            self.emit(f"new = old == {self.use(o[2], kind)} ? {self.use(o[3], kind)} : old;")
        else:
            self.emit(f"new = {'old + ' if 'add' in modifiers else ''}{self.use(o[2], kind)};")
        self.emit("memcpy(at, &new, sizeof new);")
        self.put(o[0], kind, "old")
        self.emit("}")

    def do_red(self, modifiers: list[str], o: list[str]) -> None:
        assert "add" in modifiers
        self.do_atom(modifiers, ["_", *o])

    def do_membar(self, modifiers: list[str], o: list[str]) -> None:
        assert modifiers in (["gl"], ["sys"], ["cta"]) and not o
        self.emit("ptx_fence(t);")

    def do_fence(self, modifiers: list[str], o: list[str]) -> None:
        known = "mbarrier_init release cluster proxy async acq_rel gpu sys sc cta global shared::cta"
        assert set(modifiers) <= set(known.split())
        self.emit("ptx_proxy_fence(t);" if "proxy" in modifiers else "ptx_fence(t);")

    # ---- control ----

    def do_bra(self, modifiers: list[str], o: list[str]) -> None:
        self.only([*modifiers, ""], "uni")
        self.emit(f"goto {label(o[0])};")

    def do_ret(self, modifiers: list[str], o: list[str]) -> None:
        assert not modifiers and not o
        self.emit("return;")

    do_exit = do_ret

    def do_call(self, modifiers: list[str], o: list[str]) -> None:
        self.only([*modifiers, ""], "uni")
        assert len(o) == 2
        inner = o[1].strip()[1:-1].strip()
        arguments = [self.arguments[name] for name in split(inner)] if inner else []
        self.emit(f"ptx_function{self.numbers[o[0]]}({', '.join(['t', *arguments])});")
        self.arguments = {}

    def do_bar(self, modifiers: list[str], o: list[str]) -> None:
        self.at()
        if modifiers == ["warp", "sync"]:
            self.emit(f"ptx_warp_sync(t, {self.use(o[0], 'u32')});")
            return
        if modifiers[0] == "red":
            threads = self.use(o[2], "u32") if len(o) == 4 else 0
            found = f"ptx_bar(t, '{modifiers[1][0]}', {self.use(o[1], 'u32')}, {threads}, {self.use(o[-1], 'pred')})"
            self.put(o[0], modifiers[2], found)
            return
        assert modifiers == ["sync"]
        self.emit(f"ptx_bar(t, 's', {self.use(o[0], 'u32')}, {self.use(o[1], 'u32') if len(o) > 1 else 0}, 0);")

    def do_barrier(self, modifiers: list[str], o: list[str]) -> None:
        self.do_bar([name for name in modifiers if name not in ("cta", "aligned")], o)

    def do_shfl(self, modifiers: list[str], o: list[str]) -> None:
        assert modifiers[0] == "sync" and modifiers[2] == "b32"
        target, _, valid = o[0].partition("|")
        a, b, c, mask = (self.use(x, "u32") for x in o[1:5])
        self.at()
        self.emit("{ uint8_t valid;")
        self.put(target, "b32", f"ptx_shfl(t, '{modifiers[1][0]}', {a}, {b}, {c}, {mask}, &valid)")
        if valid:
            self.put(valid, "pred", "valid")
        self.emit("}")

    def do_redux(self, modifiers: list[str], o: list[str]) -> None:
        assert modifiers in (["sync", "add", "u32"], ["sync", "max", "u32"]) or modifiers == ["sync", "add", "s32"], modifiers
        self.at()
        value, mask = self.use(o[1], "u32"), self.use(o[2], "u32")
        self.put(o[0], "b32", f"ptx_redux(t, {mask}, {value}, {int(modifiers[1] == 'max')})")

    def do_vote(self, modifiers: list[str], o: list[str]) -> None:
        assert modifiers[0] == "sync"
        self.at()
        mask = self.use(o[2], "u32")
        ballot = f"ptx_vote(t, {mask}, {self.use(o[1], 'pred')})"
        match modifiers[1:]:
            case ["ballot", "b32"]:
                self.put(o[0], "b32", ballot)
            case ["any", "pred"]:
                self.put(o[0], "pred", f"{ballot} != 0")
            case ["all", "pred"]:
                self.put(o[0], "pred", f"{ballot} == {mask}")
            case _:
                raise ValueError(modifiers)

    def do_movmatrix(self, modifiers: list[str], o: list[str]) -> None:
        assert modifiers == ["sync", "aligned", "m8n8", "trans", "b16"]
        self.at()
        self.put(o[0], "b32", f"ptx_movmatrix(t, {self.use(o[1], 'b32')})")

    def do_mma(self, modifiers: list[str], o: list[str]) -> None:
        assert ".".join(modifiers) == "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
        d, a, b, c = (split(x[1:-1]) for x in o)
        names = [self.register(x) for x in d]
        assert all(names) and [len(x) for x in (d, a, b, c)] == [4, 4, 2, 4]
        self.at()
        arrays = (("a", a), ("b", b), ("c", c))
        self.emit("{" + " ".join(f"const uint32_t {n}[] = {{{', '.join(self.use(x, 'b32') for x in of)}}};" for n, of in arrays))
        self.emit(f"uint32_t *d[] = {{{', '.join(f'&{name}' for name in names)}}}; ptx_mma(t, d, a, b, c); }}")

    def do_wgmma(self, modifiers: list[str], o: list[str]) -> None:
        what, *how = modifiers
        assert how[:2] == ["sync", "aligned"]
        self.at()
        match what, o:
            case "fence", []:
                self.emit("ptx_wgmma_fence(t);")
            case "commit_group", []:
                self.emit("ptx_wgmma_commit(t);")
            case "wait_group", [pending]:
                self.emit(f"ptx_wgmma_wait(t, {self.use(pending, 'u32')});")
            case "mma_async", [d, a, b, "1", "1", "1"] if how[2:] == ["m64n32k32", "f32", "e4m3", "e4m3"]:
                names = [[self.register(x) for x in split(of[1:-1])] for of in (d, a)]
                assert [len(x) for x in names] == [16, 4] and all(map(all, names))
                d, a = (", ".join(f"&{name}" for name in of) for of in names)
                self.emit(
                    f"{{ uint32_t *d[] = {{{d}}}; const uint32_t *a[] = {{{a}}}; ptx_wgmma(t, d, a, {self.use(b, 'b64')}); }}"
                )
            case _:
                raise ValueError(modifiers)

    def do_setmaxnreg(self, modifiers: list[str], o: list[str]) -> None:
        assert modifiers[1:] == ["sync", "aligned", "u32"]
        self.at()
        self.emit(f"ptx_setmaxnreg(t, {int(modifiers[0] == 'inc')}, {self.use(o[0], 'u32')});")

    def do_mbarrier(self, modifiers: list[str], o: list[str]) -> None:
        self.at()
        match modifiers:
            case ["init", "shared::cta", "b64"]:
                self.emit(f"ptx_mbarrier_init(t, {self.address(o[0], 'shared')}, {self.use(o[1], 'u32')});")
            case ["arrive", "shared::cta", "b64"] if o[0] == "_":
                self.emit(f"ptx_mbarrier_arrive(t, {self.address(o[1], 'shared')}, 0);")
            case ["arrive", "expect_tx", "shared::cta", "b64"] if o[0] == "_":
                self.emit(f"ptx_mbarrier_arrive(t, {self.address(o[1], 'shared')}, {self.use(o[2], 'u32')});")
            case ["try_wait", "parity", "shared::cta", "b64"]:
                self.put(o[0], "pred", f"ptx_mbarrier_try_wait(t, {self.address(o[1], 'shared')}, {self.use(o[2], 'u32')})")
            case _:
                raise ValueError(modifiers)

    def do_cp(self, modifiers: list[str], o: list[str]) -> None:
        self.at()
        match modifiers:
            case ["async", "cg", "shared", "global"]:
                to, of = self.address(o[0], "shared"), self.address(o[1], "global")
                self.emit(f"ptx_copy(t, {to}, {of}, {self.use(o[2], 'u32')});")
            case ["async", "wait_all"]:
                self.emit("ptx_copy_wait(t);")
            case ["async", "bulk", "prefetch", "L2", "global"]:
                self.emit(f"ptx_bulk_prefetch(t, {self.address(o[0], 'global')}, {self.use(o[1], 'u32')});")
            case ["async", "bulk", "shared::cluster", "global", "mbarrier::complete_tx::bytes"]:
                to, of, barrier = self.address(o[0], "shared"), self.address(o[1], "global"), self.address(o[3], "shared")
                self.emit(f"ptx_bulk_copy(t, {to}, {of}, {self.use(o[2], 'u32')}, {barrier});")
            case _:
                raise ValueError(modifiers)

    # ---- the whole ----

    def text(self) -> Iterator[str]:
        kinds: dict[str, list[str]] = {}
        for name, c in self.registers.items():
            kinds.setdefault(c, []).append(name)
        number = self.numbers[self.name]
        arguments = "" if self.entry else "".join(f", uint{8 * size}_t parameter{i}" for i, (_, size) in enumerate(self.parameters))
        yield f"/* {self.name} */"
        yield f"static void ptx_function{number}(ptx_thread *t{arguments})"
        yield "{"
        for c, names in kinds.items():
            yield f"{c} {', '.join(names)};"
        for name, (align, size) in self.locals.items():
            yield f"_Alignas({align}) uint8_t {name}[{size}];"
        yield from self.lines
        yield "}"


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, statement): a statement that ends in ;, a label with its :, a brace, or a line that begins with a dot and ends without
    a semicolon."""
    line, at = 1, 0
    while at < len(text):
        match = re.compile(r"\s+|//[^\n]*").match(text, at)
        if match:
            line += match[0].count("\n")
            at = match.end()
            continue
        c = text[at]
        if c in "{}":
            yield line, c
            at += 1
            continue
        match = re.compile(r"[$\w]+:").match(text, at)
        if match:
            yield line, match[0]
            at = match.end()
            continue
        if c == "." and not text.startswith((".reg", ".param", ".local", ".extern", ".shared", ".global", ".const", ".pragma"), at):
            end = text.find("\n", at)
            if text.startswith((".func", ".visible", ".entry", ".weak"), at):  # up to its body, or its semicolon
                end = min(x for x in (text.find("\n{", at), text.find(";", at)) if x >= 0)
            yield line, text[at:end]
        else:
            end = text.index(";", at) + 1
            yield line, text[at:end]
        line += text.count("\n", at, end)
        at = end


def _parameters(header: str) -> list[tuple[str, int]]:
    found = []
    for align, kind, name, count in re.findall(r"\.param(?: \.align (\d+))? \.(\w+)\s+(\w+)(?:\[(\d+)\])?", header):
        found.append((name, int(count) if count else bytes_of(kind)))
        del align
    return found


def _shared(text: str) -> tuple[dict[str, int], int]:
    """Where each shared variable of a file begins, and the bytes of the static ones, after which dynamic ones begin."""
    symbols: dict[str, int] = {}
    found = re.findall(r"^\s*(\.extern )?\.shared \.align (\d+) \.\w+ (\w+)(?:\[(\d*)\])?;", text, re.M)
    static = 0
    for _, align, name, size in (shared for shared in found if not shared[0]):
        symbols[name] = -(-static // int(align)) * int(align)
        static = symbols[name] + int(size or 8)
    static = -(-static // 128) * 128
    return symbols | {name: static for is_extern, _, name, _ in found if is_extern}, static


def translate(text: str, counted: bool = False) -> str:
    """C of all functions of a file of PTX, and its table of kernels (machine.h). Static shared memory comes first, then what a
    launch adds. counted: instructions but moves count themselves. UnknownInstruction for what is not known."""
    symbols, static = _shared(text)
    functions: list[_Function] = []
    numbers: dict[str, int] = {}
    most: dict[str, int] = {}
    current: _Function | None = None
    header = ""
    depth = 0
    for line, statement in _statements(text):
        if current is None:
            if statement.startswith((".func", ".visible", ".entry", ".weak")):
                header = statement
                maxntid = re.search(r"\.maxntid (\d+)", statement)
                name = re.search(r"\.(?:func|entry)\s+(\w+)", statement)
                assert name is not None
                most[name[1]] = int(maxntid[1]) if maxntid else 1024
            elif statement == "{":
                name = re.search(r"\.(func|entry)\s+(\w+)", header)
                assert name is not None
                numbers[name[2]] = len(numbers)
                current = _Function(name[2], name[1] == "entry", _parameters(header), symbols, numbers)
                current.counted = counted
                functions.append(current)
                depth = 1
            continue
        if statement == "{":
            depth += 1
            current.scope_number += 1
            current.scopes.append({})
        elif statement == "}":
            depth -= 1
            current.scopes.pop()
            if depth == 0:
                current = None
        elif statement.endswith(":"):
            current.emit(f"{label(statement[:-1])}:;")
        elif match := re.match(r"\.reg \.(\w+)\s+([^;]+);", statement):
            current.declare(match[1], match[2])
        elif match := re.match(r"\.local \.align (\d+) \.b8\s+(\w+)\[(\d+)\];", statement):
            current.locals[match[2]] = (int(match[1]), int(match[3]))
        elif not statement.startswith((".param", ".pragma", ".loc", ".shared")):
            current.instruction(statement[:-1], line)
    return "\n".join(_file(functions, numbers, most, static)) + "\n"


def _file(functions: list[_Function], numbers: dict[str, int], most: dict[str, int], static: int) -> Iterator[str]:
    yield '#include "machine.h"\n'
    for function in functions:
        yield from function.text()
    entries = [function for function in functions if function.entry]
    for function in entries:
        sizes = ", ".join(str(size) for _, size in function.parameters)
        yield f"static const uint32_t bytes{numbers[function.name]}[] = {{{sizes}}};"
    yield "const ptx_kernel ptx_kernels[] = {"
    for function in entries:
        n = numbers[function.name]
        yield f'{{"{function.name}", ptx_function{n}, {len(function.parameters)}, bytes{n}, {static}, {most[function.name]}}},'
    yield "};"
    yield f"const uint32_t ptx_kernel_count = {len(entries)};"
