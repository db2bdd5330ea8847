"""Boots Debian kernels under software emulation; each has to do what guest.py asks.

The machine has this host's files (init). There the whole of tests/bpf runs, and a chronyd of the lab;
with --judging, only what judges packets. Each machine replaces its outcome in RESULT.json; what it said
lies in its folder, and with --rest a test that has passed there with the same program is not run again:
for hours that do not fit in one sitting. Arguments: folders with unpacked kernel packages (fetch). The
program is ntpguard's, or NTPGUARD_OBJECT's.

Both processors of a machine are one thread here: with one for each, Linux 6.12 dies sooner or later, of
"Oops: int3" where it is patching itself (https://github.com/multipath-tcp/mptcp_net-next/issues/471).
"""

import argparse
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ntpguard.kernel import maps
from tests.run import ROOT

RESULT = Path(__file__).with_name("RESULT.json")
FLOOR = (5, 15)
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
# what the root needs; and what would be loaded only by a device file that is not there without it
MODULES = ("virtio_pci", "virtiofs", "overlay", "tun")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS = 6 * 3600
NO_TEST_LEFT = "5"  # an exit code of pytest
STEPS = ("verify", "judge", "operate")
HASTY = "tests/lab/test_lab.py::test_a_hasty_chronyd_honours_the_kod_and_slows"
WHOLE = (
    f"{HASTY}[198.51.100.1-198.51.100.2-native]",
    f"{HASTY}[2001:db8::1-2001:db8::2-skb]",
    "tests/lab/test_lab.py::test_an_ntpdig_gets_the_time_through_the_guard",
    "tests/bpf",
)
JUDGING = (
    "tests/bpf/test_limit.py",
    "tests/bpf/test_packets.py",
    "tests/bpf/test_verifier.py",
    "tests/model/test_model.py",
)


@dataclass
class Outcome:
    """Of one machine. `left_out`: how many tests, by reason."""

    date: str
    kernel: str
    compiler: str
    steps: dict[str, str]
    instructions: int | None = None
    refused: str | None = None
    tests: list[str] = field(default_factory=list)
    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    lab_passed: int = 0
    seconds: int = 0
    right: bool = False

    def row(self) -> str:
        """A line of the summary."""
        counts = (self.passed, len(self.failed), sum(self.left_out.values()), self.lab_passed)
        figures = "".join(f"{one:>9}" for one in (*counts, self.seconds))
        end = "ok" if self.right else "FAILED"
        return f"{self.kernel:28} {self.compiler:16}{figures}  {self.refused or end}"


HEADING = f"{'kernel':28} {'object':16}" + "".join(
    f"{one:>9}" for one in ("passed", "failed", "left out", "lab", "seconds")
)


def outcome(
    report: str, lines: str, compiler: str, tests: Sequence[str], seconds: float
) -> Outcome:
    """What a machine's console and second port said, judged: below FLOOR, right is a message that
    names FLOOR.
    """
    named = re.search(r"^release: ((\d+)\.(\d+)\S*)", report, re.MULTILINE)
    release, major, minor = named.groups() if named else ("no release", "99", "0")
    steps = dict(re.findall(rf"^({'|'.join(STEPS)}): (ok|failed)$", report, re.MULTILINE))
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    one = Outcome(today, release, compiler, steps, tests=[*tests], seconds=round(seconds))
    if walked := re.search(r"^processed (\d+) insns", report, re.MULTILINE):
        one.instructions = int(walked[1])
    left_out = Counter[str]()
    for told in last(lines).values():
        if told["outcome"] == "failed":
            one.failed[told["test"]] = told["why"]
        elif told["outcome"] == "skipped":
            left_out[told["why"]] += 1
        elif told["test"].startswith("tests/lab"):
            one.lab_passed += 1
        else:
            one.passed += 1
    one.left_out = dict(left_out)
    if (int(major), int(minor)) >= FLOOR:
        codes = dict(re.findall(r"^(tests|lab): exit code (-?\d+)$", report, re.MULTILINE))
        ended = "tests" in codes and set(codes.values()) <= {"0", NO_TEST_LEFT}
        well = steps == dict.fromkeys(STEPS, "ok") and not one.failed
        one.right = ended and well and one.passed > 0
    else:
        message = re.search(r"^ntpguard: .*\b{}\.{}\b.*".format(*FLOOR), report, re.MULTILINE)
        one.refused = message and message[0]
        one.right = message is not None and steps.get("operate") == "failed"
    return one


def last(lines: str) -> dict[str, dict[str, Any]]:
    """What was told of each test last: one that passes may yet fail when it is torn down."""
    return {told["test"]: told for told in map(json.loads, lines.splitlines())}


