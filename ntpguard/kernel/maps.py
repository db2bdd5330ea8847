"""The pinned maps of one network namespace, opened."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntpguard.errors import NtpguardError
from ntpguard.kernel import bpffs, libbpf

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
    "trials",
    "kod_counters",
)
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
    """Descriptors of the maps pinned in the directory `at`, by name.

    Raises NtpguardError if one is missing.
    """
    require_whole(at)
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


def require_whole(at: Path) -> None:
    """Raises NtpguardError, naming what is missing, unless every map is pinned in `at`."""
    missing = [name for name in SHARED_MAPS if not (at / name).exists()]
    if missing:
        raise NtpguardError(
            f"{at}: no {', '.join(missing)} in it: another version of ntpguard made these maps: "
            "run ntpguard down first (sources are forgotten), then ntpguard up"
        )


def live_links(at: Path) -> dict[int, Path]:
    """Interface index -> its directory, for links that are attached: a link whose interface went
    away stays pinned, but guards nothing.
    """
    found = {}
    for ifindex, own in bpffs.attached(at).items():
        with descriptor(own / "link") as fd:
            if libbpf.link_info(fd).ifindex:
                found[ifindex] = own
    return found


def constants(own: Path) -> bytes:
    """The load-time constants of the program that the link pinned in `own` runs.

    Raises PermissionNeeded without CAP_SYS_ADMIN, which the kernel wants for ids.
    """
    with descriptor(own / "link") as link:
        program = libbpf.prog_by_id(libbpf.link_info(link).prog_id)
    try:
        for identifier in libbpf.prog_map_ids(program):
            fd = libbpf.map_by_id(identifier)
            try:
                info = libbpf.map_info(fd)
                if info.name.startswith(b".rodata.const"):
                    return libbpf.map_lookup(fd, bytes(4), info.value_size) or b""
            finally:
                os.close(fd)
    finally:
        os.close(program)
    raise NtpguardError(f"{own}: the program has no load-time constants")
