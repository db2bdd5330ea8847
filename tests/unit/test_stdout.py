"""A stdout that takes no more, or that is not there: at most a line, exit code 1, no traceback."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import NTPGUARD

CALLS = [
    "--help",
    "limit set --help",
    "--version",
    "policy check /dev/null",
    "policy show /dev/null",
]
# both ways of Python to write
UNBUFFERED = ["", "1"]


def ended(redirection: str, call: str, unbuffered: str) -> tuple[int, str]:
    """Exit code and stderr of ntpguard, its stdout as a shell's redirection has it."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{NTPGUARD} {call} {redirection}"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", UNBUFFERED)
@pytest.mark.parametrize("call", CALLS)
def test_a_full_stdout_is_said_in_one_line(call: str, unbuffered: str) -> None:
    assert ended(">/dev/full", call, unbuffered) == (
        1,
        "ntpguard: stdout: No space left on device: not all was shown\n",
    )


@pytest.mark.parametrize("unbuffered", UNBUFFERED)
def test_a_reader_that_went_away_has_seen_enough(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for call in CALLS:
        done = subprocess.run(
            [NTPGUARD, *call.split()],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        assert (done.returncode, done.stderr) == (1, "")
    os.close(writer)


def test_a_closed_stdout_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    refused = (1, "ntpguard: stdout: closed: if nothing is to be shown, try >/dev/null\n")
    for call in (*CALLS, f"--bpffs {tmp_path} up eth9"):
        assert ended(">&-", call, "") == refused


def test_a_file_that_cannot_be_written_is_not_taken_for_stdout() -> None:
    code, errors = ended("", "policy check /proc/self/mem/x", "")
    assert code != 0 and "stdout" not in errors


def test_a_name_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    file = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.conf"))
    file.write_text("ratelimit\n")
    for options in ([], ["-o", "json"]):
        done = subprocess.run(
            [NTPGUARD, *options, "migrate", file],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "\\udcff.conf" in done.stdout or "?.conf" in done.stdout
