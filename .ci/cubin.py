"""What each function of a kernel takes of registers, read from the machine code: the highest register that it writes.

ptxas tells one number a kernel, the one it is launched with. A kernel whose warps have roles gives registers from one role to
another while it runs (setmaxnreg), so each role's own functions must keep within what it has. Every register is written before it
is read: the destinations of a function's instructions (128 bits each, sm_90 and sm_100, as NVIDIA's own disassembler shows them)
say what it needs. Only files that are not compressed are read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

_ELF = b"\x7fELF\x02\x01"
_SECTION, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_CODE = ".text."
_NO_REGISTER = 255
_RESERVED = 2  # ptxas counts so many more than the code of a kernel writes
# Branches, calls, barriers of warps, exits, tables of predicates: other things where others have a destination. And uniform
# registers as destinations.
_NO_DESTINATION = frozenset({0x01C, *range(0x140, 0x160)})
_UNIFORM = frozenset({0x082, 0x086, 0x08C, 0x090, 0x091, 0x092, 0x099, 0x0A0, 0x0B2, 0x0B9, 0x0BD, 0x0C3, 0x12F, 0x02F, 0x1B2}) | {
    *(0x087, 0x0A4, 0x0A5, 0x0CA, 0x1AC, 0x1C3)  # sm_100
}


def functions(image: bytes) -> Iterator[tuple[str, str, str, int]]:
    """(architecture, kernel, function, registers) of every function of every kernel in a .cubin or .fatbin; a kernel's own code has
    its name."""
    for start in (match.start() for match in re.finditer(re.escape(_ELF), image)):
        elf = image[start:]
        (flags,) = struct.unpack_from("<I", elf, 0x30)
        for found in _of_elf(elf):
            yield f"sm_{flags >> 8 & 255}", *found


def _of_elf(elf: bytes) -> Iterator[tuple[str, str, int]]:
    (at,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    if size != _SECTION.size or at + count * size > len(elf):
        return
    sections = [_SECTION.unpack_from(elf, at + i * size) for i in range(count)]
    titles = [_text(elf, sections[names_at][4] + section[0]) for section in sections]
    for kind, strings, first, length in ((s[1], s[6], s[4], s[5]) for s in sections):
        if kind != 2:  # a table of symbols
            continue
        symbols = [_SYMBOL.unpack_from(elf, first + i) for i in range(0, length, _SYMBOL.size)]
        named = [(_text(elf, sections[strings][4] + s[0]), s) for s in symbols]
        for number, title in enumerate(titles):
            if title.startswith(_CODE):
                mine = [(name, s[4], s[5]) for name, s in named if s[3] == number and s[5] and s[1] & 15 == 2]
                yield from _of_kernel(elf, title[len(_CODE) :], sections[number], mine)


def _of_kernel(
    elf: bytes, kernel: str, section: tuple[int, ...], parts: list[tuple[str, int, int]]
) -> Iterator[tuple[str, str, int]]:
    """parts: (name, first byte, bytes) of its functions; the kernel's own has those of all, which are taken off."""
    own = [(name, at, size) for name, at, size in parts if name != kernel]
    begin = min((at for _, at, _ in own), default=section[5])
    for name, at, size in [(kernel, 0, begin), *own]:
        yield kernel, name.removeprefix(f"${kernel}$"), _registers(elf[section[4] + at : section[4] + at + size])


def _registers(code: bytes) -> int:
    """As ptxas counts them: up to the highest that is written."""
    highest = -1
    for at in range(0, len(code) - 15, 16):
        opcode, destination = struct.unpack_from("<H", code, at)[0] & 0xFFF, code[at + 2]
        if destination != _NO_REGISTER and opcode & 0x1FF not in _NO_DESTINATION | _UNIFORM:
            highest = max(highest, destination + _more(opcode & 0x1FF, code[at : at + 16]))
    return highest + 1 + _RESERVED


def _more(opcode: int, instruction: bytes) -> int:
    """Registers beyond the first that an instruction writes."""
    if opcode in (0x181, 0x180, 0x183, 0x184):  # loads, whose width is in bits 73 to 75
        return {5: 1, 6: 3}.get(instruction[9] >> 1 & 7, 0)
    if opcode == 0x1F3:  # wgmma of 64 by 32, sums in floats
        return 15
    return 3 if opcode == 0x03C else 1 if opcode in (0x025, 0x029, 0x028, 0x02B) else 0  # HMMA; wide and double ones


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
