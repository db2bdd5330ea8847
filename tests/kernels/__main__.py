"""Boots Debian kernels under software emulation; each has to do what guest.py asks.

The machine is a kernel and an initramfs of the very files that guest.py needs on this host, which
is asked first. Arguments: folders with unpacked kernel packages (tests/kernels/fetch). The program
is ntpguard's, or NTPGUARD_OBJECT's; each machine's whole report lies in its folder.
"""

import io
import lzma
import re
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ntpguard.kernel import maps

FLOOR = (5, 15)
GUEST = "tests.kernels.guest"
PYTHON = Path(sys.executable).resolve()
LOADER = Path("/usr/lib64/ld-linux-x86-64.so.2")
SECONDS = 900
STEPS = ("verify", "judge", "operate")


def judged(report: str) -> bool:
    """Prints a report's outcome, and all of it if that is not what the release promises: below
    FLOOR, a message that names FLOOR.
    """
    named = re.search(r"release: ((\d+)\.(\d+)\S*)", report)
    release, major, minor = named.groups() if named else ("no release", "99", "0")
    steps = dict(re.findall(rf"^({'|'.join(STEPS)}): (ok|failed)$", report, re.MULTILINE))
    insns = [*re.findall(r"^processed (\d+) insns", report, re.MULTILINE), "?"][0]
    outcome = ", ".join(f"{step} {steps.get(step, 'missing')}" for step in STEPS)
    print(f"{release}: {outcome}; {insns} instructions walked", flush=True)
    if (int(major), int(minor)) >= FLOOR:
        right = steps == dict.fromkeys(STEPS, "ok")
    else:
        told = re.search(r"^ntpguard: .*\b{}\.{}\b.*".format(*FLOOR), report, re.MULTILINE)
        right = told is not None and steps["operate"] == "failed"
        print(told[0] if told else "")
    if not right:
        print(f"{release}: this is not what it should be:\n{report}", flush=True)
    return right


def here() -> str:
    """This host's report, and the names of the files that the guest needed."""
    command = ["tests/private", sys.executable, "-m", GUEST]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def needed(report: str) -> set[Path]:
    """Every file of the machine; of libraries, under the names that the loader looks for."""
    found = {Path(line) for line in report.splitlines() if line.startswith("/")}
    for library in [one for one in found if ".so" in one.name]:
        stem = re.split(r"[-.]", library.name)[0]
        found |= {one for one in library.parent.glob(f"{stem}*") if one.resolve() == library}
    return found | {PYTHON, maps.object_path().resolve(), LOADER}


def initramfs(files: Iterable[Path], module: bytes) -> bytes:
    """A cpio archive, "newc" (linux/Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = {str(parent) for one in files for parent in one.parents} - {"/"}
    entries = [(one, stat.S_IFDIR | 0o755, 0, b"") for one in sorted(folders | {"/proc", "/sys"})]
    for one in ("lib", "lib64"):
        entries.append((f"/{one}", stat.S_IFLNK | 0o777, 0, f"usr/{one}".encode()))
    for file in files:  # with their times: Python compares them with its compiled modules'
        entries.append(
            (str(file), stat.S_IFREG | 0o755, int(file.stat().st_mtime), file.read_bytes())
        )
    entries += [("/veth.ko", stat.S_IFREG | 0o644, 0, module), ("/TRAILER!!!", 0, 0, b"")]
    out = io.BytesIO()
    for inode, (name, mode, mtime, data) in enumerate(entries, 1):
        path = name[1:].encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(path), 0)
        for part in (b"070701" + b"".join(b"%08x" % one for one in fields) + path, data):
            out.write(part + bytes(-len(part) % 4))
    return out.getvalue()


def boot(folder: Path, files: Iterable[Path]) -> str:
    """A machine's report."""
    [kernel] = folder.rglob("vmlinuz*")
    [module] = folder.rglob("veth.ko*")
    raw = module.read_bytes()
    archive = folder / "initramfs"
    archive.write_bytes(initramfs(files, lzma.decompress(raw) if module.suffix == ".xz" else raw))
    path = ":".join(one for one in sys.path if one)
    command = [
        "qemu-system-x86_64", "-machine", "accel=tcg", "-cpu", "max", "-smp", "2", "-m", "2G",
        "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", kernel, "-initrd", archive, "-append",
        f"console=ttyS0 panic=-1 quiet PYTHONPATH={path} NTPGUARD_OBJECT={maps.object_path().resolve()} "
        f"rdinit={PYTHON} -- -m {GUEST} alone",
    ]  # fmt: skip
    with open(folder / "report", "wb+") as report:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=report, timeout=SECONDS, check=True
        )
        report.seek(0)
        return report.read().decode(errors="replace").replace("\r", "")


if __name__ == "__main__":
    host = here()
    outcomes = [judged(host)]
    outcomes += [judged(boot(Path(folder), needed(host))) for folder in sys.argv[1:]]
    sys.exit(not all(outcomes))
