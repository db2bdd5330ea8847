"""A pytest plugin of the machines: not what has passed in another, the slowest files last, and none once
the time is over; what is left out is skipped, with its reason. Each test's outcome goes to the machine's
second serial port, as a line of JSON.
"""

import json
import os
import time

import pytest

PORT = "/dev/ttyS1"
TIMEOUT_SECONDS = 1800  # of one test, whatever it asks for: everything is 10 times slower here
MESSAGE = 300  # characters of why a test failed
# by the seconds that a test of theirs takes
LAST = (
    "attack", "entries", "schemas", "exporter", "health", "live_times", "live_entries", "lifecycle",
    "top", "page", "runbooks", "replay", "doctor", "daemon", "shells", "limit", "many_prefixes",
    "table", "switch", "apply_interruption", "interruption", "daemon_interruption",
)  # fmt: skip
END = time.time() + 60 * float(os.environ.get("MINUTES", "inf"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that are left, their order and their timeouts."""
    with open(os.environ["PASSED"], encoding="ascii") as lines:
        passed = {json.loads(line)["test"] for line in lines}
    items[:] = [item for item in items if item.nodeid not in passed]
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LAST)}
    items.sort(key=lambda item: ranks.get(item.path.name, -1))
    for item in items:
        item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """No test begins once the time is over."""
    if time.time() > END:
        pytest.skip("no time left")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Once in each phase of a test; of xdist's processes, the one that collects them writes."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    why = ""
    if isinstance(report.longrepr, tuple):
        why = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(getattr(crash, "message", report.longreprtext))[:MESSAGE]
    told = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "why": why,
        "seconds": round(report.duration, 1),
    }
    with open(PORT, "a", encoding="ascii") as port:
        print(json.dumps(told), file=port)
