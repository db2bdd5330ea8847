"""A typed binding of the part of libbpf that ntpguard needs. Moves bytes; knows no policy word.

The library is libbpf.so.1, else the libbpf behind bcc's own library. Every call either succeeds or
raises BpfError (PermissionNeeded for EPERM and EACCES) that says what was tried and how to mend it.
"""

import ctypes
import errno
import mmap
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ntpguard.errors import NtpguardError, PermissionNeeded

BPF_XDP = 37
MAP_LPM_TRIE = 11
F_NO_PREALLOC = 1
F_RDONLY = 1 << 3
F_XDP_HAS_FRAGS = 1 << 5
F_TEST_XDP_LIVE_FRAMES = 1 << 1
XDP_FLAGS_SKB_MODE = 2
XDP_FLAGS_DRV_MODE = 4
LOG_TAIL_LINES = 15


class BpfError(NtpguardError):
    """A BPF operation failed; `errno` is the kernel's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    ]


class _MapCreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    ]


class _GetOpts(ctypes.Structure):
    _fields_ = [("sz", c_size_t), ("file_flags", c_uint32)]


class _BatchOpts(ctypes.Structure):
    _fields_ = [("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64)]


class _TestRunOpts(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class ProgInfo(ctypes.Structure):
    """struct bpf_prog_info as far as its statistics (linux/bpf.h)."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
        ("unused", c_uint64 * 14),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
    ]


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info (linux/bpf.h)."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class LinkInfo(ctypes.Structure):
    """struct bpf_link_info of an XDP link; ifindex 0: its interface is gone."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("ifindex", c_uint32),
        ("rest", ctypes.c_uint8 * 64),
    ]


InfoT = TypeVar("InfoT", ProgInfo, MapInfo, LinkInfo)

_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__find_map_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_object__find_program_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_object__btf": (c_void_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_program__flags": (c_uint32, [c_void_p]),
    "bpf_program__set_flags": (c_int, [c_void_p, c_uint32]),
    "bpf_obj_pin": (c_int, [c_int, c_char_p]),
    "bpf_obj_get_opts": (c_int, [c_char_p, POINTER(_GetOpts)]),
    "bpf_map_create": (
        c_int,
        [c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(_MapCreateOpts)],
    ),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_map_update_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, POINTER(c_uint32), POINTER(_BatchOpts)],
    ),
    "bpf_map_lookup_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), POINTER(_BatchOpts)],
    ),
    "bpf_link_create": (c_int, [c_int, c_int, c_int, POINTER(_LinkCreateOpts)]),
    "bpf_link_update": (c_int, [c_int, c_int, c_void_p]),
    "bpf_link_detach": (c_int, [c_int]),
    "bpf_prog_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "bpf_prog_test_run_opts": (c_int, [c_int, POINTER(_TestRunOpts)]),
    "libbpf_major_version": (c_uint32, []),
    "libbpf_minor_version": (c_uint32, []),
    "libbpf_num_possible_cpus": (c_int, []),
    "libbpf_set_print": (c_void_p, [c_void_p]),
}


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


def _load_library() -> Any:
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        pass
    try:
        from bcc import lib

        if hasattr(lib, "bpf_object__open_file"):
            return lib
    except (ImportError, OSError):  # no bcc, or one that misses this very library
        pass
    raise NtpguardError("libbpf.so.1: not found: try apt-get install libbpf1")


@cache
def _library() -> Any:
    """The loaded library. Raises NtpguardError if there is none."""
    library = _load_library()
    for name, (result, arguments) in _PROTOTYPES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise NtpguardError(f"libbpf.so.1: no {name}: libbpf 1.0 or newer is needed") from None
        function.restype = result
        function.argtypes = arguments
    return library


_REMEDIES = {
    errno.ENOMEM: "not enough memory: try a smaller [sources] capacity, or MemoryMax=infinity",
    errno.EBUSY: "another XDP program is attached: see `ip link show`",
    errno.EOPNOTSUPP: "the driver has no native XDP: try --xdp skb",
    errno.E2BIG: "the map is full",
    errno.ENOENT: "it is not there",
    errno.ENOLINK: "its interface has gone: try again",
}


def _failed(what: str, number: int, detail: str = "") -> NtpguardError:
    word = errno.errorcode.get(number, str(number))
    if number == errno.EOPNOTSUPP:
        word = "EOPNOTSUPP"  # Python calls it ENOTSUP
    if number in (errno.EPERM, errno.EACCES) and not detail:
        return PermissionNeeded(
            f"{what}: {word}: CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed: try sudo"
        )
    remedy = _REMEDIES.get(number, os.strerror(number))
    return BpfError(f"{what}: {word}: {remedy}{detail}", number)


def _check(result: int, what: str) -> int:
    """`result`, unless it is an error; libbpf 1.x returns -errno."""
    if result < 0:
        raise _failed(what, -result)
    return result


def _listening() -> Any:
    """The library, from now on telling us: bcc, which may share it, takes all messages."""
    library = _library()
    _messages.clear()
    library.libbpf_set_print(ctypes.cast(_print, c_void_p))
    return library


def _tail() -> str:
    told = (line for line in _messages if line.strip() and "created successfully" not in line)
    lines = list(told)[-LOG_TAIL_LINES:]
    return "".join(f"\n  {line}" for line in lines)


class Object:
    """A compiled BPF object: open, set what load time decides, load, use, close."""

    def __init__(self, path: Path) -> None:
        self._path = path
        library = _listening()
        with uninterrupted():  # an exception inside _collect would be lost
            pointer = library.bpf_object__open_file(os.fsencode(path), None)
        if not pointer:
            raise _failed(f"{path}: cannot open the BPF object", ctypes.get_errno(), _tail())
        self._pointer: int | None = pointer

    @classmethod
    def open(cls, path: Path) -> Self:
        """Parses the object at `path`; nothing is in the kernel yet."""
        return cls(path)

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
            _library().bpf_object__close(self._pointer)
            self._pointer = None

    def _map(self, name: str) -> int:
        found: int | None = _library().bpf_object__find_map_by_name(self._pointer, name.encode())
        if not found:
            raise NtpguardError(f"{self._path}: no map {name}: not an object of this version")
        return found

    def _program(self, name: str) -> int:
        found: int | None = _library().bpf_object__find_program_by_name(
            self._pointer, name.encode()
        )
        if not found:
            raise NtpguardError(f"{self._path}: no program {name}: not an object of this version")
        return found

    def set_constants(self, value: bytes) -> None:
        """Sets the load-time constants: the whole of the object's .rodata.constants."""
        size = c_size_t()
        address = _library().bpf_map__initial_value(
            self._map(".rodata.constants"), ctypes.byref(size)
        )
        if not address or size.value != len(value):
            raise NtpguardError(
                f"{self._path}: not an object of this version: its constants differ"
            )
        ctypes.memmove(address, value, len(value))

    def set_max_entries(self, name: str, entries: int) -> None:
        """Sizes a map before it is loaded."""
        _check(
            _library().bpf_map__set_max_entries(self._map(name), entries),
            f"map {name}: {entries} entries",
        )

    def reuse_map(self, name: str, fd: int) -> None:
        """Uses the map behind `fd` as the object's map `name`."""
        _check(_library().bpf_map__reuse_fd(self._map(name), fd), f"map {name}: reuse")

    def set_frags(self, program: str, on: bool) -> None:
        """Whether the program accepts frames of several buffers (jumbo frames; Linux 5.18)."""
        pointer = self._program(program)
        flags = _library().bpf_program__flags(pointer) & ~F_XDP_HAS_FRAGS
        _check(
            _library().bpf_program__set_flags(pointer, flags | (F_XDP_HAS_FRAGS if on else 0)),
            f"program {program}: frags",
        )

    def leave_out(self, program: str) -> None:
        """Makes load() create the maps only: no need to wait for the verifier."""
        pointer = self._program(program)
        _check(_library().bpf_program__set_autoload(pointer, False), f"program {program}: leave")

    def load(self) -> None:
        """Creates the maps, verifies and loads the program.

        Raises BpfError with the end of the verifier's log.
        """
        library = _listening()
        with uninterrupted():  # as above
            result = library.bpf_object__load(self._pointer)
        if result < 0:
            detail = "" if result == -errno.EPERM else _tail()
            raise _failed("loading the BPF program", -result, detail)

    def map_fd(self, name: str) -> int:
        """Descriptor of a loaded map; it belongs to the object."""
        return _check(_library().bpf_map__fd(self._map(name)), f"map {name}")

    def program_fd(self, name: str) -> int:
        """Descriptor of a loaded program; it belongs to the object."""
        return _check(_library().bpf_program__fd(self._program(name)), f"program {name}")


