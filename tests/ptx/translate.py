"""From PTX, as nvcc writes it, to C that machine.h runs: translate(text) -> C.

A function of the PTX becomes one of C, a register a variable of its width that holds bits, a label a label. Only instructions that
nvcc has been seen to write for this project's kernels are known: another one is an error that names it. Semantics are those of the
PTX ISA, version 9.0; rounding is to the nearest even, and denormals are kept, as the project compiles its kernels (--ftz=false).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

__all__ = ["UnknownInstruction", "translate"]

_INT = {"u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t"}
_INT |= {"s8": "int8_t", "s16": "int16_t", "s32": "int32_t", "s64": "int64_t"}
_INT |= {"b8": "uint8_t", "b16": "uint16_t", "b32": "uint32_t", "b64": "uint64_t"}
_FLOAT = {"f32": "float", "f64": "double"}
_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
_SPECIAL = {
    "%tid.x": "t->tid", "%ntid.x": "t->ntid", "%ctaid.x": "t->ctaid", "%nctaid.x": "t->nctaid", "%laneid": "t->lane",
    "%smid": "ptx_sm(t)", "%globaltimer": "ptx_clock(t)",
}  # fmt: skip
_SPACES = {"global": "PTX_GLOBAL", "shared": "PTX_SHARED", "local": "PTX_LOCAL"}
_TOKEN = re.compile(r"//[^\n]*|[^;{}]*?;|[{}]|[^;{}\n]*?:(?=\s)|\.[^\n;{}]*(?=\n)", re.S)
_INTEGER = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)U?$")
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


class UnknownInstruction(NotImplementedError):
    """An instruction, or a form of one, that is not translated."""


def _bytes(kind: str) -> int:
    return _BYTES[kind[1:]]


def _split(text: str) -> list[str]:
    """Operands: split at commas that are in no braces or brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


