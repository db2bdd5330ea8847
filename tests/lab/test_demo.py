"""make demo, ended before its time: what is left of it."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.lab.demo import leftovers, settled
from tests.lab.lab import ROOT
from tests.lab.test_lab import pytestmark

__all__ = ["pytestmark"]
DEMO = ["make", "-s", "demo", "DEMO=--seconds 1"]
SHOWN = "left behind: 0 namespaces, 0 pins, 0 mounts, 0 processes"
STAGES = ("making two namespaces", "without ntpguard: ", "eth0: guarded")
CALLS = "bpf,mount,umount2,unshare,mkdir,rename,unlink,unlinkat,rmdir,sendmsg"
# of those calls, the ones that fail, read, or are NTP and commands to chronyd
CHANGE_NOTHING = re.compile(r" = -1 |LOOKUP_ELEM|_GET_|OBJ_GET|TEST_RUN|BTF_LOAD|AF_INET|AF_UNIX")
DELAY_MICROSECONDS = 3000
# CI tries one call in so many; 1 tries each, in some 40 minutes
STRIDE = int(os.environ.get("NTPGUARD_STRIDE", "100"))


@pytest.fixture
def before() -> dict[str, int]:
    return leftovers()


def test_the_demonstration_leaves_nothing_and_shows_each_kind_of_client(
    before: dict[str, int],
) -> None:
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True)
    assert SHOWN in done.stdout, done.stderr
    for kind in ("polite", "hasty", "abuser", "chronyd4", "chronyd6"):
        assert len(re.findall(rf"^{kind} +[1-9]", done.stdout, re.M)) == 2, done.stdout
    # the share of the polite depends on how busy this machine is, in so short a time
    claims = re.findall(r"^(true|false) +(\S.*)$", done.stdout, re.M)
    assert [true for true, claim in claims if not claim.startswith("polite")] == ["true"] * 4
    assert not any(settled(before).values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demonstration_leaves_nothing(
    how: signal.Signals, stage: str, before: dict[str, int]
) -> None:
    process = subprocess.Popen(
        DEMO, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    assert any(line.startswith(stage) for line in process.stdout)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.kill()
    rest = process.stdout.read()
    assert process.wait(30) != 0
    if how == signal.SIGINT:
        assert SHOWN in rest
    assert not any(settled(before).values())


def killed_at(when: int, log: Path) -> bool:
    """Kills make demo, its outermost process, when its processes have made `when` changing calls.

    Each process is held after each such call, so that it does nothing more before the kill.
    Returns False if there were not so many calls.
    """
    os.mkfifo(log)
    strace = ["strace", "-D", "-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}"]
    process = subprocess.Popen(
        [*strace, "-e", f"inject={CALLS}:delay_exit={DELAY_MICROSECONDS}", *DEMO],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    calls = 0
    with log.open() as lines:
        for line in lines:
            if " = " not in line:
                continue
            calls += not CHANGE_NOTHING.search(line)
            if calls == when:
                process.kill()
    process.wait(30)
    return calls >= when


@pytest.mark.timeout(7200)
def test_a_demonstration_killed_at_any_state_changing_call_leaves_nothing(
    tmp_path: Path, before: dict[str, int]
) -> None:
    when = 1
    while killed_at(when, tmp_path / str(when)):
        assert not any(settled(before).values()), when
        when += STRIDE
    assert when > 100