def obj_pin(fd: int, path: Path) -> None:
    """Pins a map, program or link at `path` in a bpffs."""
    _check(_library().bpf_obj_pin(fd, os.fsencode(path)), f"{path}: pin")


def obj_get(path: Path, *, read_only: bool = False) -> int:
    """A new descriptor of what is pinned at `path`; the caller closes it."""
    options = _GetOpts(ctypes.sizeof(_GetOpts), F_RDONLY if read_only else 0)
    return _check(_library().bpf_obj_get_opts(os.fsencode(path), options), f"{path}: open")


def kind(fd: int) -> str:
    """What a descriptor is of: map, program or link."""
    word = os.readlink(f"/proc/self/fd/{fd}").partition("bpf")[2].lstrip("-_")
    return "program" if word == "prog" else word


def map_create(
    kind: int, name: str, key_size: int, value_size: int, entries: int, flags: int = 0
) -> int:
    """A new map's descriptor; the caller closes it. Sizes in bytes."""
    options = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags)
    return _check(
        _library().bpf_map_create(kind, name.encode(), key_size, value_size, entries, options),
        f"map {name}: create with {entries} entries",
    )


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of `key`, or None if the map has none."""
    value = ctypes.create_string_buffer(value_size)
    result = _library().bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    _check(result, "map lookup")
    return value.raw


def map_lookup_percpu(fd: int, key: bytes, value_size: int) -> list[bytes]:
    """The value of `key` on each possible CPU; value_size as declared."""
    stride = (value_size + 7) & ~7
    raw = map_lookup(fd, key, stride * possible_cpus())
    assert raw is not None, "a per-CPU array has every key"
    return [raw[i : i + value_size] for i in range(0, len(raw), stride)]


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Sets `key` to `value`."""
    _check(_library().bpf_map_update_elem(fd, key, value, 0), "map update")


