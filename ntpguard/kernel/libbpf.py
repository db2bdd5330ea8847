"""The part of libbpf that ntpguard needs, typed. Moves bytes; knows no policy word.

Every call either succeeds or raises BpfError (PermissionNeeded for EPERM and EACCES) that says what
was tried and how to mend it.
"""

import ctypes
import errno
import mmap
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ntpguard.errors import NtpguardError
from ntpguard.kernel.binding import (
    BatchOpts,
    GetOpts,
    LinkCreateOpts,
    LinkInfo,
    MapCreateOpts,
    MapInfo,
    ProgInfo,
    check,
    failed,
    library,
)

BPF_XDP = 37
MAP_LPM_TRIE = 11
F_NO_PREALLOC = 1
F_RDONLY = 1 << 3
F_XDP_HAS_FRAGS = 1 << 5
XDP_FLAGS_SKB_MODE = 2
XDP_FLAGS_DRV_MODE = 4
LOG_TAIL_LINES = 15

InfoT = TypeVar("InfoT", ProgInfo, MapInfo, LinkInfo)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_libc = ctypes.CDLL(None)
_libc.vasprintf.restype = c_int
_libc.vasprintf.argtypes = [POINTER(c_void_p), c_void_p, c_void_p]
_libc.free.restype = None
_libc.free.argtypes = [c_void_p]
_messages: list[str] = []


def _collect(_level: int, text: int, arguments: int) -> int:
    """libbpf's messages go into the error that follows them, not to stderr.

    A verifier's log is one message of up to 16 MiB whose end says why: no buffer of a fixed size.
    """
    message = c_void_p()
    length = _libc.vasprintf(ctypes.byref(message), text, arguments)
    if length >= 0:
        written = ctypes.string_at(message.value or 0, length)
        _libc.free(message)
        _messages.extend(written.decode(errors="replace").splitlines())
        del _messages[:-200]
    return 0


_print = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)(_collect)


def _listening() -> Any:
    """The library, from now on telling us: bcc, which may share it, takes all messages."""
    found = library()
    _messages.clear()
    found.libbpf_set_print(ctypes.cast(_print, c_void_p))
    return found


def _tail() -> str:
    told = (line for line in _messages if line.strip() and "created successfully" not in line)
    lines = list(told)[-LOG_TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines)


class Object:
    """A compiled BPF object: open, set what load time decides, load, use, close."""

    def __init__(self, path: Path) -> None:
        """Parses the object at `path`; nothing is in the kernel yet."""
        self._path = path
        listening = _listening()
        with uninterrupted():  # an exception inside _collect would be lost
            pointer = listening.bpf_object__open_file(os.fsencode(path), None)
        if not pointer:
            raise failed(f"{path}: cannot open the BPF object", ctypes.get_errno(), _tail())
        self._pointer: int | None = pointer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives back every descriptor of the object: what is not pinned or attached ends."""
        if self._pointer:
            library().bpf_object__close(self._pointer)
            self._pointer = None

    def _map(self, name: str) -> int:
        found: int | None = library().bpf_object__find_map_by_name(self._pointer, name.encode())
        if not found:
            raise NtpguardError(f"{self._path}: no map {name}: not an object of this version")
        return found

    def _program(self, name: str) -> int:
        found: int | None = library().bpf_object__find_program_by_name(self._pointer, name.encode())
        if not found:
            raise NtpguardError(f"{self._path}: no program {name}: not an object of this version")
        return found

    def set_constants(self, value: bytes) -> None:
        """Sets the load-time constants: the whole of the object's .rodata.constants."""
        size = c_size_t()
        address = library().bpf_map__initial_value(
            self._map(".rodata.constants"), ctypes.byref(size)
        )
        if not address or size.value != len(value):
            raise NtpguardError(
                f"{self._path}: not an object of this version: its constants differ"
            )
        ctypes.memmove(address, value, len(value))

    def set_max_entries(self, name: str, entries: int) -> None:
        """Sizes a map before it is loaded."""
        check(
            library().bpf_map__set_max_entries(self._map(name), entries),
            f"map {name}: {entries} entries",
        )

    def reuse_map(self, name: str, fd: int) -> None:
        """Uses the map behind `fd` as the object's map `name`."""
        check(library().bpf_map__reuse_fd(self._map(name), fd), f"map {name}: reuse")

    def set_frags(self, program: str, on: bool) -> None:
        """Whether the program accepts frames of several buffers (jumbo frames; Linux 5.18)."""
        pointer = self._program(program)
        flags = library().bpf_program__flags(pointer) & ~F_XDP_HAS_FRAGS
        check(
            library().bpf_program__set_flags(pointer, flags | (F_XDP_HAS_FRAGS if on else 0)),
            f"program {program}: frags",
        )

    def leave_out(self, program: str) -> None:
        """Makes load() create the maps only: no need to wait for the verifier."""
        pointer = self._program(program)
        check(library().bpf_program__set_autoload(pointer, False), f"program {program}: leave")

    def load(self) -> None:
        """Creates the maps, verifies and loads the program.

        Raises BpfError with the end of the verifier's log.
        """
        listening = _listening()
        with uninterrupted():  # as above
            result = listening.bpf_object__load(self._pointer)
        if result < 0:
            detail = "" if result == -errno.EPERM else _tail()
            raise failed("loading the BPF program", -result, detail)

    def map_fd(self, name: str) -> int:
        """Descriptor of a loaded map; it belongs to the object."""
        return check(library().bpf_map__fd(self._map(name)), f"map {name}")

    def program_fd(self, name: str) -> int:
        """Descriptor of a loaded program; it belongs to the object."""
        return check(library().bpf_program__fd(self._program(name)), f"program {name}")


