"""A guard that runs, changed by the command line; packets go through its pinned program."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from ntpguard import abi, lifecycle, reading
from ntpguard.cli import main
from ntpguard.kernel import bpffs, interfaces, maps
from ntpguard.policy.model import Policy
from tests import NTPGUARD, testrun
from tests.bpf.guard import part
from tests.bpf.packets import Frame
from tests.bpf.test_lifecycle import NAMES, up

Send = Callable[[Frame], abi.Xdp]


def told(*arguments: str) -> str:
    """Runs a command that succeeds: what it prints, messages included."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output
    return str(done.output)


def refused(*arguments: str) -> str:
    """Runs a command that is refused as wrongly used: why."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2, done.output
    return str(done.output)


def data(*arguments: str) -> Any:
    """What a command that succeeds says in JSON."""
    return json.loads(told("-o", "json", *arguments))["data"]


@contextmanager
def packets(where: Path) -> Iterator[Send]:
    """Sends frames to the guarded interface, by the program that is pinned."""
    own = next(iter(bpffs.attached(bpffs.pins(where)).values()))
    mac = interfaces.interface(NAMES[0]).mac
    with maps.descriptor(own / "program") as program:

        def send(frame: Frame) -> abi.Xdp:
            return abi.Xdp(testrun.run(program, bytes(frame.but(destination_mac=mac)))[0])

        yield send


def up_kissing(where: Path, client: str, policy: Policy) -> None:
    """Until the client is one that is kissed at once: each time, another hash decides."""
    while True:
        up(where, policy=policy)
        with reading.open_running(where) as running:
            if part(client, running.seed) > abi.PART_TRIED:
                return
        lifecycle.down(None, bpffs=where)


def logged(log: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command where /dev has nothing but a log at `log`, if that is there."""
    script = (
        'mount -t tmpfs tmpfs /dev && { [ ! -e "$1" ] || ln -s "$1" /dev/log; } && shift && '
        'touch /dev/null && exec ntpguard "$@"'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(log), *arguments]
    path = f"{Path(NTPGUARD).parent}:{os.environ['PATH']}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SUDO_")}
    return subprocess.run(
        command, capture_output=True, text=True, env={**clean, "PATH": path, **environment}
    )
