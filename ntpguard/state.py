"""The state directory: what must outlast a reboot, each file replaced whole. How files are read."""

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

STATE = "/var/lib/ntpguard"
MOST_BYTES = 64 << 20  # four million prefixes


def directory() -> Path:
    """systemd's STATE_DIRECTORY, else /var/lib/ntpguard."""
    return Path(os.environ.get("STATE_DIRECTORY", STATE).split(":")[0])


def replace(target: Path, texts: Iterable[str]) -> None:
    """Puts a file of these texts in the place of another, whole and on the disk, or not at all.
    Only its owner may read it. Raises OSError; then the file is as it was.
    """
    new = target.with_suffix(".new")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as one:
            one.writelines(texts)
            one.flush()
            os.fsync(one.fileno())
        new.rename(target)
        parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def bytes_of(file: Path) -> bytes:
    """What a file holds. Raises OSError, also for one that does not end, like /dev/zero."""
    with file.open("rb") as one:
        return rest_of(one)


def rest_of(one: BinaryIO) -> bytes:
    """What is left of an open file. Raises as bytes_of does."""
    raw = one.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MOST_BYTES >> 20} MiB")
    return raw
