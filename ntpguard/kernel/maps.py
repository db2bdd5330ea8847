"""The pinned maps of one network namespace, opened."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ntpguard import abi
from ntpguard.errors import NtpguardError
from ntpguard.kernel import bpffs, libbpf

# bytes of a key and of a value; the kernel writes as many as the pinned map has, hence they are
# compared before anything is read
SIZES = {
    "sources": (4, abi.size(abi.Bucket)),
    "shared": (4, abi.size(abi.Shared)),
    "policy": (4, abi.size(abi.Policy)),
    "prefixes_ipv4": (4, 4),
    "prefixes_ipv6": (4, 4),
    "entries_ipv4": (abi.size(abi.PrefixIpv4), abi.size(abi.Entry)),
    "entries_ipv6": (abi.size(abi.PrefixIpv6), abi.size(abi.Entry)),
    "leak": (4, 8),
    "local": (4, abi.size(abi.Local)),
    "addresses": (abi.size(abi.Address), 4),
    "document": (4, abi.size(abi.Document)),
    "table": (4, abi.size(abi.Table)),
    "table_counters": (4, abi.size(abi.TableCounters)),
    "signature_counters": (4, abi.size(abi.SignatureCounters)),
    "offenders": (8, abi.size(abi.Offender)),
    "trials": (8, abi.size(abi.Trial)),
    "kod_counters": (4, abi.size(abi.KodCounters)),
    "counters": (4, abi.size(abi.Counters)),
}
SHARED_MAPS = tuple(name for name in SIZES if name != "counters")
NAME_LENGTH = 15  # of what the kernel keeps of a map's name
AGAIN = "run ntpguard down first (sources are forgotten), then ntpguard up"
PROGRAM = "ntpguard"


class Unusable(NtpguardError):
    """What is pinned is not what this version of ntpguard pins there, or is not there."""


def object_path() -> Path:
    """The compiled program, as installed; NTPGUARD_OBJECT names another."""
    path = Path(os.environ.get("NTPGUARD_OBJECT", Path(__file__).parents[1] / "ntpguard.bpf.o"))
    if not path.is_file():
        raise NtpguardError(f"{path}: no such file: the installation is not whole: reinstall it")
    return path


def object_digest() -> str:
    """The first 16 hexadecimal digits of the compiled program's SHA-256: they tell builds apart."""
    return hashlib.sha256(object_path().read_bytes()).hexdigest()[:16]


@contextmanager
def descriptor(path: Path, *, read_only: bool = False) -> Iterator[int]:
    """A descriptor of what is pinned at `path`, closed again. Raises Unusable."""
    fd = _open(path, read_only=read_only)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened(at: Path, *, read_only: bool = False) -> Iterator[dict[str, int]]:
    """Descriptors of the maps pinned in the directory `at`, by name.

    Raises Unusable if one is missing, or another thing.
    """
    require_whole(at)
    descriptors: dict[str, int] = {}
    try:
        for name in SHARED_MAPS:
            descriptors[name] = _open(at / name, read_only=read_only)
        yield descriptors
    finally:
        for fd in descriptors.values():
            os.close(fd)


def _open(path: Path, *, read_only: bool) -> int:
    """A descriptor of what is pinned, if that is what its name says."""
    kind = path.name if path.name in ("link", "program") else "map"
    wanted = kind if kind != "map" else _words(path.name[:NAME_LENGTH], *SIZES[path.name])
    if path.is_symlink() or path.is_dir():
        raise _unusable(path, "symbolic link" if path.is_symlink() else "directory", wanted)
    fd = libbpf.obj_get(path, read_only=read_only)
    try:
        found = libbpf.kind(fd)
        if found == kind == "map":
            info = libbpf.map_info(fd)
            # without a name where libbpf took the kernel for one that knows none
            name = info.name.decode(errors="replace") or path.name[:NAME_LENGTH]
            found = _words(name, int(info.key_size), int(info.value_size))
        if found != wanted:
            raise _unusable(path, found, wanted)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _words(name: str, key_bytes: int, value_bytes: int) -> str:
    return f"map {name} ({key_bytes} + {value_bytes} bytes)"


def _unusable(path: Path, found: str, wanted: str) -> Unusable:
    return Unusable(
        f"{path}: a {found} is there, not this version's {wanted}: another version of ntpguard "
        f"made it, or it is damaged: {AGAIN}"
    )


def require_whole(at: Path) -> None:
    """Raises Unusable, naming what is missing, unless every map is pinned in `at`."""
    missing = [name for name in SHARED_MAPS if not (at / name).exists()]
    if missing:
        raise Unusable(
            f"{at}: no {', '.join(missing)} in it: another version of ntpguard made these maps, or "
            f"they are damaged: {AGAIN}"
        )


def live_links(at: Path) -> dict[int, Path]:
    """Interface index -> its directory, for links that are attached: a link whose interface went
    away stays pinned, but guards nothing; nor does what is no link.
    """
    found = {}
    for ifindex, own in bpffs.attached(at).items():
        with suppress(Unusable), descriptor(own / "link") as fd:
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
