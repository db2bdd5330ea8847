"""make demo, ended before its time: what is left of it."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.demo import leftovers
from tests.lab.lab import ROOT
from tests.lab.test_lab import pytestmark

__all__ = ["pytestmark"]
DEMO = ["make", "-s", "demo", "DEMO=--seconds 1"]
NOTHING = dict.fromkeys(("namespaces", "pins", "mounts", "processes"), 0)
STAGES = ("making two namespaces", "without ntpguard: ", "eth0: guarded")
# what changes the state of the kernel or of the file system
CHANGING = "bpf,mount,umount2,unshare,setns,mkdir,rename,unlink,unlinkat,rmdir,sendmsg"
# CI tries one in STRIDE; NTPGUARD_EVERY_CALL=1 tries each
STRIDE = 40


def nothing_is_left() -> bool:
    """Whether nothing is left, or not after a while: what was killed needs a moment to end."""
    for _ in range(100):
        if leftovers() == NOTHING:
            return True
        time.sleep(0.1)
    return False


def test_the_demonstration_leaves_nothing_and_shows_each_kind_of_client() -> None:
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True)
    assert "left behind: 0 namespaces, 0 pins, 0 mounts, 0 processes" in done.stdout, done.stderr
    for kind in ("polite", "hasty", "abuser", "chronyd4", "chronyd6"):
        assert len(re.findall(rf"^{kind} +[1-9]", done.stdout, re.M)) == 2, done.stdout
    # the share of the polite depends on how busy this machine is, in so short a time
    claims = re.findall(r"^(true|false) +(?!polite)(.*)$", done.stdout, re.M)
    assert [true for true, _ in claims] == ["true"] * 4, done.stdout
    assert nothing_is_left()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demonstration_leaves_nothing(how: signal.Signals, stage: str) -> None:
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
        assert "left behind: 0 namespaces, 0 pins, 0 mounts, 0 processes" in rest
    assert nothing_is_left(), leftovers()


def killed_at(when: int, log: Path) -> bool:
    """Kills make demo, its outermost process, when its processes have made `when` changing calls.

    Each of them is stopped after each such call, so that nothing more happens before the kill.
    Returns False if there were not so many calls.
    """
    os.mkfifo(log)
    strace = ["strace", "-D", "-f", "-qq", "-o", str(log), "-e", f"trace={CHANGING}"]
    process = subprocess.Popen(
        [*strace, "-e", f"inject={CHANGING}:signal=STOP", *DEMO],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    calls = 0
    with log.open() as lines:
        for line in lines:
            if " = " not in line:
                continue
            calls += 1
            if calls == when:
                process.kill()
            elif calls < when:
                os.kill(int(line.split()[0]), signal.SIGCONT)
    process.wait(30)
    return calls >= when


@pytest.mark.timeout(7200)
def test_a_demonstration_killed_at_any_state_changing_call_leaves_nothing(tmp_path: Path) -> None:
    when = 1
    while killed_at(when, tmp_path / str(when)):
        assert nothing_is_left(), (when, leftovers())
        when += 1 if "NTPGUARD_EVERY_CALL" in os.environ else STRIDE
    assert when > STRIDE
