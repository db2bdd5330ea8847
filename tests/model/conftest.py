"""The programs that the tests of a module share."""

from collections.abc import Iterator

import pytest

from tests.bpf.guard import one_cpu
from tests.model.compare import Programs


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with one_cpu() as cpu:
        loaded = Programs(cpu)
        try:
            yield loaded
        finally:
            loaded.close()
