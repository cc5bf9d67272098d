"""What the environment may say, and what it is told when that is nonsense."""

from pathlib import Path

import pytest

from qfuse.compiler.options import FUSIONS, CompileOptions, cache_dir
from qfuse.dialects.errors import QfuseError


def test_environment():
    environment = {
        "QFUSE_DISABLE": "gate-up, qkv",
        "QFUSE_CPU_LEVEL": "generic",
        "QFUSE_CACHE_DIR": "/somewhere",
    }
    options = CompileOptions.make(disable=["rope"], environment=environment)
    assert options.disable == {"gate-up", "qkv", "rope"}
    assert options.level == "generic"
    assert options.cache_dir == Path("/somewhere/kernels")
    assert CompileOptions.make(disable="rope, qkv").disable == {"rope", "qkv"}
    assert CompileOptions.make(disable=["all"], environment=environment).disable == set(FUSIONS)


def test_unknown_level_is_refused_before_any_work():
    with pytest.raises(QfuseError, match='CPU level "sse9" is not one of avx512, avx2, generic'):
        CompileOptions.make(environment={"QFUSE_CPU_LEVEL": "sse9"})


def test_nowhere_to_cache(monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert cache_dir({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/qfuse")
    with pytest.raises(QfuseError, match="set QFUSE_CACHE_DIR"):
        cache_dir({})


def test_what_norms_quantize():
    name = "qfuse-fuse-norm-quantize"
    assert name in CompileOptions.make().fusion_passes()
    passes = CompileOptions.make(quantize_rounding="f32").fusion_passes()
    assert name + "{quantize-rounding=f32}" in passes
    assert [p.partition("{")[0] for p in passes] == CompileOptions.make().fusion_passes()
    off = CompileOptions.make(disable=["norm-quantize"], quantize_rounding="f32")
    assert not any(p.startswith(name) for p in off.fusion_passes())
    with pytest.raises(QfuseError, match="quantize_rounding 'bf16' is not one of value, f32"):
        CompileOptions.make(quantize_rounding="bf16")
    with pytest.raises(QfuseError, match="leave out one of them"):
        CompileOptions.make(quantize_rounding="f32", verify=True)


def test_options_of_torch_compile():
    options = CompileOptions.from_mapping(
        {"disable": "gate-up,qkv", "blas": "off", "quantize_rounding": "f32"}
    )
    assert options.disable == {"gate-up", "qkv"}
    assert (options.blas, options.quantize_rounding) == ("off", "f32")
    known = "target, disable, blas, quantize_rounding, tune"
    with pytest.raises(QfuseError, match=f"no compile option 'fuse'; there are {known}"):
        CompileOptions.from_mapping({"fuse": True})
