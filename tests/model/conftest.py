"""The programs that the tests of a module share."""

import os
from collections.abc import Iterator

import pytest

from tests.model.compare import Programs


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    before = os.sched_getaffinity(0)
    cpu = min(before)
    os.sched_setaffinity(0, {cpu})
    loaded = Programs(cpu)
    try:
        yield loaded
    finally:
        loaded.close()
        os.sched_setaffinity(0, before)
