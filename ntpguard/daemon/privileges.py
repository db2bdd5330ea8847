"""Capabilities: what the daemon needs is kept, the rest is given away for good.

CAP_BPF is for bpf(), CAP_NET_ADMIN for a program of type XDP, CAP_PERFMON for one that computes
with pointers: without any one of the three, the kernel refuses to load it (tried on Linux 6.18).
Pins and the state directory are root's, and so is the daemon.
"""

import ctypes
import os
from pathlib import Path

NEEDED = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
VERSION_3 = 0x20080522  # linux/capability.h: two words for each set
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
LAST = Path("/proc/sys/kernel/cap_last_cap")


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def drop() -> list[str]:
    """Gives away every capability but those needed, of this thread and those it starts.

    Returns the names of those kept. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(VERSION_3, 0), (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), sets))
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for number in range(int(LAST.read_text(encoding="ascii")) + 1):
        if number not in NEEDED.values():
            # fails without CAP_SETPCAP: then a bound was set already, by systemd for instance
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    mask = sum(1 << number for number in NEEDED.values())
    for index, word in enumerate(sets):
        word.permitted &= mask >> 32 * index & 0xFFFFFFFF
        word.effective, word.inheritable = word.permitted, 0
    _check(libc.capset(ctypes.byref(header), sets))
    return [
        name for name, number in NEEDED.items() if sets[number // 32].permitted >> number % 32 & 1
    ]


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
