"""libbpf as C declares it, found and with its prototypes; and its errors, in words.

The library is libbpf.so.1, else the libbpf behind bcc's own library.
"""

import ctypes
import errno
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from ntpguard.errors import NtpguardError, PermissionNeeded


class BpfError(NtpguardError):
    """A BPF operation failed; `errno` is the kernel's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


class LinkCreateOpts(ctypes.Structure):
    """struct bpf_link_create_opts (bpf/bpf.h), as far as it is needed."""

    _fields_ = [
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    ]


class MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts (bpf/bpf.h)."""

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


class GetOpts(ctypes.Structure):
    """struct bpf_obj_get_opts (bpf/bpf.h), as far as it is needed."""

    _fields_ = [("sz", c_size_t), ("file_flags", c_uint32)]


class BatchOpts(ctypes.Structure):
    """struct bpf_map_batch_opts (bpf/bpf.h)."""

    _fields_ = [("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64)]


class TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts (bpf/bpf.h)."""

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


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__find_map_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_object__find_program_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_program__flags": (c_uint32, [c_void_p]),
    "bpf_program__set_flags": (c_int, [c_void_p, c_uint32]),
    "bpf_obj_pin": (c_int, [c_int, c_char_p]),
    "bpf_obj_get_opts": (c_int, [c_char_p, POINTER(GetOpts)]),
    "bpf_map_create": (
        c_int,
        [c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapCreateOpts)],
    ),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_map_update_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, POINTER(c_uint32), POINTER(BatchOpts)],
    ),
    "bpf_map_lookup_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), POINTER(BatchOpts)],
    ),
    "bpf_link_create": (c_int, [c_int, c_int, c_int, POINTER(LinkCreateOpts)]),
    "bpf_link_update": (c_int, [c_int, c_int, c_void_p]),
    "bpf_link_detach": (c_int, [c_int]),
    "bpf_prog_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "bpf_prog_test_run_opts": (c_int, [c_int, POINTER(TestRunOpts)]),
    "libbpf_major_version": (c_uint32, []),
    "libbpf_minor_version": (c_uint32, []),
    "libbpf_num_possible_cpus": (c_int, []),
    "libbpf_set_print": (c_void_p, [c_void_p]),
}


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
def library() -> Any:
    """The loaded library. Raises NtpguardError if there is none."""
    found = _load_library()
    for name, (result, arguments) in _PROTOTYPES.items():
        try:
            function = getattr(found, name)
        except AttributeError:
            raise NtpguardError(f"libbpf.so.1: no {name}: libbpf 1.0 or newer is needed") from None
        function.restype = result
        function.argtypes = arguments
    return found


_REMEDIES = {
    errno.ENOMEM: "not enough memory: try a smaller [sources] capacity, or MemoryMax=infinity",
    errno.EBUSY: "another XDP program is attached: see `ip link show`",
    errno.EOPNOTSUPP: "the driver has no native XDP: try --xdp skb",
    errno.E2BIG: "the map is full",
    errno.ENOENT: "it is not there",
    errno.ENOLINK: "its interface has gone: try again",
}


def failed(what: str, number: int, detail: str = "") -> NtpguardError:
    """The error to raise when `what` ended with this errno, and lines of `detail` if there are."""
    word = errno.errorcode.get(number, str(number))
    if number == errno.EOPNOTSUPP:
        word = "EOPNOTSUPP"  # Python calls it ENOTSUP
    if number in (errno.EPERM, errno.EACCES) and not detail:
        return PermissionNeeded(
            f"{what}: {word}: CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed: try sudo"
        )
    remedy = _REMEDIES.get(number, os.strerror(number))
    return BpfError(f"{what}: {word}: {remedy}{detail}", number)


def check(result: int, what: str) -> int:
    """`result`, unless it is an error: libbpf 1.x returns -errno. `what` was tried.

    Raises BpfError, PermissionNeeded for EPERM and EACCES.
    """
    if result < 0:
        raise failed(what, -result)
    return result
