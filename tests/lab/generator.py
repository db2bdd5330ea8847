"""The lab's load: simulated clients that keep to a pace, and one that keeps to none."""

import threading
import time
from dataclasses import dataclass, field

from ntpguard.kernel import libbpf
from tests.bpf.packets import Frame, ntp
from tests.lab.lab import CLIENT, GENERATOR, KINDS, SERVER, SERVER4, Lab, namespace, packet_socket

TEMPLATE_BYTES = 90
BATCH = 5_000


@dataclass
class Load:
    """Sends for `seconds`; `sent` counts by kind."""

    lab: Lab
    seconds: float
    per_second: dict[str, float]
    sources: dict[str, int]
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def __post_init__(self) -> None:
        _, self._server = self.lab.link(SERVER)
        self._ifindex, self._client = self.lab.link(CLIENT)

    def frame(self, source: str) -> bytes:
        """A plain request of a simulated source."""
        return bytes(
            Frame(
                source=source,
                destination=SERVER4,
                source_mac=self._client,
                destination_mac=self._server,
                checksum=0,
                payload=ntp(),
            )
        )

    def run(self) -> None:
        """All kinds at once; returns when they are done."""
        threads = [
            threading.Thread(target=self._paced, args=("polite", "203.0.113.")),
            threading.Thread(target=self._paced, args=("hasty", "198.18.1.")),
        ]
        if self.per_second.get("abuser"):
            threads.append(threading.Thread(target=self._flood))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _paced(self, kind: str, prefix: str) -> None:
        frames = [self.frame(f"{prefix}{i + 1}") for i in range(self.sources[kind])]
        total = int(self.per_second[kind] * self.seconds)
        begin = time.monotonic()
        with packet_socket() as wire:
            for number in range(total):
                pause = begin + number / self.per_second[kind] - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                wire.send(frames[number % len(frames)])
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
