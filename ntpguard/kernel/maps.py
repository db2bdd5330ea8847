"""The pinned maps of one network namespace, opened."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntpguard.errors import NtpguardError
from ntpguard.kernel import libbpf

SHARED_MAPS = (
    "sources",
    "shared",
    "policy",
    "prefixes_ipv4",
    "prefixes_ipv6",
    "entries_ipv4",
    "entries_ipv6",
    "leak",
    "local",
    "addresses",
    "document",
    "table",
    "table_counters",
    "signature_counters",
    "offenders",
)
INTERFACE_MAPS = ("counters",)
PROGRAM = "ntpguard"


def object_path() -> Path:
    """The compiled program, as installed; NTPGUARD_OBJECT names another."""
    path = Path(os.environ.get("NTPGUARD_OBJECT", Path(__file__).parents[1] / "ntpguard.bpf.o"))
    if not path.is_file():
        raise NtpguardError(f"{path}: no such file: the installation is not whole: reinstall it")
    return path


@contextmanager
def descriptor(path: Path, *, read_only: bool = False) -> Iterator[int]:
    """A descriptor of what is pinned at `path`, closed again."""
    fd = libbpf.obj_get(path, read_only=read_only)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened(at: Path, *, read_only: bool = False) -> Iterator[dict[str, int]]:
    """Descriptors of the maps pinned in the directory `at`, by name."""
    descriptors: dict[str, int] = {}
    try:
        for name in SHARED_MAPS:
            descriptors[name] = libbpf.obj_get(at / name, read_only=read_only)
        yield descriptors
    finally:
        for fd in descriptors.values():
            os.close(fd)


def are_whole(at: Path) -> bool:
    """Whether every map is pinned in `at`."""
    return all((at / name).exists() for name in SHARED_MAPS)
