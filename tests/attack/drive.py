"""The real program on the virtual clock, driven fast: prebuilt frames, no copy of what comes out."""

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ntpguard import abi
from ntpguard.kernel import binding
from ntpguard.policy.check import DEFAULT
from ntpguard.policy.compile import compile_policy
from ntpguard.policy.kinds import Rate
from tests.bpf.guard import SECOND, START, Guard, guard
from tests.bpf.packets import Frame

TICK_NS = 4_000_000  # of the coarse clock at HZ=250
ANSWERED, KISSED = abi.Xdp.PASS.value, abi.Xdp.TX.value
IPV4_SOURCE, IPV6_SOURCE = 26, 22  # offsets in a frame without tags


class Lane:
    """One frame, sent again and again, from one source or another."""

    def __init__(
        self, one: Guard, frame: Frame, chosen: random.Random, source: bytes | None = None
    ) -> None:
        raw = bytes(frame)
        self._buffer = ctypes.create_string_buffer(raw, len(raw))
        self._options = binding.TestRunOpts(
            sz=ctypes.sizeof(binding.TestRunOpts),
            data_in=ctypes.addressof(self._buffer),
            data_size_in=len(raw),
            repeat=1,
        )
        self._reference = ctypes.byref(self._options)
        self._run: Any = binding.library().bpf_prog_test_run_opts
        self._fd, self._guard = one.fd, one
        self._chance = chosen.getrandbits
        self._size = 16 if frame.ipv6 else 4
        self._source = ctypes.addressof(self._buffer) + (IPV6_SOURCE if frame.ipv6 else IPV4_SOURCE)
        if source:
            ctypes.memmove(self._source, source, self._size)

    def send(self, seconds: float, source: bytes | None = None) -> int:
        """The frame at that time after the start, from `source` (4 or 16 bytes; None: from where the
        one before came): the XDP return code.
        """
        if source:
            ctypes.memmove(self._source, source, self._size)
        clock = START + int(seconds * SECOND)
        inputs = self._guard.inputs
        inputs.clock_ns = clock - clock % TICK_NS
        inputs.chance = self._chance(32)
        if self._run(self._fd, self._reference):
            raise OSError("the program cannot be run")
        return int(self._options.retval)


def default_policy(
    capacity: int,
    *,
    ceiling: int | None = None,
    leak_max: int | None = None,
) -> tuple[abi.Policy, int]:
    """The built-in policy with a table for `capacity` sources, and its buckets. Rates are per second;
    None: as built in (no ceiling).
    """
    changes: dict[str, Any] = {"capacity": capacity}
    if leak_max:
        changes["leak_max"] = Rate(leak_max, "second")
    if ceiling:
        changes["ceiling_rate"] = Rate(ceiling, "second")
    compiled = compile_policy(replace(DEFAULT, **changes))
    return compiled.policy, compiled.table.buckets


@contextmanager
def guarded(
    capacity: int = 262_144, *, ceiling: int | None = None, leak_max: int | None = None
) -> Iterator[Guard]:
    """The loaded program under `default_policy`, which takes the same arguments."""
    policy, buckets = default_policy(capacity, ceiling=ceiling, leak_max=leak_max)
    with guard(buckets) as one:
        ctypes.memmove(ctypes.addressof(one.policy), bytes(policy), ctypes.sizeof(policy))
        yield one
