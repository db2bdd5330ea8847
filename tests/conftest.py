"""For every test: how long something takes on a shared machine is no failure; the longest first."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
# begun last, it would keep one process of `make test` for minutes after the others
LONGEST = (
    "bpf/test_interruption.py",
    "bpf/test_daemon_interruption.py",
    "lab/test_lab.py",
    "fuzz/test_fuzz.py",
    "bpf/test_switch.py",
    "bpf/test_doctor.py",
    "bpf/test_daemon.py",
    "docs/test_pages.py",
    "bpf/test_apply_interruption.py",
    "faults/test_clocks.py",
    "clients/test_daemons.py",
    "lab/test_examples.py",
    "lab/test_operation.py",
    "bpf/test_table.py",
    "unit/test_run.py",
    "bpf/test_many_prefixes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of LONGEST first, in its order; the others stay in theirs."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda one: places.get(one.path, len(LONGEST)))
