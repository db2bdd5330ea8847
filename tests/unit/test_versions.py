"""The libraries are the oldest that are supported, those of Debian 12; with `make test-newest`, newer."""

import os
from importlib.metadata import version

import pytest

OLDEST = {
    "click": "8.1.3",
    "prometheus-client": "0.16.0",
    "pyroute2": "0.7.2",
    "rich": "13.3.1",
}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(".")[:3])


@pytest.mark.parametrize("library", OLDEST)
def test_the_library_is_the_one_that_these_tests_are_for(library: str) -> None:
    found = version(library)
    if "NTPGUARD_NEWEST" in os.environ:
        assert numbers(found) > numbers(OLDEST[library])
    else:
        assert found == OLDEST[library]
