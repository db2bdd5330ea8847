"""The bench's wire: a veth pair between two network namespaces, and live frames made in the kernel."""

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ntpguard.kernel import binding, libbpf
from tests import testrun
from tests.bpf.clang import compile_bpf
from tests.bpf.packets import UDP, Frame, ntp, ones_sum
from tests.lab.lab import (
    BUILD,
    CLIENT,
    CLIENT4,
    CLIENT6,
    SERVER,
    SERVER4,
    SERVER6,
    Lab,
    inside,
    namespace,
    run,
)

WORDS, STREAMS = 14, 3
FOREVER = (1 << 31) - 1
SETTLE = 0.2  # seconds, for the last replies
FRAME_BYTES = WORDS * 8  # one length for every kind: Ethernet pads
SOURCE_AT, SOURCE_BYTES = 26, 4  # of an IPv4 address; of an IPv6 one, the second 32 bits
IPV4_CHECK_AT, IPV6_CHECK_AT = 24, 60
# of the load's sources: 11.0.0.0 and up, 2001:db8::/32; none leaves the namespaces
FIRST4, FIRST6 = 0x0B000000, 0
KINDS = ("others", "known", "newcomers")


class _Stream(ctypes.Structure):
    _fields_ = [
        ("words", ctypes.c_uint64 * WORDS),
        ("first", ctypes.c_uint32),
        ("sources", ctypes.c_uint32),
        ("sum", ctypes.c_uint32),
        ("check_at", ctypes.c_uint32),
        ("in_order", ctypes.c_uint32),
        ("burst", ctypes.c_uint32),
        ("interval", ctypes.c_uint64),
    ]


