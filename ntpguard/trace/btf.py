"""The running kernel's own description of its types (BTF, Documentation/bpf/btf.rst)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ntpguard.errors import NtpguardError

VMLINUX = Path("/sys/kernel/btf/vmlinux")
MAGIC = 0xEB9F
PTR, STRUCT, UNION, ENUM, TYPEDEF, FUNC_PROTO = 2, 4, 5, 6, 8, 13
# bytes behind a type's head, once: INT, ARRAY, VAR, DECL_TAG
TAIL_BYTES = {1: 4, 3: 12, 14: 4, 17: 4}
# and for each of its elements: STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64
ELEMENT_BYTES = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, 15: 12, 19: 12}

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_ENUMERATOR = struct.Struct("<Ii")


@dataclass(frozen=True)
class Types:
    """All types of one kernel; `places[id]` is where type `id` starts in `data`."""

    data: bytes
    strings: int
    places: list[int]
    named: dict[tuple[int, str], int]

    def offset(self, name: str, member: str) -> int:
        """Bytes from the start of `struct name` to `member`, also inside unnamed parts.

        Raises NtpguardError if this kernel has no such member.
        """
        place = self.named.get((STRUCT, name))
        bits = None if place is None else self._find(place, member)
        if bits is None:
            raise NtpguardError(f"this kernel has no {name}.{member}: trace cannot work here")
        return bits // 8

    def enumerators(self, name: str) -> dict[int, str]:
        """value -> name of `enum name`; empty if this kernel has no such enum."""
        place = self.named.get((ENUM, name))
        if place is None:
            return {}
        return {
            value: self._string(text)
            for text, value in _ENUMERATOR.iter_unpack(self._elements(place, _ENUMERATOR.size))
        }

    def parameters(self, name: str) -> int:
        """How many parameters `typedef ... (*name)(...)` takes; 0 if there is no such typedef."""
        place = self.named.get((TYPEDEF, name))
        while place is not None:
            _, info, target = _TYPE.unpack_from(self.data, place)
            kind = info >> 24 & 0x1F
            if kind not in (TYPEDEF, PTR):
                return info & 0xFFFF if kind == FUNC_PROTO else 0
            place = self.places[target]
        return 0

    def _string(self, at: int) -> str:
        begin = self.strings + at
        return self.data[begin : self.data.index(0, begin)].decode()

    def _elements(self, place: int, size: int) -> bytes:
        _, info, _ = _TYPE.unpack_from(self.data, place)
        begin = place + _TYPE.size
        return self.data[begin : begin + (info & 0xFFFF) * size]

    def _find(self, place: int, member: str) -> int | None:
        """Bits to `member` from the start of the struct or union at `place`."""
        _, info, _ = _TYPE.unpack_from(self.data, place)
        for name, target, bits in _MEMBER.iter_unpack(self._elements(place, _MEMBER.size)):
            # with the kind flag set, the upper byte is the width of a bit field
            bits = bits & 0xFFFFFF if info >> 31 else bits
            if name:
                if self._string(name) == member:
                    return int(bits)
                continue
            inner = self.places[target]
            if _TYPE.unpack_from(self.data, inner)[1] >> 24 & 0x1F in (STRUCT, UNION):
                within = self._find(inner, member)
                if within is not None:
                    return int(bits) + within
        return None


def _walk(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(place, kind, offset of the name) of each type."""
    while begin < end:
        name, info, _ = _TYPE.unpack_from(data, begin)
        kind = info >> 24 & 0x1F
        yield begin, kind, name
        begin += _TYPE.size + TAIL_BYTES.get(kind, 0)
        begin += ELEMENT_BYTES.get(kind, 0) * (info & 0xFFFF)


def read_types(path: Path = VMLINUX) -> Types:
    """The types in a BTF file of this machine's byte order; NtpguardError if it has none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NtpguardError(
            f"{path}: {error.strerror}: trace needs a kernel with CONFIG_DEBUG_INFO_BTF"
        ) from None
    if len(data) < _HEADER.size or data[:2] != MAGIC.to_bytes(2, "little"):
        raise NtpguardError(f"{path}: not little-endian BTF")
    _, _, _, header, type_offset, type_length, string_offset, _ = _HEADER.unpack_from(data)
    strings = header + string_offset
    begin = header + type_offset
    places = [0]  # type 0 is void
    named: dict[tuple[int, str], int] = {}
    for place, kind, name in _walk(data, begin, begin + type_length):
        places.append(place)
        if name and kind in (STRUCT, ENUM, TYPEDEF):
            at = strings + name
            named.setdefault((kind, data[at : data.index(0, at)].decode()), place)
    return Types(data, strings, places, named)