def obj_pin(fd: int, path: Path) -> None:
    """Pins a map, program or link at `path` in a bpffs."""
    check(library().bpf_obj_pin(fd, os.fsencode(path)), f"{path}: pin")


def obj_get(path: Path, *, read_only: bool = False) -> int:
    """A new descriptor of what is pinned at `path`; the caller closes it."""
    options = GetOpts(ctypes.sizeof(GetOpts), F_RDONLY if read_only else 0)
    return check(library().bpf_obj_get_opts(os.fsencode(path), options), f"{path}: open")


def kind(fd: int) -> str:
    """What a descriptor is of: map, program or link."""
    word = os.readlink(f"/proc/self/fd/{fd}").partition("bpf")[2].lstrip("-_")
    return "program" if word == "prog" else word


def map_create(
    kind: int, name: str, key_size: int, value_size: int, entries: int, flags: int = 0
) -> int:
    """A new map's descriptor; the caller closes it. Sizes in bytes."""
    options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=flags)
    return check(
        library().bpf_map_create(kind, name.encode(), key_size, value_size, entries, options),
        f"map {name}: create with {entries} entries",
    )


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of `key`, or None if the map has none."""
    value = ctypes.create_string_buffer(value_size)
    result = library().bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    check(result, "map lookup")
    return value.raw


def map_lookup_percpu(fd: int, key: bytes, value_size: int) -> list[bytes]:
    """The value of `key` on each possible CPU; value_size as declared."""
    stride = (value_size + 7) & ~7
    raw = map_lookup(fd, key, stride * possible_cpus())
    assert raw is not None, "a per-CPU array has every key"
    return [raw[i : i + value_size] for i in range(0, len(raw), stride)]


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Sets `key` to `value`."""
    check(library().bpf_map_update_elem(fd, key, value, 0), "map update")