def initramfs(folder: Path, made: Path) -> None:
    """A busybox, the modules in the order of their loading, and init."""
    [release] = (folder / "lib/modules").iterdir()
    names = ["modprobe", "-d", folder, "-S", release.name, "--show-depends", "-a", *MODULES]
    # what it does not find is built in
    shown = subprocess.run(names, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for one in ("bin", "dev", "host", "layer", "modules", "new", "proc"):
            (tree / one).mkdir()
        shutil.copy("/bin/busybox", tree / "bin")
        shutil.copy(Path(__file__).with_name("init"), tree)
        for index, path in enumerate(dict.fromkeys(re.findall(r"^insmod (\S+)", shown, re.M))):
            raw = Path(path).read_bytes()
            raw = lzma.decompress(raw) if path.endswith(".xz") else raw
            (tree / f"modules/{index:02}.ko").write_bytes(raw)
        pack = "find . | cpio --create --format=newc --quiet"
        with made.open("wb") as out:
            subprocess.run(pack, shell=True, cwd=tree, stdout=out, check=True)


def boot(folder: Path, tests: Sequence[str], minutes: float, rest: bool) -> Outcome:
    """A machine, from its start to its end; after so many minutes it begins no test more. `rest`:
    without the tests that have passed there before, which count as well.
    """
    begin = time.monotonic()
    [kernel] = folder.rglob("vmlinuz*")
    program = maps.object_path()
    digest = hashlib.sha256(program.read_bytes()).hexdigest()[:12]
    files = {
        name: folder.parent.resolve() / f"{program.stem}.{digest}.{name}"
        for name in ("initramfs", "report", "tests", "passed")
    }
    initramfs(folder, files["initramfs"])
    told = last(files["tests"].read_text()) if rest and files["tests"].exists() else {}
    passed = [json.dumps(one) + "\n" for one in told.values() if one["outcome"] == "passed"]
    files["passed"].write_text("".join(passed))
    socket = folder.parent / "virtiofsd"
    socket.unlink(missing_ok=True)
    environment = {
        "ROOT": ROOT, "MODULES": (folder / "lib/modules").resolve(), "PATH": PATH, "HOME": "/root",
        "NTPGUARD_OBJECT": program.resolve(), "MINUTES": minutes, "PASSED": files["passed"],
    }  # fmt: skip
    words = [sys.executable, "-m", "tests.kernels.guest", *tests]
    command = [
        "qemu-system-x86_64", "-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=single",
        "-cpu", "max", "-smp", "2", "-m", "4G",
        "-object", "memory-backend-memfd,id=memory,size=4G,share=on",
        "-chardev", f"socket,id=host,path={socket}",
        "-device", "vhost-user-fs-pci,chardev=host,tag=host",
        "-nodefaults", "-no-reboot", "-display", "none",
        "-serial", f"file:{files['report']}", "-serial", f"file:{files['tests']}",
        "-kernel", kernel, "-initrd", files["initramfs"], "-append",
        "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable clocksource=tsc "
        + " ".join(f"{name}={value}" for name, value in environment.items())
        + f" -- {' '.join(words)}",
    ]  # fmt: skip
    share = [VIRTIOFSD, f"--socket-path={socket}", "-o", "source=/,cache=always,sandbox=chroot"]
    with subprocess.Popen(share, stderr=subprocess.DEVNULL) as daemon:
        try:
            while not socket.exists() and daemon.poll() is None:
                time.sleep(0.1)
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, stdin=subprocess.DEVNULL, timeout=SECONDS, check=True)
        finally:
            daemon.kill()
            socket.unlink(missing_ok=True)
    report, lines = (
        files[name].read_text(errors="replace").replace("\r", "") for name in ("report", "tests")
    )
    lines = files["passed"].read_text() + lines
    files["tests"].write_text(lines)
    compiled = re.search(rb"clang version ([\d.]+)", program.read_bytes())
    compiler = f"clang {compiled[1].decode()}" if compiled else program.name
    one = outcome(report, lines, compiler, tests, time.monotonic() - begin)
    if not one.right:
        print(f"{one.kernel}: this is not what it should be:\n{report}")
    print(HEADING, one.row(), sep="\n", flush=True)
    return one


def main() -> int:
    """The exit code: 0 only if each machine did what it has to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judging", action="store_true")
    parser.add_argument("--rest", action="store_true", help="what has not passed there yet")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of the tests")
    parser.add_argument("folders", type=Path, nargs="+")
    asked = parser.parse_args()
    tests = JUDGING if asked.judging else WHOLE
    outcomes = [boot(folder, tests, asked.minutes, asked.rest) for folder in asked.folders]
    machines = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    machines |= {f"{one.kernel}, {one.compiler}": asdict(one) for one in outcomes}
    RESULT.write_text(json.dumps(machines, indent=1) + "\n")
    print("", HEADING, *(one.row() for one in outcomes), sep="\n")
    return int(not all(one.right for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
