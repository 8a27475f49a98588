"""Instructions that work out values, as C."""

from __future__ import annotations

from .function import COMPARE, FLOAT, INT, Function, bytes_of, split

__all__ = ["Arithmetic"]


class Arithmetic(Function):
    """Moves, arithmetic, comparisons, conversions."""

    def do_mov(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        if o[0].startswith("{"):  # unpack
            parts = split(o[0][1:-1])
            bits = bytes_of(kind) * 8 // len(parts)
            self.emit(f"{{ const uint64_t whole = {self.use(o[1], kind)};")
            for i, part in enumerate(parts):
                self.put(part, f"b{bits}", f"whole >> {bits * i}")
            self.emit("}")
        elif o[1].startswith("{"):
            parts = split(o[1][1:-1])
            bits = bytes_of(kind) * 8 // len(parts)
            self.put(o[0], kind, " | ".join(f"(uint64_t){self.use(p, f'b{bits}')} << {bits * i}" for i, p in enumerate(parts)))
        else:
            kind = "b" + kind[1:] if kind in FLOAT else kind  # bits: a NaN keeps its own
            self.put(o[0], kind, self.use(o[1], kind))

    def binary(self, o: list[str], kind: str, expression: str) -> None:
        self.put(o[0], kind, expression.format(a=self.use(o[1], kind), b=self.use(o[2], kind)))

    def arithmetic(self, modifiers: list[str], o: list[str], sign: str) -> None:
        kind = self.only(modifiers, "rn")
        if kind in FLOAT:
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
        if kind == "bf16x2":
            self.only(modifiers, "rn")
            self.put(o[0], "b32", f"ptx_pair_product({self.use(o[1], 'b32')}, {self.use(o[2], 'b32')})")
        elif kind in FLOAT:
            self.arithmetic(modifiers, o, "*")
        elif modifiers[0] == "wide":
            double = f"{kind[0]}{2 * int(kind[1:])}"
            self.put(o[0], double, f"({INT[double]}){self.use(o[1], kind)} * ({INT[double]}){self.use(o[2], kind)}")
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
            c = INT[double]
            self.put(o[0], double, f"({c}){self.use(o[1], kind)} * ({c}){self.use(o[2], kind)} + {self.use(o[3], double)}")
            return
        self.only(modifiers, "lo")
        wide = "u64" if kind[1:] == "64" else "u32"
        self.put(o[0], kind, f"{self.use(o[1], wide)} * {self.use(o[2], wide)} + {self.use(o[3], wide)}")

    def do_fma(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers, "rn")
        a, b, c = (self.use(x, kind) for x in o[1:4])
        self.put(o[0], kind, f"fma{'f' if kind == 'f32' else ''}({a}, {b}, {c})")

    def do_div(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers, "rn")
        if kind in FLOAT:
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
        if kind in FLOAT:
            if compare in COMPARE:
                test = f"{a} {COMPARE[compare]} {b}"
                test = test if compare != "ne" else f"({test}) && !isnan({a}) && !isnan({b})"
            elif compare in ("num", "nan"):
                test = f"{'!' if compare == 'num' else ''}(isnan({a}) || isnan({b}))"
            else:  # unordered
                test = f"{a} {COMPARE[compare.removesuffix('u')]} {b} || isnan({a}) || isnan({b})"
        else:
            test = f"{a} {COMPARE[compare]} {b}"
        if join:
            sign = {"and": "&", "or": "|", "xor": "^"}[join[0]]
            test = f"(({test}) != 0) {sign} {self.use(o[3], 'pred')}"
        if "|" in o[0]:
            raise ValueError(o[0])
        self.put(o[0], "pred", test)

    def do_selp(self, modifiers: list[str], o: list[str]) -> None:
        kind = self.only(modifiers)
        kind = "b" + kind[1:] if kind in FLOAT else kind
        self.put(o[0], kind, f"{self.use(o[3], 'pred')} ? {self.use(o[1], kind)} : {self.use(o[2], kind)}")

    def do_cvt(self, modifiers: list[str], o: list[str]) -> None:
        *how, to, of = modifiers
        if to == "bf16x2" and of == "f32":
            assert how == ["rn"]
            self.put(o[0], "b32", f"(uint32_t)ptx_to_bf16({self.use(o[1], of)}) << 16 | ptx_to_bf16({self.use(o[2], of)})")
        elif to == "e4m3x2" and of == "f32":
            assert how == ["rn", "satfinite"]
            self.put(o[0], "b16", f"ptx_to_e4m3x2({self.use(o[1], of)}, {self.use(o[2], of)})")
        elif to in FLOAT and of in FLOAT:
            value = self.use(o[1], of)
            if how and how[0] in ("rni", "rzi", "rmi", "rpi"):
                name = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[how[0]] + ("f" if of == "f32" else "")
                assert to == of
                self.put(o[0], to, f"{name}({value})")
            else:
                assert how in ([], ["rn"])
                self.put(o[0], to, f"({FLOAT[to]}){value}")
        elif to in FLOAT:
            assert how == ["rn"]
            self.put(o[0], to, f"({FLOAT[to]}){self.use(o[1], of)}")
        elif of in FLOAT:
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
