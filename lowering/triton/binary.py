"""Triton IR to machine code, through the installed Triton; needs no GPU.

Compiled kernels are kept on disk, shared by processes.  A file is named by a digest of all that
its content depends on, and holds a digest of its own bytes: a damaged one is made again.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cache_file import read_cached, write_cached
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel, GpuLaunch, GpuVariant
from qfuse.lowering.triton.kernel import Launch, TritonKernel
from qfuse.lowering.triton.text import Spelling, respell, without_locations

FORMAT_VERSION = 1
"""Part of the key of cached binaries: raise it when what is stored changes."""

STAGES = {"cuda": ("ttgir", "ptx", "cubin"), "hip": ("ttgir", "amdgcn", "hsaco")}
"""What Triton makes for a kind of GPU, in order."""

_METADATA = ("num_warps", "num_ctas", "shared", "global_scratch_size", "global_scratch_align")
_PROBE = "module {\n tt.func private @probe(%d: !tt.tensordesc<16x16xf32>) {\n tt.return\n }\n}\n"


@dataclass(frozen=True)
class Binary:
    """A compiled launch.

    `metadata` holds what starting it takes: num_warps (384 threads are 12, whatever was asked
    for), shared bytes, and the scratch in global memory that each program needs.
    """

    name: str
    target: str
    stages: Mapping[str, bytes]
    metadata: Mapping[str, Any]

    def text(self, stage: str) -> str:
        return self.stages[stage].decode()


def compile_launch(launch: Launch, gpu: Gpu, directory: Path | None = None) -> Binary:
    """Machine code for a launch, or what an earlier call left in `directory`.

    Raises QfuseError where Triton is missing or refuses, with its message and how to repeat it.
    A directory that cannot be written is no error: the kernel is compiled each time.
    """
    path = None if directory is None else binary_path(launch, gpu, directory)
    cached = None if path is None else _read(path)
    if cached is not None:
        return cached
    binary = _compile(launch, gpu)
    if path is not None:
        _write(path, binary)
    return binary


def compile_kernel(kernel: TritonKernel, gpu: Gpu, directory: Path | None = None) -> GpuKernel:
    """Machine code for all launches of a kernel, as `compile_launch` makes it."""

    def compiled(launch: Launch) -> GpuLaunch:
        binary = compile_launch(launch, gpu, directory)
        about = binary.metadata
        return GpuLaunch(
            launch.name,
            launch.parameters,
            launch.grid,
            about["num_warps"],
            about["shared"],
            about["global_scratch_size"] or 0,
            binary.stages[STAGES[gpu.kind][-1]],
        )

    variants = tuple(
        GpuVariant(
            v.first_m,
            v.last_m,
            tuple(compiled(launch) for launch in v.launches),
            v.scratch_per_row,
            v.counter_bytes,
        )
        for v in kernel.variants
    )
    return GpuKernel(kernel.name, kernel.target, kernel.parameters, variants)


def binary_path(launch: Launch, gpu: Gpu, directory: Path) -> Path:
    """Where `compile_launch` keeps a launch."""
    return Path(directory) / f"{binary_key(launch, gpu)}.gpu"


def binary_key(launch: Launch, gpu: Gpu) -> str:
    """What identifies the machine code of a launch."""
    environment = "\0".join(f"{k}={v}" for k, v in _code_environment().items())
    fields = [
        respell(launch.text, spelling()),
        str(gpu),
        str(launch.num_warps),
        str(launch.num_stages),
        str(FORMAT_VERSION),
        triton_version(),
        environment,
    ]
    return hashlib.sha256("\0\0".join(fields).encode()).hexdigest()[:40]


def triton_version() -> str:
    return load_triton().__version__


@lru_cache(maxsize=1)
def spelling() -> Spelling:
    """How the installed Triton writes descriptor types: asked of its parser."""
    load_triton()
    from triton._C.libtriton import ir

    with tempfile.TemporaryDirectory(prefix="qfuse-") as directory:
        path = Path(directory) / "probe.ttir"
        path.write_text(_PROBE)
        context = ir.context()
        ir.load_dialects(context)
        try:
            with _silence():
                ir.parse_mlir_module(str(path), context)
        except RuntimeError:
            return "tensor"
        return "plain"


def load_triton() -> Any:
    try:
        import triton
    except ImportError as error:
        raise QfuseError(
            f"compiling for a GPU needs Triton, which cannot be imported ({error}); install it "
            "with `pip install 'qfuse[gpu]'`"
        ) from None
    return triton


def _code_environment() -> dict[str, str]:
    """Variables that change what Triton makes; all that begin with its prefixes, to be safe."""
    ignored = ("TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_DUMP_DIR", "TRITON_OVERRIDE_DIR")
    return {
        k: v
        for k, v in sorted(os.environ.items())
        if k.startswith(("TRITON_", "MLIR_", "LLVM_", "PTXAS", "AMDGCN_")) and k not in ignored
    }


def _compile(launch: Launch, gpu: Gpu) -> Binary:
    triton = load_triton()
    from triton.backends.compiler import GPUTarget

    target = GPUTarget(gpu.kind, gpu.capability if gpu.is_cuda else gpu.arch, gpu.warp_size)
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        # A fused multiply-add where the program has a product and a sum would make a fused
        # kernel differ from separate ones; where one is wanted, it is written as one.
        "enable_fp_fusion": False,
    }
    text = respell(launch.text, spelling())
    with tempfile.TemporaryDirectory(prefix="qfuse-") as directory:
        path = Path(directory) / f"{launch.name}.ttir"
        path.write_text(text)
        try:
            with _environment(directory, gpu), _silence() as said:
                compiled = triton.compile(str(path), target=target, options=options)
        except Exception as error:
            raise QfuseError(_failure(launch, gpu, text, error, said.getvalue())) from error
    stages = {}
    for stage in STAGES[gpu.kind]:
        code = compiled.asm[stage]
        if stage == "ttgir":
            code = without_locations(code)
        stages[stage] = code if isinstance(code, bytes) else code.encode()
    metadata = {name: getattr(compiled.metadata, name, None) for name in _METADATA}
    metadata["num_stages"] = launch.num_stages
    return Binary(launch.name, str(gpu), stages, metadata)


def _failure(launch: Launch, gpu: Gpu, text: str, error: Exception, said: str) -> str:
    """One line for the user; the kernel stays in a file with the command that compiles it."""
    handle, name = tempfile.mkstemp(prefix=f"qfuse-{launch.name}-", suffix=".ttir")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(f"{name}.log").write_text(f"{error}\n{said}")
    arch = gpu.capability if gpu.is_cuda else f"'{gpu.arch}'"
    command = (
        'python -c "import triton; from triton.backends.compiler import GPUTarget as T; '
        f"triton.compile('{name}', target=T('{gpu.kind}', {arch}, {gpu.warp_size}), "
        f"options=dict(num_warps={launch.num_warps}, num_stages={launch.num_stages}, "
        'enable_fp_fusion=False))"'
    )
    lines = [line.strip() for line in f"{error}\n{said}".splitlines() if line.strip()]
    cause = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "?")
    return (
        f"Triton {triton_version()} cannot compile {launch.name} for {gpu}: {cause} (its whole "
        f"answer is in {name}.log; repeat with: {command})"
    )


@contextlib.contextmanager
def _environment(cache: str, gpu: Gpu) -> Iterator[None]:
    """Triton's settings during one compilation: its own cache in a place that goes away."""
    changes = {
        "TRITON_CACHE_DIR": cache,
        "TRITON_DEFAULT_FP_FUSION": "0",
        "TRITON_DISABLE_LINE_INFO": "1",  # lines of a temporary file, and its name, in the code
    }
    old_ptxas = triton_version().startswith("3.6.") and gpu.arch == "sm_90"
    if old_ptxas and "TRITON_PTXAS_PATH" not in os.environ:
        # Triton 3.6 assembles sm_90 with ptxas 12.8, which does not interleave the promotion of
        # FP8 products; its other ptxas, 12.9, does (TRITON.md, finding 4).
        newer = Path(load_triton().__file__).parent / "backends/nvidia/bin/ptxas-blackwell"
        if newer.exists():
            changes["TRITON_PTXAS_PATH"] = str(newer)
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _silence() -> Iterator[io.StringIO]:
    """Collect what is printed: Triton prints a whole PTX file where ptxas fails.

    MLIR's diagnostics come from C++, past Python's streams, so the file descriptor is redirected.
    """
    said = io.StringIO()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            with contextlib.redirect_stdout(said):
                yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            said.write(file.read().decode(errors="replace"))


def _read(path: Path) -> Binary | None:
    """The binary in a file, or None if there is none or it is not whole."""
    cached = read_cached(path)
    if cached is None:
        return None
    data, content = cached
    try:
        stages, start = {}, 0
        for stage, size in data["stages"]:
            stages[stage] = content[start : start + size]
            start += size
        if start != len(content) or not set(_METADATA) <= set(data["metadata"]):
            return None
        return Binary(data["name"], data["target"], stages, data["metadata"])
    except (ValueError, KeyError, TypeError):
        return None


def _write(path: Path, binary: Binary) -> None:
    header = {
        "name": binary.name,
        "target": binary.target,
        "metadata": dict(binary.metadata),
        "stages": [[stage, len(code)] for stage, code in binary.stages.items()],
    }
    write_cached(path, header, b"".join(binary.stages.values()))