def map_update_all(fd: int, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """Sets many keys with one system call where the kernel can (Linux 5.6; tries: 5.7)."""
    if not pairs:
        return
    count = c_uint32(len(pairs))
    keys = b"".join(key for key, _ in pairs)
    values = b"".join(value for _, value in pairs)
    options = BatchOpts(sz=ctypes.sizeof(BatchOpts))
    result = library().bpf_map_update_batch(fd, keys, values, ctypes.byref(count), options)
    if result < 0:
        for key, value in pairs:
            map_update(fd, key, value)


def map_delete(fd: int, key: bytes) -> None:
    """Removes `key`; its absence is no error."""
    result = library().bpf_map_delete_elem(fd, key)
    if result != -errno.ENOENT:
        check(result, "map delete")


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Every key of a hash; those that come or go meanwhile may be missed."""
    key: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    while True:
        result = library().bpf_map_get_next_key(fd, key, following)
        if result == -errno.ENOENT:
            return
        check(result, "map keys")
        key = following.raw
        yield key


def map_items(
    fd: int, key_size: int, value_size: int, entries: int
) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a map that has at most so many, with one system call where the kernel
    can (Linux 5.6; tries: 5.7); those that come or go meanwhile may be missed.
    """
    keys = ctypes.create_string_buffer(max(1, entries) * key_size)
    values = ctypes.create_string_buffer(max(1, entries) * value_size)
    count = c_uint32(max(1, entries))
    last = ctypes.create_string_buffer(key_size)
    options = BatchOpts(sz=ctypes.sizeof(BatchOpts))
    result = library().bpf_map_lookup_batch(
        fd, None, last, keys, values, ctypes.byref(count), options
    )
    if result < 0 and result != -errno.ENOENT:
        for key in map_keys(fd, key_size):
            value = map_lookup(fd, key, value_size)
            if value is not None:
                yield key, value
        return
    all_keys, all_values = keys.raw, values.raw
    for i in range(count.value):
        yield (
            all_keys[i * key_size : (i + 1) * key_size],
            all_values[i * value_size : (i + 1) * value_size],
        )


def map_by_id(identifier: int) -> int:
    """A new descriptor of the map with this id; the caller closes it."""
    return check(library().bpf_map_get_fd_by_id(identifier), f"map {identifier}: open")


def link_detach(link: int) -> None:
    """Detaches the program at once; the end of its last pin does so a moment later only."""
    check(library().bpf_link_detach(link), "detaching the XDP program")


def _info(fd: int, info: InfoT) -> InfoT:
    length = c_uint32(ctypes.sizeof(info))
    check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), length), "object info")
    return info


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    return _info(fd, MapInfo())


def map_memory(fd: int) -> int:
    """Bytes of kernel memory that a map takes."""
    (text,) = re.findall(
        r"^memlock:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii"), re.M
    )
    return int(text)


def map_mmap(fd: int, length: int, *, writable: bool = False) -> mmap.mmap:
    """`length` bytes of a memory-mapped array, from its first value on."""
    page = mmap.PAGESIZE
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        return mmap.mmap(fd, -(-length // page) * page, mmap.MAP_SHARED, protection)
    except OSError as error:
        raise failed(f"mapping {length} bytes of a map", error.errno or 0) from None


def link_create(program: int, ifindex: int, flags: int) -> int:
    """Attaches an XDP program; the link ends with its last descriptor or pin."""
    options = LinkCreateOpts(sz=ctypes.sizeof(LinkCreateOpts), flags=flags)
    return check(
        library().bpf_link_create(program, ifindex, BPF_XDP, options), "attaching the XDP program"
    )


def link_update(link: int, program: int) -> None:
    """Swaps the program of a link, atomically."""
    check(library().bpf_link_update(link, program, None), "swapping the XDP program")


def link_info(fd: int) -> LinkInfo:
    """What the kernel says of a link."""
    return _info(fd, LinkInfo())


def prog_info(fd: int) -> ProgInfo:
    """What the kernel says of a program."""
    return _info(fd, ProgInfo())


def prog_map_ids(fd: int) -> list[int]:
    """Ids of the maps that a program uses, its constants among them."""
    ids = (c_uint32 * 64)()
    info = ProgInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    return list(ids[: _info(fd, info).nr_map_ids])


def prog_by_id(identifier: int) -> int:
    """A new descriptor of the program with this id; the caller closes it."""
    return check(library().bpf_prog_get_fd_by_id(identifier), f"program {identifier}: open")


def version() -> str:
    """Major and minor of the library, like 1.1. Raises NtpguardError if there is none."""
    return f"{library().libbpf_major_version()}.{library().libbpf_minor_version()}"


def possible_cpus() -> int:
    """How many values a per-CPU map has."""
    return check(library().libbpf_num_possible_cpus(), "possible CPUs")
