"""The lab's load: simulated clients that keep to a pace, and one that keeps to none."""

import errno
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial

from ntpguard.kernel import libbpf
from tests.bpf.packets import Frame, ntp
from tests.lab.lab import (
    CLIENT,
    GENERATOR,
    KINDS,
    SERVER,
    SERVER4,
    SERVER6,
    Lab,
    namespace,
    packet_socket,
)

TEMPLATE_BYTES = 90
BATCH = 5_000


@dataclass
class Load:
    """Sends for `seconds`; `sent` counts by kind. Of these, the kernel `refused` some (ENOBUFS): the
    peer's ring was full, or there was no carrier. Of the abuser, it does not say.
    """

    lab: Lab
    seconds: float
    per_second: dict[str, float]
    sources: dict[str, int]
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def __post_init__(self) -> None:
        _, self._server = self.lab.link(SERVER)
        self._ifindex, self._client = self.lab.link(CLIENT)

    def frame(self, source: str) -> bytes:
        """A plain request of a simulated source."""
        ipv6 = ":" in source
        return bytes(
            Frame(
                source=source,
                destination=SERVER6 if ipv6 else SERVER4,
                source_mac=self._client,
                destination_mac=self._server,
                checksum=None if ipv6 else 0,
                payload=ntp(),
            )
        )

    def addresses(self, kind: str) -> list[str]:
        """The simulated sources of a kind; an IPv6 source is a /64."""
        count = self.sources[kind]
        if kind == "polite":
            half = count // 2
            ipv6 = [f"2001:db8:71:{number:x}::123" for number in range(1, half + 1)]
            return ipv6 + [f"203.0.113.{number}" for number in range(1, count - half + 1)]
        return [f"198.18.1.{number}" for number in range(1, count + 1)]

    def run(self) -> None:
        """All kinds at once; returns when they are done."""
        works = [partial(self._paced, "polite"), partial(self._paced, "hasty")]
        if self.per_second.get("abuser"):
            works.append(self._flood)
        with ThreadPoolExecutor() as threads:
            for done in as_completed([threads.submit(work) for work in works]):
                done.result()

    def _paced(self, kind: str) -> None:
        frames = [self.frame(address) for address in self.addresses(kind)]
        total = int(self.per_second[kind] * self.seconds)
        begin = time.monotonic()
        with packet_socket() as wire:
            for number in range(total):
                pause = begin + number / self.per_second[kind] - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                try:
                    wire.send(frames[number % len(frames)])
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self.refused[kind] += 1  # sent, and lost
                self.sent[kind] += 1

    def _flood(self) -> None:
        template = self.frame("198.18.2.1")
        assert len(template) == TEMPLATE_BYTES
        rate = self.per_second["abuser"]
        with libbpf.Object.open(GENERATOR) as program, namespace(CLIENT):
            program.set_constants(template + bytes(2))
            program.load()
            fd = program.program_fd("generate")
            begin = time.monotonic()
            while time.monotonic() - begin < self.seconds:
                pause = begin + self.sent["abuser"] / rate - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                libbpf.send_frames(fd, template, self._ifindex, BATCH)
                self.sent["abuser"] += BATCH
