"""A Debian on a kernel of its own, under software emulation: what a container shares with its host, a
systemd that mounts its own bpffs and a network driver with queues are real here.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bpf.daemon import wait_for
from tests.deploy.chroot import ROOT, Chroot
from tests.deploy.machine import Machine
from tests.deploy.net import ip

KERNEL = ROOT / "build/kernels/bookworm/root"
MODULES = ("virtio*", "net_failover*", "failover*", "inet_diag*", "udp_diag*")
TAP = "tap0"
# the root is a tmpfs: no disk, and a sandbox cannot be made on the initramfs itself
INIT = """#!/bin/sh
mkdir /new
mount -t tmpfs -o size=90% tmpfs /new
for one in /*; do
	[ "$one" = /new ] || cp -ax "$one" /new
done
exec switch_root /new /sbin/init
"""
SERVE = '''"""Runs commands that come on a serial port."""
import json, os, subprocess, tty
port = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
tty.setraw(port)
with os.fdopen(port, "r+b", buffering=0) as lines:
    lines.write(b"\\nready\\n")
    for line in lines:
        done = subprocess.run(
            json.loads(line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )
        lines.write(json.dumps([done.returncode, done.stdout]).encode() + b"\\n")
'''
UNIT = "[Service]\nExecStart=/usr/bin/python3 /root/serve.py\nEnvironment=HOME=/root\n"


@dataclass(frozen=True)
class Emulated(Machine):
    """`port`: the emulator; commands and their outcome are lines on its streams. `root` is what it
    was made of, and no more.
    """

    port: subprocess.Popen[str]

    def run(self, *words: str, code: int | None = 0) -> str:
        """See Machine."""
        assert self.port.stdin and self.port.stdout
        self.port.stdin.write(json.dumps(words) + "\n")
        self.port.stdin.flush()
        returned, said = json.loads(self.port.stdout.readline())
        assert code is None or returned == code, f"{words}: {returned}\n{said}"
        return str(said)

    def write(self, path: str, text: str) -> None:
        """A file inside."""
        self.run("sh", "-c", 'printf %s "$1" >"$0"', path, text)


def _pack(root: Chroot, archive: Path) -> None:
    """The whole of it as an initramfs, with the modules of a network card."""
    [release] = (KERNEL / "lib/modules").iterdir()
    for pattern in MODULES:
        for module in release.rglob(f"{pattern}.ko"):
            inside = root / f"/usr/lib/modules/{module.relative_to(release.parent)}"
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(module, inside)
    for index in release.glob("modules.*"):
        shutil.copy(index, root / f"/usr/lib/modules/{release.name}")
    subprocess.run(["depmod", "--basedir", str(root.path), release.name], check=True)
    (root / "/etc/modules-load.d/test.conf").write_text("virtio_pci\nvirtio_net\n")
    (root / "/init").write_text(INIT)
    (root / "/init").chmod(0o755)
    (root / "/root/serve.py").write_text(SERVE)
    (root / "/etc/systemd/system/serve.service").write_text(UNIT)
    for heavy in ("var/cache/apt", "var/lib/apt/lists", "usr/share/locale"):
        shutil.rmtree(root.path / heavy)
    with archive.open("wb") as out:
        subprocess.run(
            "find . -xdev -print0 | cpio --null --create --format=newc --quiet",
            shell=True, cwd=root.path, stdout=out, check=True,
        )  # fmt: skip


@contextmanager
def emulated(root: Chroot) -> Iterator[Emulated]:
    """Boots it, with eth0 at TAP, an interface in this network namespace; killed in the end. What it
    says on its console lies in build/deploy/console.
    """
    archive = root.path.parent / "initramfs"
    _pack(root, archive)
    ip("tuntap", "add", "dev", TAP, "mode", "tap")
    [kernel] = KERNEL.rglob("vmlinuz*")
    command = [
        "qemu-system-x86_64", "-machine", "accel=tcg", "-cpu", "max", "-smp", "2", "-m", "2G",
        "-nodefaults", "-no-reboot", "-display", "none",
        "-serial", f"file:{ROOT / 'build/deploy/console'}", "-serial", "stdio",
        "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no",
        "-device", "virtio-net-pci,netdev=net",
        "-kernel", str(kernel), "-initrd", str(archive), "-append",
        "console=ttyS0 panic=-1 systemd.getty_auto=no systemd.show_status=no "
        "systemd.wants=serve.service quiet",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as emulator:
        try:
            assert emulator.stdout
            while (line := emulator.stdout.readline()) != "ready\n":
                assert line, "the machine is gone: see build/deploy/console"
            one = Emulated(root, emulator.pid, emulator)
            wait_for(
                lambda: (
                    one.run("systemctl", "is-system-running", code=None).strip()
                    in ("running", "degraded")
                ),
                "the machine is up",
            )
            yield one
        finally:
            emulator.kill()
            emulator.wait()
            ip("link", "del", TAP)
