"""Settings of a test run: threads that wait without spinning, and one cache of kernels."""

import os
import shutil

# The test processes share few CPUs; a spinning pool would hold up the others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from cpu_kernels import CACHE


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Throw the compiled kernels away when the last process ends."""
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(CACHE, ignore_errors=True)