def map_update_all(fd: int, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """Sets many keys with one system call where the kernel can (Linux 5.6; tries: 5.7)."""
    if not pairs:
        return
    count = c_uint32(len(pairs))
    keys = b"".join(key for key, _ in pairs)
    values = b"".join(value for _, value in pairs)
    options = _BatchOpts(sz=ctypes.sizeof(_BatchOpts))
    result = _library().bpf_map_update_batch(fd, keys, values, ctypes.byref(count), options)
    if result < 0:
        for key, value in pairs:
            map_update(fd, key, value)


def map_delete(fd: int, key: bytes) -> None:
    """Removes `key`; its absence is no error."""
    result = _library().bpf_map_delete_elem(fd, key)
    if result != -errno.ENOENT:
        _check(result, "map delete")


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Every key of a hash; those that come or go meanwhile may be missed."""
    key: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    while True:
        result = _library().bpf_map_get_next_key(fd, key, following)
        if result == -errno.ENOENT:
            return
        _check(result, "map keys")
        key = following.raw
        yield key


def map_items(
    fd: int, key_size: int, value_size: int, entries: int
) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a map that nobody changes and that has at most so many, with one
    system call where the kernel can (Linux 5.6; tries: 5.7).
    """
    keys = ctypes.create_string_buffer(max(1, entries) * key_size)
    values = ctypes.create_string_buffer(max(1, entries) * value_size)
    count = c_uint32(max(1, entries))
    last = ctypes.create_string_buffer(key_size)
    options = _BatchOpts(sz=ctypes.sizeof(_BatchOpts))
    result = _library().bpf_map_lookup_batch(
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
    return _check(_library().bpf_map_get_fd_by_id(identifier), f"map {identifier}: open")


def link_detach(link: int) -> None:
    """Detaches the program at once; the end of its last pin does so a moment later only."""
    _check(_library().bpf_link_detach(link), "detaching the XDP program")


def _info(fd: int, info: InfoT) -> InfoT:
    length = c_uint32(ctypes.sizeof(info))
    _check(_library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), length), "object info")
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
        raise _failed(f"mapping {length} bytes of a map", error.errno or 0) from None


