"""Runs the tests in parts, all of them even if one fails, and sums them up: what `make test` calls.

Three files at a time, each process in namespaces of its own: they wait for the kernel more than they
compute. Then, alone, what floods a daemon, measures, or sees what the whole machine drops.
"""

import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PRIVATE = "tests/private"


@dataclass(frozen=True)
class Part:
    """What one pytest runs; `processes` at once, a file in one of them. See tests/conftest.py for
    which come first.
    """

    processes: int
    paths: tuple[str, ...]


TESTS = {
    "together": Part(
        3,
        (
            "tests/bpf",
            "tests/docs",
            "tests/fuzz",
            "tests/clients",
            "tests/faults",
            "tests/lab/test_capture.py",
            "tests/lab/test_examples.py",
            "tests/lab/test_lab.py",
            "tests/lab/test_operation.py",
            "tests/model",
            "tests/attack",
            "tests/unit",
        ),
    ),
    "alone": Part(
        1,
        (
            "tests/lab/test_demo.py",
            "tests/lab/test_prometheus.py",
            "tests/lab/test_trace.py",
            "tests/lab/test_trace_output.py",
            "tests/bench",
            "tests/soak",
        ),
    ),
}
SLOW = "tests/deploy"  # make test-deploy
# what depends on click, prometheus-client, pyroute2 or rich
NEWEST = {
    "newest libraries": Part(
        3,
        (
            "tests/unit/test_cli.py",
            "tests/unit/test_daemon.py",
            "tests/unit/test_stdout.py",
            "tests/unit/test_versions.py",
            "tests/docs/test_reference.py",
            "tests/bpf/test_daemon.py",
            "tests/bpf/test_doctor.py",
            "tests/bpf/test_exporter.py",
            "tests/bpf/test_lifecycle.py",
            "tests/bpf/test_policy_commands.py",
            "tests/bpf/test_schemas.py",
            "tests/bpf/test_shells.py",
            "tests/bpf/test_show.py",
            "tests/bpf/test_top.py",
        ),
    )
}


def command(part: Part) -> list[str]:
    """The pytest of a part; xdist starts its processes in namespaces, and stays outside."""
    pytest = [sys.executable, "-m", "pytest"]
    if part.processes == 1:
        return [PRIVATE, *pytest, *part.paths]
    process = f"{part.processes}*popen//python={PRIVATE} {sys.executable}"
    files = ["--dist", "loadfile", "--no-loadscope-reorder"]
    # a test that ends its process would be given to a new one for ever
    once = "--max-worker-restart=0"
    return [*pytest, *files, once, "--tx", process, *part.paths]


def outcomes(report: Path) -> tuple[Counter[str], list[str]]:
    """How many tests of a JUnit report came to what, and those that did not pass."""
    counted: Counter[str] = Counter()
    names = []
    for case in ElementTree.parse(report).iter("testcase"):
        found = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcome = next((one for one in ("failure", "error", "skipped") if one in found), "passed")
        counted[outcome] += 1
        if outcome != "passed":
            names.append(f"{outcome}: {case.get('classname')}::{case.get('name')}")
    return counted, names


def run(parts: dict[str, Part]) -> int:
    """The exit code: 0 only if each part has run tests, and every one passed or was skipped."""
    lines, bad, failed = [], [], False
    for name, part in parts.items():
        report = ROOT / "build" / f"{name.replace(' ', '-')}.xml"
        report.unlink(missing_ok=True)
        begin = time.monotonic()
        done = subprocess.run([*command(part), f"--junitxml={report}"], cwd=ROOT)
        counted, names = outcomes(report) if report.exists() else (Counter[str](), [])
        failed |= done.returncode != 0 or not counted["passed"]
        bad += names
        figures = [f"{counted[one]} {one}" for one in ("passed", "skipped", "failure", "error")]
        lines.append(
            f"{name}: exit code {done.returncode}, {', '.join(figures)}, {time.monotonic() - begin:.0f} s"
        )
    print("", *bad, *lines, "FAILED" if failed else "all passed", sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run(NEWEST if sys.argv[1:] == ["newest"] else TESTS))
