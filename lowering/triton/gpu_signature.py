"""What measurements on a GPU depend on, and tables of them are signed by."""

import sys

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.table_file import version_of
from qfuse.lowering.triton.driver import arch_error, arch_of, driver_for, gpu_error, kind_of

_LIBRARIES = {"cuda": ("nvidia-cublas", "nvidia-cublas-cu12"), "hip": ("rocm-sdk-libraries",)}
"""Distributions that bring the library behind torch's products; builds without them have their own,
of the version that torch was built with."""


def signature(target: str) -> dict[str, str]:
    """The GPU of this machine, its driver, and the versions that measurements depend on.

    Raises QfuseError where there is no GPU that `target` is code for.
    """
    kind = kind_of(target)
    driver = driver_for(kind)
    if why := arch_error(target, driver.arch(driver.device())):
        raise QfuseError(f"nothing can be measured for {target}: {why}")
    import torch

    library = next(filter(None, map(version_of, _LIBRARIES[kind])), "")
    return {
        "target": target,
        "gpu": torch.cuda.get_device_name(driver.device()),
        "driver": driver.version(),
        "torch": torch.__version__,
        "library": library or str(getattr(torch.version, kind)),
        **_always(),
    }


def known_here(target: str) -> dict[str, str]:
    """As much of `signature` as this process can tell.

    Where no GPU for `target` is at hand, a program is compiled for another machine, and all that
    counts here is the Triton that makes the code.  qfuse-opt, which never imports torch, asks
    nothing more either.
    """
    if "torch" not in sys.modules or gpu_error(kind_of(target)) or arch_error(target, arch_of()):
        return _always()
    try:
        return signature(target)
    except QfuseError:  # what starts kernels is missing: a program does not run here either
        return _always()


def _always() -> dict[str, str]:
    """Nothing where there is no Triton: nothing is compiled there."""
    version = version_of("triton")
    return {"triton": version} if version else {}