def link_create(program: int, ifindex: int, flags: int) -> int:
    """Attaches an XDP program; the link ends with its last descriptor or pin."""
    options = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=flags)
    return _check(
        _library().bpf_link_create(program, ifindex, BPF_XDP, options), "attaching the XDP program"
    )


def link_update(link: int, program: int) -> None:
    """Swaps the program of a link, atomically."""
    _check(_library().bpf_link_update(link, program, None), "swapping the XDP program")


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
    return _check(_library().bpf_prog_get_fd_by_id(identifier), f"program {identifier}: open")


def version() -> str:
    """Major and minor of the library, like 1.1. Raises NtpguardError if there is none."""
    library = _library()
    return f"{library.libbpf_major_version()}.{library.libbpf_minor_version()}"


def possible_cpus() -> int:
    """How many values a per-CPU map has."""
    return _check(_library().libbpf_num_possible_cpus(), "possible CPUs")


class _XdpMd(ctypes.Structure):
    """struct xdp_md (linux/bpf.h)."""

    _fields_ = [
        ("data", c_uint32),
        ("data_end", c_uint32),
        ("data_meta", c_uint32),
        ("ingress_ifindex", c_uint32),
        ("rx_queue_index", c_uint32),
        ("egress_ifindex", c_uint32),
    ]


def test_run(program: int, packet: bytes, repeat: int = 1) -> tuple[int, bytes]:
    """Runs the program over `packet`: its (last) return code and the packet afterwards. A repeated
    run sees the packet as the one before left it.
    """
    out = ctypes.create_string_buffer(len(packet) + 256)
    source = ctypes.create_string_buffer(packet, len(packet))
    options = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.addressof(source),
        data_size_in=len(packet),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        repeat=repeat,
    )
    _check(_library().bpf_prog_test_run_opts(program, options), "test run")
    return options.retval, out.raw[: options.data_size_out]


class Runner:
    """Runs a program over one packet after the other: what test_run does, in half of the time, for
    the buffers are made once.

    A packet is put at `address`; what the program makes of it is not given back.
    """

    def __init__(self, program: int, most_bytes: int) -> None:
        self._program = program
        self._packet = ctypes.create_string_buffer(most_bytes)
        self.address = ctypes.addressof(self._packet)
        self._options = _TestRunOpts(sz=ctypes.sizeof(_TestRunOpts), data_in=self.address, repeat=1)
        self._pointer = ctypes.pointer(self._options)
        self._call = _library().bpf_prog_test_run_opts

    def run(self, size: int) -> int:
        """The return code for the first `size` bytes at `address`."""
        options = self._options
        options.data_size_in = size
        options.data_size_out = (
            0  # the run before has set it; it must not be less than this packet's
        )
        result = self._call(self._program, self._pointer)
        if result < 0:
            _check(result, f"test run of {size} bytes")
        code: int = options.retval
        return code


def send_frames(program: int, packet: bytes, ifindex: int, count: int) -> None:
    """Runs the program `count` times over live frames of an interface (Linux 5.18): what it
    returns happens to them, and XDP_TX sends.
    """
    source = ctypes.create_string_buffer(packet, len(packet))
    context = _XdpMd(data_end=len(packet), ingress_ifindex=ifindex)
    options = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.addressof(source),
        data_size_in=len(packet),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
        repeat=count,
        flags=F_TEST_XDP_LIVE_FRAMES,
    )
    _check(_library().bpf_prog_test_run_opts(program, options), "sending frames")
