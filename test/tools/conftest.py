"""What the tests of tools share."""

import pytest

from qfuse.tools.bench import cpu_limits, cpu_rounds, cpu_schemes


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory is read and multiplied, in few rounds, with two copies of each weight."""
    monkeypatch.setattr(cpu_limits, "_BYTES", 1 << 20)
    monkeypatch.setattr(cpu_limits, "_CALL_BYTES", 1 << 18)
    monkeypatch.setattr(cpu_limits, "_ROUNDS", 10)
    monkeypatch.setattr(cpu_limits, "_TASKS", 3)
    monkeypatch.setattr(cpu_limits, "last_level_cache", lambda: 0)
    monkeypatch.setattr(cpu_schemes, "last_level_cache", lambda: 0)
    monkeypatch.setattr(cpu_rounds, "_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(cpu_rounds, "_MOST_ROUNDS", 3)