class _Constants(ctypes.Structure):
    _fields_ = [
        ("streams", _Stream * STREAMS),
        ("frames", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("dry", ctypes.c_uint32),
        ("used", ctypes.c_uint32),
        ("stamped", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


class _State(ctypes.Structure):
    _fields_ = [
        ("begin_ns", ctypes.c_uint64),
        ("end_ns", ctypes.c_uint64),
        ("random", ctypes.c_uint64),
        ("clock_ns", ctypes.c_uint64),
        ("next_ns", ctypes.c_uint64 * STREAMS),
        ("sent", ctypes.c_uint64 * STREAMS),
    ]


@dataclass(frozen=True)
class Stream:
    """Frames like `frame` of so many sources. `per_second` 0: as fast as it goes."""

    frame: Frame
    sources: int = 1
    first: int = FIRST4
    per_second: float = 0
    burst: int = 1
    in_order: bool = False

    def compiled(self, source_mac: bytes, destination_mac: bytes) -> _Stream:
        """As load.bpf.c wants it."""
        check_at = IPV6_CHECK_AT if self.frame.ipv6 else IPV4_CHECK_AT
        frame = replace(self.frame, source_mac=source_mac, destination_mac=destination_mac)
        raw = bytearray(bytes(frame).ljust(FRAME_BYTES, b"\0"))
        assert len(raw) == FRAME_BYTES, f"{len(raw)} bytes are more than a frame of the bench"
        raw[SOURCE_AT : SOURCE_AT + SOURCE_BYTES] = bytes(SOURCE_BYTES)
        raw[check_at : check_at + 2] = bytes(2)
        if self.frame.ipv6:
            length = int.from_bytes(raw[18:20], "big")
            covered = bytes(raw[22 : 54 + length]) + length.to_bytes(2, "big") + bytes([0, UDP])
        else:
            covered = bytes(raw[14 : 14 + 4 * (raw[14] & 15)])
        return _Stream(
            words=(ctypes.c_uint64 * WORDS).from_buffer_copy(raw),
            first=self.first,
            sources=self.sources,
            # the sum is of 16-bit words as they are on the wire: the program adds them so
            sum=_swapped(~ones_sum(covered) & 0xFFFF),
            check_at=check_at // 2,
            in_order=self.in_order,
            burst=self.burst,
            interval=int(1e9 / self.per_second) if self.per_second else 0,
        )


def _swapped(word: int) -> int:
    return word >> 8 | (word & 255) << 8


def request(*, ipv6: bool = False, **changes: object) -> Frame:
    """A request to the server, of which the source is filled in later."""
    frame = Frame(
        payload=ntp(),
        source="2001:db8:0:0::123" if ipv6 else "11.0.0.0",
        destination=SERVER6 if ipv6 else SERVER4,
        checksum=None if ipv6 else 0,
    )
    return frame.but(**changes)


@dataclass(frozen=True)
class Sent:
    """What a run sent, by stream, and in how many nanoseconds."""

    frames: tuple[int, ...]
    ns: int

    @property
    def ns_per_frame(self) -> float:
        """Nanoseconds from one frame to the next."""
        return self.ns / max(1, sum(self.frames) - 1)


@dataclass(frozen=True)
class Moment:
    """How far a run was: what had been sent, and the replies (answered, kissed) by kind of client."""

    sent: Sent
    replies: dict[str, tuple[int, int]]


def build(name: str) -> Path:
    """An object of the bench."""
    source = Path(__file__).with_name(f"{name}.bpf.c")
    made = BUILD / "bench" / f"{name}.bpf.o"
    made.parent.mkdir(parents=True, exist_ok=True)
    return compile_bpf(source, made)


class Wire(Lab):
    """The lab's two namespaces with the bench's sink, and a route back to every simulated source."""

    kinds = KINDS

    def __enter__(self) -> "Wire":
        self.load_object = build("load")
        self.runs = 0
        super().__enter__()
        self.client_index, self.client_mac = self.link(CLIENT)
        self.server_index, self.server_mac = self.link(SERVER)
        for via in (CLIENT4, CLIENT6):
            run(*inside(SERVER, "ip", "route", "add", "default", "via", via))
        return self

    def _open_sink(self) -> libbpf.Object:
        sink = libbpf.Object(self.load_object)
        sink.leave_out("arrive")
        return sink

    def flood(self, stream: Stream, frames: int, *, dry: bool = False) -> Sent:
        """One stream, as fast as it goes. Returns when the last frame has been sent."""
        constants = self._constants([stream])
        constants.frames, constants.dry = frames, dry
        with self._generator(constants) as program:
            self._send(program.program_fd("flood"), frames)
            return _sent(program, 1)

    def mix(
        self, streams: Sequence[Stream], seconds: float, onset: float = 0, *, stamped: bool = False
    ) -> list[Moment]:
        """Several streams at their paces; the last one may have none. What had been sent, and what
        had come back, after `onset` and after `seconds` more.
        """
        constants = self._constants(streams)
        constants.stamped = stamped
        with self._generator(constants) as program:

            def now() -> Moment:
                return Moment(_sent(program, len(streams)), self.replies())

            moments = []

            def look() -> None:
                os.sched_setaffinity(0, range(os.cpu_count() or 1))
                moments.append(now())

            # one run, ended by a signal: the start of another would be a pause of 25 ms
            timer = threading.Timer(onset, look)
            before = signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, onset + seconds)
            timer.start()
            try:
                self._send(program.program_fd("mix"), FOREVER)
            except binding.BpfError as error:
                if error.errno != errno.EINTR:
                    raise
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
                timer.join()
            time.sleep(SETTLE)
            return [*moments, now()]

    def _constants(self, streams: Sequence[Stream]) -> _Constants:
        self.runs += 1
        constants = _Constants(used=len(streams), seed=self.runs)
        for index, one in enumerate(streams):
            constants.streams[index] = one.compiled(self.client_mac, self.server_mac)
        return constants

    @contextmanager
    def _generator(self, constants: _Constants) -> Iterator[libbpf.Object]:
        with libbpf.Object(self.load_object) as program:
            program.set_constants(bytes(constants))
            program.leave_out("sink")
            program.leave_out("arrive")
            program.load()
            yield program

    def _send(self, fd: int, frames: int) -> None:
        with namespace(CLIENT):
            testrun.send_frames(fd, bytes(FRAME_BYTES), self.client_index, frames)


def _sent(program: libbpf.Object, streams: int) -> Sent:
    raw = libbpf.map_lookup(program.map_fd(".bss"), bytes(4), ctypes.sizeof(_State))
    assert raw is not None, "an array has every key"
    state = _State.from_buffer_copy(raw)
    return Sent(tuple(state.sent[:streams]), state.end_ns - state.begin_ns)


def pinned_to(cpu: int) -> None:
    """This process, and what it starts, on one CPU."""
    os.sched_setaffinity(0, {cpu})
