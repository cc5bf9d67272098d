"""Saved programs: equal, aligned, mapped, portable to a machine without MLIR, or refused."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import KERNELS, FakeLoaded, from_builtin, main, program_of, to_builtin
from models import VOCABULARY, WIDTH, expected_tokens, language_model

from qfuse.compiler.runtime import artifact
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.program import Program
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError

SMALL = main(
    "x: ?x8xf32 input\nw: ?x8xf32 input\nbias: 8xf32 parameter\nsame: 8xf32 parameter",
    "y: ?x8xf32 output",
    to_builtin("x")
    + """
      %one = torch.constant.int 1
      %a_b = func.call @double(%x_b) : (tensor<?x8xf32>) -> tensor<?x8xf32>
    """
    + from_builtin("a")
    + """
      %b = torch.aten.add.Tensor %a, %bias, %one : !torch.vtensor<[?,8],f32>,
        !torch.vtensor<[8],f32>, !torch.int -> !torch.vtensor<[?,8],f32>
      %y = torch.aten.mul.Tensor %b, %same : !torch.vtensor<[?,8],f32>,
        !torch.vtensor<[8],f32> -> !torch.vtensor<[?,8],f32>""",
)


@pytest.fixture
def program() -> Program:
    bias = torch.randn(8)
    made = program_of(SMALL, {"bias": bias, "same": bias})
    made.info = {"name": "small"}
    made.report = {"after": {"launches": 3}}
    return made


def header_of(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def test_what_is_loaded_equals_what_was_saved(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p.qfuse"
    program.save(path)
    loaded = Program.load(path, load_kernel=FakeLoaded)
    assert loaded.plan == program.plan
    assert loaded.kernels == program.kernels
    assert (loaded.info, loaded.report) == (program.info, program.report)
    assert loaded.constants.keys() == program.constants.keys()
    x = torch.randn(3, 8)
    assert Session(loaded)(x, x)[0].equal(Session(program)(x, x)[0])


def test_tensors_are_aligned_mapped_and_written_once(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p.qfuse"
    program.save(path)
    safetensors = pytest.importorskip("safetensors.torch")
    assert safetensors.load_file(path)  # an ordinary safetensors file
    loaded = Program.load(path, load_kernel=FakeLoaded)
    addresses = {tensor.data_ptr() for tensor in loaded.constants.values()}
    assert all(address % 64 == 0 for address in addresses)
    assert len(loaded.constants) == 2 and len(addresses) == 1
    next(iter(loaded.constants.values())).zero_()  # a private mapping: the file stays as it is
    again = Program.load(path, load_kernel=FakeLoaded)
    assert next(iter(again.constants.values())).any()


def test_saving_over_an_artifact_in_use(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p.qfuse"
    program.save(path)
    loaded = Program.load(path, load_kernel=FakeLoaded)
    loaded.save(path)
    x = torch.randn(3, 8)
    again = Program.load(path, load_kernel=FakeLoaded)
    assert Session(loaded)(x, x)[0].equal(Session(again)(x, x)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["p.qfuse"]


@pytest.mark.parametrize("where", ["missing/p.qfuse", "", "file/p.qfuse", "/"])
def test_a_path_that_cannot_be_written(program: Program, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(QfuseError, match="cannot write") as caught:
        program.save(tmp_path / where)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob("*.tmp"))


def test_a_device_is_not_replaced(program: Program, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(QfuseError, match="pipe: it is not a regular file"):
        program.save(tmp_path / "pipe")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_files_that_are_no_artifacts(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p.qfuse"
    program.save(path)
    good = path.read_bytes()
    header = header_of(path)
    about = header["__metadata__"]
    assert isinstance(about, dict)

    def with_header(**changes: object) -> bytes:
        changed = json.dumps({**header, "__metadata__": {**about, **changes}}).encode()
        (length,) = struct.unpack("<Q", good[:8])
        return struct.pack("<Q", len(changed)) + changed + good[8 + length :]

    wrong = {
        "is not a qfuse artifact": b"",
        "not a qfuse artifact, or is cut": b"\x7fELF" * 100,
        "or is cut short": good[:100],
        "is cut short": good[: len(good) - 100],
        "artifact version 0; this qfuse reads version 4": with_header(version="0"),
        "a safetensors file but not a qfuse artifact": with_header(kind="other"),
        "damaged": with_header(plan='{"parameters": []}'),
        "is a damaged": with_header(kernels='[{"name": "nothing"}]'),
        "damaged.*AttributeError": with_header(aliases="[]"),
        "info and report are not tables": with_header(info="99"),
    }
    for message, data in wrong.items():
        path.write_bytes(data)
        with pytest.raises(QfuseError, match=message) as caught:
            Program.load(path, load_kernel=FakeLoaded)
        assert "\n" not in str(caught.value)
    with pytest.raises(QfuseError, match="cannot read"):
        Program.load(tmp_path / "nothing.qfuse")


def test_a_weight_that_is_not_there(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p.qfuse"
    program.constants.popitem()
    program.save(path)
    with pytest.raises(QfuseError, match="a weight is missing"):
        Program.load(path, load_kernel=FakeLoaded)


def test_kernels_for_another_cpu(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p.qfuse"
    program.kernels = {n: replace(k, features=("warp",)) for n, k in program.kernels.items()}
    program.save(path)
    with pytest.raises(QfuseError, match="compiled for a CPU with warp, which this one lacks"):
        Program.load(path, load_kernel=FakeLoaded)


def test_every_dtype_survives(tmp_path: Path) -> None:
    tensors = {
        str(dtype): torch.arange(6).to(dtype).reshape(2, 3) for dtype in artifact._DTYPES.values()
    }
    tensors |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(4.5)}
    tensors["strided"] = torch.randn(4, 5).T
    artifact.write(tmp_path / "t", tensors, {"some": [1, None]})
    loaded, metadata = artifact.read(tmp_path / "t")
    assert metadata == {"some": [1, None]}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert (
            loaded[name]
            .reshape(-1)
            .view(torch.uint8)
            .equal(tensor.contiguous().reshape(-1).view(torch.uint8))
        )


WITHOUT_MLIR = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch_mlir", "transformers"):
            raise ImportError(f"{name} is not on this machine")

sys.meta_path.insert(0, Refuse())
from qfuse.compiler.runtime.executable import Executable

exe = Executable.load(sys.argv[1])
print(exe.generate([1, 2, 3], 8))
assert not any(name.startswith("torch_mlir") for name in sys.modules)
"""


def test_runs_on_a_machine_without_mlir(tmp_path: Path) -> None:
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    program = program_of(language_model(), {"table": table})
    Executable(program).save(tmp_path / "lm.qfuse")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLIR, str(tmp_path / "lm.qfuse")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected_tokens(table, [1, 2, 3], 8)


def test_kernels_that_were_not_compiled() -> None:
    with pytest.raises(QfuseError, match=r"not compiled: \['double'\]"):
        Program.prepare(
            program_of(SMALL, {k: torch.zeros(8) for k in ("bias", "same")}).plan,
            {k: torch.zeros(8) for k in ("bias", "same")},
            {k: v for k, v in KERNELS.items() if k != "double"},
        )


WRONG_PARAMETERS = {
    "parameter same is missing": {"bias": torch.zeros(8)},
    r"bias is float32\[9\]; the program expects float32\[8\]": {"bias": torch.zeros(9)},
    "same is on meta": {"bias": torch.zeros(8), "same": torch.zeros(8, device="meta")},
}


@pytest.mark.parametrize("message", WRONG_PARAMETERS)
def test_parameters_that_do_not_fit(message: str) -> None:
    with pytest.raises(QfuseError, match=message):
        program_of(SMALL, WRONG_PARAMETERS[message])
