"""What is kept in the state directory, its writing interrupted or refused at any system call."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ntpguard import episodes
from ntpguard.daemon import lastgood
from ntpguard.episodes import Kept
from ntpguard.policy.check import parse_policy
from tests.bpf.daemon import running
from tests.bpf.live import data
from tests.bpf.test_health import status
from tests.bpf.test_lifecycle import NAMES, pytestmark, where

__all__ = ["pytestmark", "where"]
CALLS = ("mkdir", "openat", "write", "fsync", "close", "rename")
# both files, so that they are known by a number; says what cannot be
SAVE = """
import sys
from pathlib import Path
from ntpguard import episodes
from ntpguard.daemon import lastgood
from ntpguard.policy.check import parse_policy
number = int(sys.argv[1])
for save in (
    lambda: lastgood.save(parse_policy(f"limit.burst = {number}"), Path("ntpguard.toml")),
    lambda: episodes.save(episodes.Kept(total=number)),
):
    try:
        save()
    except Exception as error:
        print(type(error).__name__, error)
"""
OLD, NEW, NEXT = 7, 8, 9


def save(number: int) -> None:
    """What SAVE does."""
    lastgood.save(parse_policy(f"limit.burst = {number}"), Path("ntpguard.toml"))
    episodes.save(Kept(total=number))


def found() -> tuple[int, int]:
    """What is read of both."""
    policy, kept = lastgood.read(), episodes.load()
    assert policy and kept
    return policy.classes[0].burst, kept.total


@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC", "error=EIO"])
def test_whatever_happens_to_a_write_the_file_is_whole_and_the_next_write_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    state, log = tmp_path / "state", tmp_path / "log"
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    save(OLD)
    files = [lastgood.path(), episodes.path()]
    outcomes, left = set(), 0
    # what is half-written cannot be taken away either
    strace = ["strace", "-f", "-qqq", "-o", str(log), "-e", "inject=unlink:error=EIO"]
    strace += ["-e", f"trace=unlink,{','.join(CALLS)}"]
    for path in (state, *files, *(one.with_suffix(".new") for one in files)):
        strace += ["-P", str(path)]
    for call in CALLS:
        for when in range(1, 20):
            save(OLD)
            inject = f"inject={call}:{fault}:when={when}"
            done = subprocess.run(
                [*strace, "-e", inject, sys.executable, "-c", SAVE, str(NEW)],
                capture_output=True,
                text=True,
            )
            what = f"{call} {when}: {done} {log.read_text()}"
            assert "Traceback" not in done.stderr, what
            if done.returncode == 0 and f"{call}(" not in " ".join(injected(log)):
                assert (done.stdout, found()) == ("", (NEW, NEW)), what
                break
            outcomes.add(found())
            assert outcomes <= {(OLD, OLD), (OLD, NEW), (NEW, OLD), (NEW, NEW)}, what
            told = [line.split()[0] for line in done.stdout.splitlines()]
            assert told in ([], ["NtpguardError"]), what
            assert found() == (NEW, NEW) or told or done.returncode, what
            left += len(list(state.iterdir())) - len(files)
            save(NEXT)
            assert (found(), set(state.iterdir())) == ((NEXT, NEXT), set(files)), what
    print(fault, outcomes, left)
    assert left and len(outcomes) == 3


def injected(log: Path) -> list[str]:
    """The calls that strace has made fail."""
    return [line for line in log.read_text().splitlines() if line.endswith("(INJECTED)")]


def test_a_policy_file_whose_name_is_no_text_is_run_kept_and_told(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\nmode = 1"))
    folder.mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(folder / "state"))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with running(folder, "--listen", "127.0.0.1:9721") as daemon:
        assert data("-q", "policy", "diff")["file"] == str(daemon.file)
        daemon.reload("mode = 1\n")
        daemon.told_status("degraded: policy file refused: ")
        with urllib.request.urlopen("http://127.0.0.1:9721/", timeout=60) as answer:
            assert b"\\udcff" in answer.read()
        assert status()[1]
    kept = lastgood.read()
    assert kept and kept.interfaces == (NAMES[0],)
