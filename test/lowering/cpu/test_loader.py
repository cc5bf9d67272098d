"""The ELF loader takes what the code generator makes and refuses everything else."""

import struct

import pytest
from cpu_kernels import compiled, kernel_text, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.codegen import compile_text
from qfuse.lowering.cpu.loader import LoadedObject

ROW = plain(-1, 8, dtype="f32")


@pytest.fixture(scope="module")
def good() -> bytes:
    return compiled(kernel_text("silu", [ROW], [ROW])).code


def test_loads_and_finds_entries(good: bytes) -> None:
    code = LoadedObject(good, "k")
    assert code.address("run") > 0
    with pytest.raises(QfuseError, match="no function walk"):
        code.address("walk")


@pytest.mark.parametrize(
    "garbage", [b"", b"\x7fELF", b"MZ" + bytes(500), bytes(4096)], ids=["empty", "cut", "pe", "0"]
)
def test_refuses_what_is_no_object(garbage: bytes) -> None:
    with pytest.raises(QfuseError, match=r"kernel k: .*compile it again"):
        LoadedObject(garbage, "k")


def test_refuses_cut_objects(good: bytes) -> None:
    for length in range(0, len(good) - 64, 97):
        with pytest.raises(QfuseError):
            LoadedObject(good[:length], "k")


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_survives_damage(good: bytes, data: st.DataObject) -> None:
    """Any damage is refused or loads; nothing is run here."""
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        LoadedObject(bytes(damaged), "k")
    except QfuseError as error:
        assert "k" in str(error)


def test_refuses_an_offset_beyond_any_file(good: bytes) -> None:
    """A section table at 2^63 and more is no offset that Python can unpack from."""
    damaged = bytearray(good)
    damaged[40:48] = struct.pack("<Q", 2**63)
    with pytest.raises(QfuseError, match="is damaged"):
        LoadedObject(bytes(damaged), "k")


def test_refuses_other_relocations(good: bytes) -> None:
    """R_X86_64_PC32 instead of R_X86_64_64, in every place that looks like one."""
    at = [i for i in range(0, len(good) - 24) if _is_relocation(good, i)]
    assert at
    damaged = bytearray(good)
    for i in at:
        damaged[i + 8 : i + 12] = struct.pack("<I", 2)
    with pytest.raises(QfuseError, match="relocation type 2 is not supported"):
        LoadedObject(bytes(damaged), "k")


def _is_relocation(data: bytes, at: int) -> bool:
    """An entry of the section `.rela.ltext`."""
    header = struct.unpack_from("<4sBBBB8xHHIQQQIHHHHHH", data)
    for i in range(header[16]):
        section = struct.unpack_from("<IIQQQQIIQQ", data, header[10] + i * header[15])
        if section[1] == 4 and section[4] <= at < section[4] + section[5]:
            return (at - section[4]) % 24 == 0
    return False


def test_refuses_undefined_symbols() -> None:
    text = (
        "func.func private @getpid() -> i32\n"
        "func.func @run() {\n%0 = func.call @getpid() : () -> i32\nreturn\n}"
    )
    with pytest.raises(QfuseError, match="undefined symbol getpid; kernels may call memcpy"):
        LoadedObject(compile_text(text), "k")
