"""Bringing a relocatable x86-64 ELF object into memory.

Only what the JIT's large code model produces is accepted: absolute 64-bit relocations against
symbols of the object or a few functions of the C library.  The pages are written first and made
executable afterwards, never both at once.
"""

import ctypes
import mmap
import struct
import weakref
from dataclasses import dataclass

from qfuse.dialects.errors import QfuseError

_SHF_ALLOC = 0x2
_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_REL = 2, 4, 8, 9
_SHN_UNDEF = 0
_R_X86_64_64 = 1
_EM_X86_64, _ET_REL = 62, 1

_MAX_BYTES = 1 << 28  # no kernel comes near it

# Unwinding tables: nothing unwinds through a kernel, so they need not be registered.
_SKIPPED_SECTIONS = (".eh_frame",)

# Calls that LLVM may emit for plain loops and vector operations.
_EXTERNAL = ("memcpy", "memmove", "memset", "fmaf", "roundevenf")


@dataclass(frozen=True)
class _Section:
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int


class LoadedObject:
    """Executable memory holding an object; freed when the last reference to this goes."""

    def __init__(self, object: bytes, name: str) -> None:
        """Raises QfuseError if the object is not one that the code generator makes."""
        try:
            self._load(object, name)
        except (struct.error, IndexError, OverflowError, ValueError) as error:
            raise QfuseError(
                f"kernel {name}: its object is damaged ({error}); compile it again"
            ) from error

    def address(self, symbol: str) -> int:
        """Address of `void symbol(void **arguments)`, MLIR's wrapper around the function."""
        try:
            return self._symbols[f"_mlir_{symbol}"]
        except KeyError:
            raise QfuseError(
                f"kernel {self._name}: its object has no function {symbol}; compile it again"
            ) from None

    def _load(self, data: bytes, name: str) -> None:
        self._name = name
        sections = _read_sections(data, name)
        placed: dict[int, int] = {}
        size = 0
        for i, s in enumerate(sections):
            if s.flags & _SHF_ALLOC and s.size and s.name not in _SKIPPED_SECTIONS:
                size = -(-size // max(1, s.alignment)) * max(1, s.alignment)
                placed[i] = size
                size += s.size
        if not 0 < size <= _MAX_BYTES:
            raise ValueError(f"{size} bytes of code and data")
        memory = _Pages(size)
        for i, at in placed.items():
            s = sections[i]
            if s.type != _SHT_NOBITS:
                ctypes.memmove(memory.address + at, _slice(data, s.offset, s.size), s.size)
        bases = {i: memory.address + at for i, at in placed.items()}
        symbols = _read_symbols(data, sections)
        addresses = [_resolve(s, bases) for s in symbols]
        for s in sections:
            if s.type == _SHT_REL and s.info in placed:
                raise QfuseError(f"kernel {name}: relocations without addends are not supported")
            if s.type == _SHT_RELA and s.info in placed:
                self._relocate(data, s, sections[s.info], bases[s.info], symbols, addresses)
        memory.make_executable()
        self._memory = memory
        self._symbols = {
            s.name: a
            for s, a in zip(symbols, addresses, strict=True)
            if a is not None and s.name and s.section in bases
        }

    def _relocate(
        self,
        data: bytes,
        table: _Section,
        target: _Section,
        base: int,
        symbols: "list[_Symbol]",
        addresses: list[int | None],
    ) -> None:
        for offset, info, addend in struct.iter_unpack(
            "<QQq", _slice(data, table.offset, table.size)
        ):
            kind, number = info & 0xFFFFFFFF, info >> 32
            if kind != _R_X86_64_64:
                raise QfuseError(
                    f"kernel {self._name}: relocation type {kind} is not supported; the code "
                    "generator makes R_X86_64_64 only"
                )
            address = addresses[number]
            if address is None:
                raise QfuseError(
                    f"kernel {self._name}: undefined symbol {symbols[number].name}; kernels may "
                    f"call {', '.join(_EXTERNAL)}"
                )
            if offset + 8 > target.size:
                raise ValueError("relocation beyond its section")
            value = (address + addend) % (1 << 64)
            ctypes.memmove(base + offset, struct.pack("<Q", value), 8)


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int
    value: int


def _read_sections(data: bytes, name: str) -> list[_Section]:
    header = struct.unpack_from("<4sBBBB8xHHIQQQIHHHHHH", data)
    magic, bits, endian, _, _, type_, machine = header[:7]
    if (magic, bits, endian, type_, machine) != (b"\x7fELF", 2, 1, _ET_REL, _EM_X86_64):
        raise QfuseError(
            f"kernel {name}: not a relocatable x86-64 ELF object; compile it again for this machine"
        )
    table, entry_size, count, names_index = header[10], header[15], header[16], header[17]
    raw = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry_size) for i in range(count)]
    names = _slice(data, raw[names_index][4], raw[names_index][5])
    return [
        _Section(_string(names, n), type_, flags, offset, size, link, info, alignment)
        for n, type_, flags, _, offset, size, link, info, alignment, _ in raw
    ]


def _read_symbols(data: bytes, sections: list[_Section]) -> list[_Symbol]:
    table = next((s for s in sections if s.type == _SHT_SYMTAB), None)
    if table is None:
        raise ValueError("no symbol table")
    names = _slice(data, sections[table.link].offset, sections[table.link].size)
    return [
        _Symbol(_string(names, name), section, value)
        for name, _, _, section, value, _ in struct.iter_unpack(
            "<IBBHQQ", _slice(data, table.offset, table.size)
        )
    ]


def _resolve(symbol: _Symbol, bases: dict[int, int]) -> int | None:
    """Where a symbol is, or None if nothing but a relocation needs to know that it is not."""
    if symbol.section in bases:
        return bases[symbol.section] + symbol.value
    if symbol.section == _SHN_UNDEF and symbol.name in _EXTERNAL:
        library = ctypes.CDLL("libm.so.6") if symbol.name.endswith("f") else ctypes.CDLL(None)
        return ctypes.cast(getattr(library, symbol.name), ctypes.c_void_p).value
    return None


def _slice(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise ValueError("section beyond the end of the object")
    return data[offset : offset + size]


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


class _Pages:
    """Anonymous memory, unmapped when this object goes."""

    def __init__(self, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        libc = _libc()
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = libc.mmap(None, self._size, protection, flags, -1, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"cannot map {self._size} bytes for a kernel")
        self.address: int = address
        weakref.finalize(self, libc.munmap, address, self._size)

    def make_executable(self) -> None:
        protection = mmap.PROT_READ | mmap.PROT_EXEC
        if _libc().mprotect(self.address, self._size, protection):
            raise QfuseError(
                "this system does not allow executable memory (mprotect failed with error "
                f"{ctypes.get_errno()}); run where it does"
            )


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
