"""A function of the PTX on its way to C: its operands as expressions, and what instructions have in common."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["COMPARE", "FLOAT", "INT", "SPACES", "Function", "UnknownInstruction", "bytes_of", "label", "split"]

INT = {"u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t"}
INT |= {"s8": "int8_t", "s16": "int16_t", "s32": "int32_t", "s64": "int64_t"}
INT |= {"b8": "uint8_t", "b16": "uint16_t", "b32": "uint32_t", "b64": "uint64_t"}
FLOAT = {"f32": "float", "f64": "double"}
BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
SPECIAL = {
    "%tid.x": "t->tid", "%ntid.x": "t->ntid", "%ctaid.x": "t->ctaid", "%nctaid.x": "t->nctaid", "%laneid": "t->lane",
    "%smid": "ptx_sm(t)", "%globaltimer": "ptx_clock(t)",
}  # fmt: skip
SPACES = {"global": "PTX_GLOBAL", "shared": "PTX_SHARED", "local": "PTX_LOCAL"}
INTEGER = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)U?$")
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


class UnknownInstruction(NotImplementedError):
    """An instruction, or a form of one, that is not translated."""


def bytes_of(kind: str) -> int:
    return BYTES[kind[1:]]


def split(text: str) -> list[str]:
    """Operands: split at commas that are in no braces or brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


class Function:
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
        self.counted = False

    # ---- operands ----

    def declare(self, kind: str, names: str) -> None:
        """.reg .b32 %r<12>; or names of an inner scope."""
        c = {"pred": "uint8_t"}.get(kind) or INT[kind if kind in INT else "b" + kind[1:]]
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
            if kind in FLOAT:
                return f"ptx_{kind}({name})"
            return name if kind == "pred" else f"({INT[kind]}){name}"
        if text in SPECIAL:
            return f"({INT[kind]}){SPECIAL[text]}"
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return f"ptx_f32(0x{text[2:]}u)" if kind == "f32" else f"0x{text[2:]}u"
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return f"ptx_f64(0x{text[2:]}ull)" if kind == "f64" else f"0x{text[2:]}ull"
        if INTEGER.match(text):
            value = text.rstrip("U")
            return value if kind == "pred" else f"({INT[kind]}){value}ll" if kind in INT else f"({FLOAT[kind]}){value}"
        if text in self.symbols:
            return f"({INT[kind]}){self.symbols[text]}u"
        if text in self.locals:
            return f"({INT[kind]})(uintptr_t){text}"
        for i, (name, _) in enumerate(self.parameters):
            if text == name and self.entry:
                return f"({INT[kind]})(uintptr_t)t->parameter[{i}]"
        raise UnknownInstruction(f"line {self.line}: operand {text}")

    def put(self, text: str, kind: str, value: str) -> None:
        """Writes a value of a type to a register; _ is nowhere."""
        if text == "_":
            self.emit(f"(void)({value});")
            return
        name = self.register(text)
        if name is None:
            raise UnknownInstruction(f"line {self.line}: destination {text}")
        if kind in FLOAT:
            self.emit(f"{name} = ptx_b{kind[1:]}({value});")
        else:
            self.emit(f"{name} = {value};" if kind == "pred" else f"{name} = ({INT[kind]})({value});")

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
        if self.counted and not re.match(r"(@\S+ )?mov\.", text):
            self.emit("ptx_executed++;")
        guard = re.match(r"@(!?)(%?\w+) ", text)
        if guard:
            text = text[guard.end() :]
        opcode, _, rest = text.partition(" ")
        operands = split(rest)
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


def label(text: str) -> str:
    return "L" + re.sub(r"\W", "_", text)
