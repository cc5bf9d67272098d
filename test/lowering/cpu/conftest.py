"""The kernels that a test run compiled are thrown away when its last process ends."""

import shutil

import pytest
from cpu_kernels import CACHE


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(CACHE, ignore_errors=True)
