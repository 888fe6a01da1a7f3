"""Fixtures and settings of all tests: fixed random numbers, and a reproducible hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.launch import start_server, unhurried

UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large]
for name, examples in {"quick": 30, "all": 100}.items():
    settings.register_profile(
        name, deadline=None, derandomize=True, max_examples=examples, suppress_health_check=UNHURRIED
    )


def pytest_configure(config: pytest.Config) -> None:
    """Give properties fewer examples where slow tests are left out, as ``make test`` does."""
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "all")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let no logger count as slow, and the process that ranks are forked off import what they need while other tests run."""
    unhurried()
    if any(item.get_closest_marker("ranks") for item in session.items):
        start_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped, with a reason, where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)