class _Function:
    """One function: its lines of C, and the registers that they need."""

    def __init__(
        self, name: str, entry: bool, parameters: list[tuple[str, int]], symbols: dict[str, int], numbers: dict[str, int]
    ) -> None:
        self.name, self.entry, self.parameters, self.symbols, self.numbers = name, entry, parameters, symbols, numbers
        self.registers: dict[str, str] = {}
        self.lines: list[str] = []
        self.locals: dict[str, tuple[int, int]] = {}
        self.scopes: list[dict[str, str]] = [{}]
        self.arguments: dict[str, str] = {}
        self.line = 0
        self.scope_number = 0

    # ---- operands ----

    def declare(self, kind: str, names: str) -> None:
        """.reg .b32 %r<12>; or names of an inner scope."""
        c = {"pred": "uint8_t"}.get(kind) or _INT[kind if kind in _INT else "b" + kind[1:]]
        for name in names.split(","):
            name = name.strip()
            many = re.fullmatch(r"(%\w+)<(\d+)>", name)
            if many:
                for i in range(int(many[2])):
                    self.registers[f"{many[1][1:]}{i}"] = c
                continue
            plain = re.sub(r"\W", "", name)
            if len(self.scopes) > 1:
                inner = f"scope{self.scope_number}_{plain}"
                self.scopes[-1][name] = inner
                plain = inner
            self.registers[plain] = c

    def register(self, text: str) -> str | None:
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        plain = text.removeprefix("%")
        return plain if plain in self.registers else None

    def use(self, text: str, kind: str) -> str:
        """An operand as a value of a type; pred: 0 or 1."""
        negated = text.startswith("!")
        name = self.register(text.removeprefix("!"))
        if name is not None:
            if negated:
                return f"!{name}"
            if kind in _FLOAT:
                return f"ptx_{kind}({name})"
            return name if kind == "pred" else f"({_INT[kind]}){name}"
        if text in _SPECIAL:
            return f"({_INT[kind]}){_SPECIAL[text]}"
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return f"ptx_f32(0x{text[2:]}u)" if kind == "f32" else f"0x{text[2:]}u"
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return f"ptx_f64(0x{text[2:]}ull)" if kind == "f64" else f"0x{text[2:]}ull"
        if _INTEGER.match(text):
            value = text.rstrip("U")
            return value if kind == "pred" else f"({_INT[kind]}){value}ll" if kind in _INT else f"({_FLOAT[kind]}){value}"
        if text in self.symbols:
            return f"({_INT[kind]}){self.symbols[text]}u"
        if text in self.locals:
            return f"({_INT[kind]})(uintptr_t){text}"
        for i, (name, _) in enumerate(self.parameters):
            if text == name and self.entry:
                return f"({_INT[kind]})(uintptr_t)t->parameter[{i}]"
        raise UnknownInstruction(f"line {self.line}: operand {text}")

    def put(self, text: str, kind: str, value: str) -> None:
        """Writes a value of a type to a register; _ is nowhere."""
        if text == "_":
            self.emit(f"(void)({value});")
            return
        name = self.register(text)
        if name is None:
            raise UnknownInstruction(f"line {self.line}: destination {text}")
        if kind in _FLOAT:
            self.emit(f"{name} = ptx_b{kind[1:]}({value});")
        else:
            self.emit(f"{name} = {value};" if kind == "pred" else f"{name} = ({_INT[kind]})({value});")

    def address(self, text: str, space: str) -> str:
        """[register+offset], [symbol+offset]."""
        inner = text.strip()[1:-1].strip()
        match = re.fullmatch(r"(.+?)(?:\s*\+\s*(-?\d+))?", inner)
        assert match is not None
        wide = "u32" if space == "shared" else "u64"
        name = self.register(match[1])
        if name is not None and self.registers[name] == "uint64_t":
            wide = "u64"
        return f"{self.use(match[1], wide)} + ({match[2] or 0})"

    def emit(self, line: str) -> None:
        self.lines.append(line)

    def at(self) -> None:
        self.emit(f"t->line = {self.line};")

    # ---- instructions ----

    def instruction(self, text: str, line: int) -> None:
        self.line = line
        text = " ".join(text.split())
        guard = re.match(r"@(!?)(%?\w+) ", text)
        if guard:
            text = text[guard.end() :]
        opcode, _, rest = text.partition(" ")
        operands = _split(rest)
        if guard:
            self.emit(f"if ({self.use(guard[1] + guard[2], 'pred')}) {{")
        base, *modifiers = opcode.split(".")
        method: Callable[[list[str], list[str]], None] | None = getattr(self, f"do_{base}", None)
        if method is None:
            raise UnknownInstruction(f"line {line}: {text}")
        try:
            method(modifiers, operands)
        except (KeyError, ValueError, IndexError, AssertionError) as error:
            raise UnknownInstruction(f"line {line}: {text}") from error
        if guard:
            self.emit("}")

    def only(self, modifiers: list[str], *known: str) -> str:
        """The type, which is last; other modifiers must be known ones."""
        *others, kind = modifiers
        if not set(others) <= set(known):
            raise ValueError(others)
        return kind

    def do_mov(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        if o[0].startswith("{"):  # unpack
            parts = _split(o[0][1:-1])
            bits = _bytes(kind) * 8 // len(parts)
            self.emit(f"{{ const uint64_t whole = {self.use(o[1], kind)};")
            for i, part in enumerate(parts):
                self.put(part, f"b{bits}", f"whole >> {bits * i}")
            self.emit("}")
        elif o[1].startswith("{"):
            parts = _split(o[1][1:-1])
            bits = _bytes(kind) * 8 // len(parts)
            self.put(o[0], kind, " | ".join(f"(uint64_t){self.use(p, f'b{bits}')} << {bits * i}" for i, p in enumerate(parts)))
        else:
            kind = "b" + kind[1:] if kind in _FLOAT else kind  # bits: a NaN keeps its own
            self.put(o[0], kind, self.use(o[1], kind))

    def binary(self, o: list[str], kind: str, expression: str) -> None:
        self.put(o[0], kind, expression.format(a=self.use(o[1], kind), b=self.use(o[2], kind)))

    def arithmetic(self, modifiers: list[str], o: list[str], sign: str) -> None:
        kind = self.only(modifiers, "rn")
        if kind in _FLOAT:
            self.binary(o, kind, f"{{a}} {sign} {{b}}")
        else:  # wraps
            wide = "u" + kind[1:] if kind[1:] == "64" else "u32"
            self.put(o[0], kind, f"{self.use(o[1], wide)} {sign} {self.use(o[2], wide)}")

    def do_add(self, modifiers: list[str], o: list[str]) -> None:
        self.arithmetic(modifiers, o, "+")

    def do_sub(self, modifiers: list[str], o: list[str]) -> None:
        self.arithmetic(modifiers, o, "-")

    def do_mul(self, modifiers: list[str], o: list[str]) -> None:
        kind = modifiers[-1]
        if kind in ("bf16x2", "f16x2"):
            self.only(modifiers, "rn")
            self.put(o[0], "b32", f"ptx_pair('*', {int(kind[0] == 'b')}, {self.use(o[1], 'b32')}, {self.use(o[2], 'b32')}, 0)")
        elif kind in _FLOAT:
            self.arithmetic(modifiers, o, "*")
        elif modifiers[0] == "wide":
            double = f"{kind[0]}{2 * int(kind[1:])}"
            self.put(o[0], double, f"({_INT[double]}){self.use(o[1], kind)} * ({_INT[double]}){self.use(o[2], kind)}")
        elif modifiers[0] == "hi":
            bits = int(kind[1:])
            c = {"u32": "uint64_t", "s32": "int64_t", "u64": "unsigned __int128", "s64": "__int128"}[kind]
            self.put(o[0], kind, f"(({c}){self.use(o[1], kind)} * ({c}){self.use(o[2], kind)}) >> {bits}")
        else:
            self.only(modifiers, "lo")
            self.arithmetic([kind], o, "*")

    def do_mad(self, modifiers: list[str], o: list[str]) -> None:
        kind = modifiers[-1]
        if modifiers[0] == "wide":
            double = f"{kind[0]}{2 * int(kind[1:])}"
            c = _INT[double]
            self.put(o[0], double, f"({c}){self.use(o[1], kind)} * ({c}){self.use(o[2], kind)} + {self.use(o[3], double)}")
            return
        self.only(modifiers, "lo")
        wide = "u64" if kind[1:] == "64" else "u32"
        self.put(o[0], kind, f"{self.use(o[1], wide)} * {self.use(o[2], wide)} + {self.use(o[3], wide)}")

    def do_fma(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers, "rn")
        if kind in ("bf16x2", "f16x2"):
            a, b, c = (self.use(x, "b32") for x in o[1:4])
            self.put(o[0], "b32", f"ptx_pair('f', {int(kind[0] == 'b')}, {a}, {b}, {c})")
            return
        a, b, c = (self.use(x, kind) for x in o[1:4])
        self.put(o[0], kind, f"fma{'f' if kind == 'f32' else ''}({a}, {b}, {c})")

    def do_div(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers, "rn")
        if kind in _FLOAT:
            self.binary(o, kind, "{a} / {b}")
        else:  # by zero: all ones, as the hardware has it for unsigned numbers
            self.binary(o, kind, "({b}) == 0 ? ~(uint64_t)0 : ({a}) / ({b})")

    def do_rem(self, modifiers: list[str], o: list[str]) -> None:
        self.binary(o, self.only(modifiers), "({b}) == 0 ? ({a}) : ({a}) % ({b})")

    def extreme(self, modifiers: list[str], o: list[str], name: str, sign: str) -> None:
        kind = self.only(modifiers)
        self.binary(o, kind, f"ptx_{name}_f32({{a}}, {{b}})" if kind == "f32" else f"{{a}} {sign} {{b}} ? {{a}} : {{b}}")

    def do_min(self, modifiers: list[str], o: list[str]) -> None:
        self.extreme(modifiers, o, "min", "<")

    def do_max(self, modifiers: list[str], o: list[str]) -> None:
        self.extreme(modifiers, o, "max", ">")

    def do_neg(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        self.put(o[0], kind, f"-{self.use(o[1], kind)}")

    def do_abs(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        value = self.use(o[1], kind)
        self.put(o[0], kind, {"f32": f"fabsf({value})", "f64": f"fabs({value})"}.get(kind) or f"{value} < 0 ? -({value}) : {value}")

    def logic(self, modifiers: list[str], o: list[str], sign: str) -> None:
        self.binary(o, self.only(modifiers), f"{{a}} {sign} {{b}}")

    def do_and(self, modifiers: list[str], o: list[str]) -> None:
        self.logic(modifiers, o, "&")

    def do_or(self, modifiers: list[str], o: list[str]) -> None:
        self.logic(modifiers, o, "|")

    def do_xor(self, modifiers: list[str], o: list[str]) -> None:
        self.logic(modifiers, o, "^")

    def do_not(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        self.put(o[0], kind, f"{'!' if kind == 'pred' else '~'}{self.use(o[1], kind)}")

    def do_shl(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        self.put(o[0], kind, f"ptx_shl{64 if kind == 'b64' else 32}({self.use(o[1], kind)}, {self.use(o[2], 'u32')})")

    def do_shr(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        self.put(o[0], kind, f"ptx_shr_{'s' if kind[0] == 's' else 'u'}({self.use(o[1], kind)}, {self.use(o[2], 'u32')})")

    def do_prmt(self, modifiers: list[str], o: list[str]) -> None:
        self.only(modifiers)
        self.put(o[0], "b32", f"ptx_prmt({', '.join(self.use(x, 'b32') for x in o[1:4])})")

    def do_lop3(self, modifiers: list[str], o: list[str]) -> None:
        self.only(modifiers)
        self.put(o[0], "b32", f"ptx_lop3({', '.join(self.use(x, 'b32') for x in o[1:5])})")

    def do_bfi(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        a, b = self.use(o[1], kind), self.use(o[2], kind)
        self.put(o[0], kind, f"ptx_bfi({a}, {b}, {self.use(o[3], 'u32')}, {self.use(o[4], 'u32')}, {kind[1:]})")

    def do_shf(self, modifiers: list[str], o: list[str]) -> None:
        self.only(modifiers, "l", "r", "wrap")
        both = f"((uint64_t){self.use(o[2], 'b32')} << 32 | {self.use(o[1], 'b32')})"
        n = f"({self.use(o[3], 'u32')} & 31)"
        self.put(o[0], "b32", f"{both} << {n} >> 32" if modifiers[0] == "l" else f"{both} >> {n}")

    def do_popc(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        self.put(o[0], "u32", f"__builtin_popcountll({self.use(o[1], kind)})")

    def do_clz(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        a = self.use(o[1], kind)
        self.put(o[0], "u32", f"({a}) == 0 ? {kind[1:]} : __builtin_clzll({a}) - {64 - int(kind[1:])}")

    def do_setp(self, modifiers: list[str], o: list[str]) -> None:
        compare, *join, kind = modifiers
        a, b = self.use(o[1], kind), self.use(o[2], kind)
        if kind in _FLOAT:
            if compare in _COMPARE:
                test = f"{a} {_COMPARE[compare]} {b}"
                test = test if compare != "ne" else f"({test}) && !isnan({a}) && !isnan({b})"
            elif compare in ("num", "nan"):
                test = f"{'!' if compare == 'num' else ''}(isnan({a}) || isnan({b}))"
            else:  # unordered
                test = f"{a} {_COMPARE[compare.removesuffix('u')]} {b} || isnan({a}) || isnan({b})"
        else:
            test = f"{a} {_COMPARE[compare]} {b}"
        if join:
            sign = {"and": "&", "or": "|", "xor": "^"}[join[0]]
            test = f"(({test}) != 0) {sign} {self.use(o[3], 'pred')}"
        if "|" in o[0]:
            raise ValueError(o[0])
        self.put(o[0], "pred", test)

    def do_selp(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        kind = "b" + kind[1:] if kind in _FLOAT else kind
        self.put(o[0], kind, f"{self.use(o[3], 'pred')} ? {self.use(o[1], kind)} : {self.use(o[2], kind)}")

    def do_cvt(self, modifiers: list[str], o: list[str]) -> None:
        *how, to, of = modifiers
        if to in ("bf16x2", "f16x2") and of == "f32":
            assert how == ["rn"]
            name = "ptx_to_bf16" if to[0] == "b" else "ptx_to_f16"
            self.put(o[0], "b32", f"(uint32_t){name}({self.use(o[1], of)}) << 16 | {name}({self.use(o[2], of)})")
        elif to == "e4m3x2" and of == "f32":
            assert how == ["rn", "satfinite"]
            self.put(o[0], "b16", f"(uint32_t)ptx_to_e4m3({self.use(o[1], of)}) << 8 | ptx_to_e4m3({self.use(o[2], of)})")
        elif to == "f16x2" and of == "e4m3x2":
            assert how == ["rn"]
            value = self.use(o[1], "b16")
            high, low = f"(uint8_t)({value} >> 8)", f"(uint8_t)({value})"
            self.put(o[0], "b32", f"(uint32_t)ptx_to_f16(ptx_e4m3({high})) << 16 | ptx_to_f16(ptx_e4m3({low}))")
        elif to in _FLOAT and of in _FLOAT:
            value = self.use(o[1], of)
            if how and how[0] in ("rni", "rzi", "rmi", "rpi"):
                name = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[how[0]] + ("f" if of == "f32" else "")
                assert to == of
                self.put(o[0], to, f"{name}({value})")
            else:
                assert how in ([], ["rn"])
                self.put(o[0], to, f"({_FLOAT[to]}){value}")
        elif to in _FLOAT:
            assert how == ["rn"]
            self.put(o[0], to, f"({_FLOAT[to]}){self.use(o[1], of)}")
        elif of in _FLOAT:
            name = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[how[0]]
            if to == "u64":
                self.put(o[0], to, f"ptx_to_u64({name}({self.use(o[1], of)}))")
                return
            least, most = {"s32": ("-0x1p31", "0x1p31 - 1"), "u32": ("0", "0x1p32 - 1"), "s64": ("-0x1p63", "0x1p63")}[to]
            self.put(o[0], to, f"ptx_clamp({name}({self.use(o[1], of)}), {least}, {most})")
        else:
            assert not how
            self.put(o[0], to, self.use(o[1], of))

    def do_cvta(self, modifiers: list[str], o: list[str]) -> None:
        space = modifiers[-2]
        kind = modifiers[-1]
        value = self.use(o[1], kind)
        if space == "shared":
            value = f"{value} {'-' if 'to' in modifiers else '+'} (uint64_t)(uintptr_t)t->shared"
        elif space not in ("global", "local", "param"):
            raise ValueError(space)
        self.put(o[0], kind, value)

    def do_sqrt(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers, "rn")
        self.put(o[0], kind, f"sqrt{'f' if kind == 'f32' else ''}({self.use(o[1], kind)})")

    def do_ex2(self, modifiers: list[str], o: list[str]) -> None:
        assert modifiers == ["approx", "f32"]
        self.put(o[0], "f32", f"exp2f({self.use(o[1], 'f32')})")

    def do_rcp(self, modifiers: list[str], o: list[str]) -> None:
        kind = modifiers[-1]
        if modifiers == ["approx", "ftz", "f64"]:  # the lower half of the result is zeros
            self.put(o[0], kind, f"ptx_f64(ptx_b64(1.0 / {self.use(o[1], kind)}) & 0xffffffff00000000ull)")
            return
        self.only(modifiers, "rn")
        self.put(o[0], kind, f"1.0f / {self.use(o[1], kind)}" if kind == "f32" else f"1.0 / {self.use(o[1], kind)}")

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
        where = _SPACES.get(space, "PTX_GENERIC")
        if strong:
            return f"ptx_touch_strong(t, {where}, {address}, {size}, {how}, {int(acquire)}, {int(release)})"
        return f"ptx_touch(t, {where}, {address}, {size}, {how})"

    def do_ld(self, modifiers: list[str], o: list[str]) -> None:
        space, count, kind, strong, acquire, _ = self.access(modifiers)
        targets = _split(o[0][1:-1]) if o[0].startswith("{") else [o[0]]
        assert len(targets) == count
        c = _INT.get(kind) or _INT["b" + kind[1:]]
        size = _bytes(kind)
        if space == "param" and self.register(re.split(r"[\[\]+ ]", o[1])[1]) is None:
            source = self.parameter(o[1])
        else:
            self.at()
            source = self.touch(space, self.address(o[1], space), size * count, "PTX_READ", strong, acquire, False)
        self.emit(f"{{ {c} value[{count}]; memcpy(value, {source}, sizeof value);")
        for i, target in enumerate(targets):
            self.put(target, kind if kind in _INT else "b" + kind[1:], f"value[{i}]")
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
        sources = _split(o[1][1:-1]) if o[1].startswith("{") else [o[1]]
        assert len(sources) == count
        bits = kind if kind in _INT else "b" + kind[1:]
        size = _bytes(kind)
        values = ", ".join(self.use(source, bits) for source in sources)
        self.at()
        to = self.touch(space, self.address(o[0], space), size * count, "PTX_WRITE", strong, False, release)
        self.emit(f"{{ const {_INT[bits]} value[{count}] = {{{values}}}; memcpy({to}, value, sizeof value); }}")

    def do_atom(self, modifiers: list[str], o: list[str]) -> None:
        kind = modifiers[-1]
        assert set(modifiers[:-1]) <= {"global", "cas", "add", "exch", "relaxed", "acquire", "release", "acq_rel", "gpu", "sys"}
        acquire, release = bool({"acquire", "acq_rel"} & set(modifiers)), bool({"release", "acq_rel"} & set(modifiers))
        self.at()
        at = self.touch("global", self.address(o[1], "global"), _bytes(kind), "PTX_UPDATE", True, acquire, release)
        c = _INT[kind]
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
        self.emit("ptx_fence(t);")

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
        inner = _split(o[1].strip()[1:-1])
        self.emit(f"ptx_function{self.numbers[o[0]]}(t, {', '.join(self.arguments[name] for name in inner)});")
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
        kinds = {
            "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "b",
            "sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": "h",
            "sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32": "8",
        }
        kind = kinds[".".join(modifiers)]
        d, a, b, c = (_split(x[1:-1]) for x in o)
        names = [self.register(x) for x in d]
        assert all(names) and [len(x) for x in (d, a, b, c)] == [4, 4, 2, 4]
        self.at()
        arrays = (("a", a), ("b", b), ("c", c))
        self.emit("{" + " ".join(f"const uint32_t {n}[] = {{{', '.join(self.use(x, 'b32') for x in of)}}};" for n, of in arrays))
        self.emit(f"uint32_t *d[] = {{{', '.join(f'&{name}' for name in names)}}}; ptx_mma(t, '{kind}', d, a, b, c); }}")

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


def label(text: str) -> str:
    return "L" + re.sub(r"\W", "_", text)


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
        found.append((name, int(count) if count else _bytes(kind)))
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


def translate(text: str) -> str:
    """C of all functions of a file of PTX, and its table of kernels (machine.h). Static shared memory comes first, then what a
    launch adds. UnknownInstruction for what is not known."""
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
