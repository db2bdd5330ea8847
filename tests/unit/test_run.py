"""What the README says to type: it plans what it is said to do, and `make test` leaves no test out."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import run
from tests.conftest import LONGEST

ROOT = run.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()
]
# nothing is made or installed: a test cannot run all tests; --always-make: as in a fresh clone
PLANNING = {
    "make": ["make", "--dry-run", "--always-make"],
    "apt-get": ["apt-get", "--simulate"],
}
PLANNED = {
    "apt-get install -y make": r"\bmake is already|Inst make ",
    "make demo": r"^setpriv .*\.venv/bin/python -m tests\.lab\.demo ?$",
    "make test": r"^\.venv/bin/python -m tests\.run$",
}
MADE_FIRST = ("apt-get download", "-m venv --system-site-packages", "pip install", "setup-busybox")


@pytest.mark.parametrize("typed", TYPED)
def test_what_the_readme_says_to_type_plans_what_it_is_said_to_do(typed: str) -> None:
    program, *arguments = typed.split()
    # as an operator types it: not below the make that runs this test
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        [*PLANNING[program], *arguments],
        cwd=ROOT,
        env={**clean, "MFLAGS": "", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PLANNED[typed], done.stdout, re.M), done.stdout
    if program == "make":
        assert all(one in done.stdout for one in MADE_FIRST), done.stdout


def test_every_file_of_tests_is_in_one_part_of_make_test() -> None:
    paths = [ROOT / path for part in run.TESTS.values() for path in part.paths]
    slow = ROOT / run.SLOW
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if slow not in file.parents]
    assert files
    parts = {file: sum(path in (file, *file.parents) for path in paths) for file in files}
    assert [file for file in files if parts[file] != 1] == []


def test_every_file_that_is_named_is_there() -> None:
    named = [path for part in (*run.TESTS.values(), *run.NEWEST.values()) for path in part.paths]
    named += [f"tests/{path}" for path in LONGEST]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two parts, of which the second has a test that passes."""
    (tmp_path / "build").mkdir()
    (tmp_path / "second.py").write_text("def test_second(): pass\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "PRIVATE", str(ROOT / run.PRIVATE))
    return tmp_path


@pytest.mark.parametrize(
    ("first", "processes", "status"),
    [
        ("def test_first(): pass", 2, 0),
        ("def test_first(): assert False", 2, 1),
        ("import os\ndef test_first(): os._exit(0)", 2, 1),
        ("import os\ndef test_first(): os._exit(0)", 1, 1),
        ("", 1, 1),
    ],
)
def test_all_parts_run_and_one_that_fails_fails_all(
    tried: Path, capfd: pytest.CaptureFixture[str], first: str, processes: int, status: int
) -> None:
    (tried / "first.py").write_text(first + "\n")
    parts = {"one": run.Part(processes, ("first.py",)), "two": run.Part(1, ("second.py",))}
    assert run.run(parts) == status
    printed = capfd.readouterr().out
    assert re.search(r"^two: exit code 0, 1 passed,", printed, re.M), printed
    assert printed.endswith("FAILED\n" if status else "all passed\n")
