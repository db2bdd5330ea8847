"""A Debian that is booted, its own systemd as process 1, in the network namespace of the test."""

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bpf.daemon import wait_for
from tests.deploy.chroot import Chroot

CAPABILITIES = "CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON"


@dataclass(frozen=True)
class Machine:
    """`leader`: its systemd, as seen from here."""

    root: Chroot
    leader: int

    def run(self, *words: str, code: int | None = 0) -> str:
        """What a command inside prints on both streams; asserts its exit code, unless None."""
        inside = ["env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        enter = ["nsenter", "--all", "--target", str(self.leader)]
        done = subprocess.run(
            [*enter, *inside, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def systemctl(self, *words: str, code: int | None = 0) -> str:
        """See `run`."""
        return self.run("systemctl", "--no-pager", *words, code=code)

    def shown(self, name: str, unit: str = "ntpguard.service") -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str = "ntpguard.service") -> str:
        """What a unit has logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


def _leader(nspawn: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    wait_for(lambda: bool(children.read_text().split()), "systemd-nspawn starts a system")
    return int(children.read_text().split()[0])


@contextmanager
def booted(
    root: Chroot, *, within: str | None = None, binds: Iterable[str] = ()
) -> Iterator[Machine]:
    """Boots it; killed in the end. The root's own mounts are left to the machine. `within`: another
    network namespace; `binds`: as nspawn has them, folder:folder.
    """
    for where in ("sys/fs/bpf", "sys", "proc", "run"):
        subprocess.run(["umount", str(root.path / where)], check=True)
    (root / "/usr/sbin/policy-rc.d").unlink()
    # what systemd does on a machine, and not in a container
    bpffs = root.path.parent / "bpf"
    bpffs.mkdir()
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "bpf", str(bpffs)], check=True)
    command = ["nsenter", f"--net=/run/netns/{within}"] if within else []
    command += ["systemd-nspawn", f"--directory={root.path}", "--boot"]
    command += [
        "--register=no",
        "--keep-unit",
        f"--machine={within or 'ntpguard'}",
        "--console=pipe",
    ]
    command += [f"--bind={bpffs}:/sys/fs/bpf", f"--capability={CAPABILITIES}"]
    command += [f"--bind-ro={one}" for one in binds]
    command += ["--system-call-filter=bpf"]  # containers are forbidden it
    # the whole of /sys, as on a machine: without this there is no fs/bpf
    environment = {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "--lazy", str(bpffs)], check=True)
        nspawn = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        )
        stack.callback(nspawn.wait)
        stack.callback(nspawn.kill)
        leader = _leader(nspawn)
        stack.callback(nspawn.wait)
        stack.callback(os.kill, leader, signal.SIGKILL)  # and with it all the others
        one = Machine(root, leader)
        wait_for(
            lambda: (
                one.run("systemctl", "is-system-running", code=None).strip()
                in ("running", "degraded")
            ),
            "the machine is up",
        )
        yield one
