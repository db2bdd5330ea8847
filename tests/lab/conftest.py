"""The lab that each test has for itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as one:
        yield one
