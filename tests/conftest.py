"""What all tests share: markers, modest use of the cores, and a reproducible hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "pplmon", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("pplmon")


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers, so that a typing error in one is an error."""
    config.addinivalue_line("markers", "ranks: starts processes that talk over gloo")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)
