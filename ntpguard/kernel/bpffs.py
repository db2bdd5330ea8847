"""Pins: what outlives the process, where it lies, and who may change it.

    <bpffs>/ntpguard/netns-<cookie>/          the maps of one network namespace
                     netns-<cookie>/if<N>/    link, program, counters of the interface with index N
                     netns-<cookie>-new/      a set that is being made; renamed when it is whole

The cookie (Linux 5.14) names a namespace for as long as the machine runs; an inode number would be
used again. bpffs refuses names with a dot, hence interfaces by index.
"""

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntpguard.errors import Busy, NtpguardError, PermissionNeeded

SO_NETNS_COOKIE = 71
DEFAULT = Path("/sys/fs/bpf")


def directory(bpffs: Path | None) -> Path:
    """Where the bpffs is: the option, else NTPGUARD_BPFFS, else /sys/fs/bpf."""
    return bpffs or Path(os.environ.get("NTPGUARD_BPFFS", DEFAULT))


def _mount_type(path: Path) -> str:
    """The type of the file system mounted at `path`, "" if nothing is."""
    found = ""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, where, kind, *_ = line.split()
        # a blank is written as \040 there
        if re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where) == str(path):
            found = kind
    return found


def require(bpffs: Path) -> None:
    """Raises NtpguardError if no bpffs is mounted there."""
    if _mount_type(bpffs.resolve()) != "bpf":
        raise NtpguardError(f"{bpffs}: no bpffs is mounted there: try mount -t bpf bpf {bpffs}")


def cookie() -> int:
    """The kernel's number of this network namespace (Linux 5.14), never used again.

    Raises NtpguardError on an older kernel.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            raw = one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            release = os.uname().release
            raise NtpguardError(f"Linux {release}: too old: 5.15 or newer is needed") from None
    return int.from_bytes(raw, "little")


def namespace() -> str:
    """Name of this network namespace's pins."""
    return f"netns-{cookie()}"


def pins(bpffs: Path) -> Path:
    """Directory of this network namespace's pins; it need not exist."""
    return bpffs / "ntpguard" / namespace()


def staging(bpffs: Path) -> Path:
    """Where a new set of pins is made."""
    return bpffs / "ntpguard" / f"{namespace()}-new"


def others(bpffs: Path) -> list[Path]:
    """Directories of pins of other network namespaces, those in the making included."""
    own = (pins(bpffs), staging(bpffs))
    return [one for one in sorted((bpffs / "ntpguard").glob("netns-*")) if one not in own]


def interface_pins(at: Path, ifindex: int) -> Path:
    """Directory of one interface's pins."""
    return at / f"if{ifindex}"


def attached(at: Path) -> dict[int, Path]:
    """Interface index -> its directory, for interfaces that have a link pinned."""
    found = {}
    for one in sorted(at.glob("if*")):
        number = one.name.removeprefix("if")
        if number.isdecimal() and os.path.lexists(one / "link"):
            found[int(number)] = one
    return found


def remove(path: Path) -> None:
    """Unpins everything below `path`; its absence is no error."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock(bpffs: Path, *, wait: bool = True) -> Iterator[None]:
    """One writer at a time on this host. Waits for the other, or raises Busy; raises
    PermissionNeeded, and NtpguardError for a bpffs that is read-only (also when a pin cannot be
    made or removed inside) or a directory that somebody else has made.
    """
    top = bpffs / "ntpguard"
    try:
        top.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except PermissionError:
        raise PermissionNeeded(
            f"{top}: permission denied: CAP_DAC_OVERRIDE (root) is needed: try sudo"
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise NtpguardError(f"{top}: not a directory: try rm {top}") from None
    except OSError as error:
        raise _unusable(top, error, bpffs) from None
    try:
        _require_own(fd, top)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(f"{top}: locked: another ntpguard command is at work") from None
        try:
            yield
        except OSError as error:
            if error.filename is None or not Path(error.filename).is_relative_to(top):
                raise
            raise _unusable(Path(error.filename), error, bpffs) from None
    finally:
        os.close(fd)


def _unusable(path: Path, error: OSError, bpffs: Path) -> NtpguardError:
    return NtpguardError(f"{path}: cannot be used: {error.strerror}: see findmnt {bpffs}")


def _require_own(fd: int, top: Path) -> None:
    """Raises NtpguardError for a directory in which somebody else may change pins: a bpffs that is
    mounted by hand lets everybody make one.
    """
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NtpguardError(
            f"{top}: belongs to uid {found.st_uid}, mode {found.st_mode & 0o7777:04o}: others "
            f"could take the guard down: if nothing runs, rm -r {top}, and try again"
        )
