"""Where published data lies, for tests that read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(*parts: str) -> Path:
    """A file or folder below that which ALIGN_TEST_DATA names; without it the test is skipped."""
    if "ALIGN_TEST_DATA" not in os.environ:
        pytest.skip("ALIGN_TEST_DATA does not name the folder of real data")
    return Path(os.environ["ALIGN_TEST_DATA"], *parts)
