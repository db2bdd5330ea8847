"""How long a replay of a million packets takes: of `make bench`; `make test` replays a tenth, and
allows five times as long.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from tests import captures
from tests.bpf.packets import IPV4, IPV6
from tests.bpf.test_replay import pytestmark

__all__ = ["pytestmark"]
BENCH = "NTPGUARD_BENCH" in os.environ
PACKETS, ALLOWED = (1_000_000, 1) if BENCH else (100_000, 5)
LIMIT_SECONDS = 60 * PACKETS / 1_000_000
MOST_BYTES = 256 << 20  # of memory, the source table of 64 MiB included


def write(path: Path) -> None:
    """A third of the requests are an abuser's, the rest those of 1,000 others, forged ones between."""
    random = Random(1)
    abuser = bytes(IPV4.but(source="198.18.0.9", source_port=1337))
    others = [bytes(IPV4.but(source=f"203.0.113.{i % 250}", ttl=i % 250)) for i in range(500)]
    others += [bytes(IPV6.but(source=f"2001:db8:{i:x}::7")) for i in range(500)]
    with path.open("wb") as file:
        file.write(captures.pcap([]))
        for i in range(PACKETS):
            kind = random.random()
            frame = abuser if kind < 0.3 else random.choice(others)
            if kind > 0.9:
                frame = abuser[:26] + random.randbytes(4) + abuser[30:]
            file.write(captures.pcap([(i * 10**6, frame, None)])[24:])


def test_a_million_packets_are_replayed_within_a_minute(tmp_path: Path) -> None:
    capture, policy = tmp_path / "many.pcap", tmp_path / "ntpguard.toml"
    write(capture)
    policy.write_text('mode = "enforce"\n')
    command = str(Path(sys.executable).with_name("ntpguard"))
    begin = time.monotonic()
    done = subprocess.run(
        [command, "replay", str(capture), "--policy", str(policy)], capture_output=True, text=True
    )
    seconds = time.monotonic() - begin
    most_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert done.returncode == 0, done.stderr
    assert f": {PACKETS} packets in " in done.stdout
    print(f"\n{PACKETS} packets: {seconds:.1f} s, at most {most_bytes / 2**20:.0f} MiB of memory")
    assert seconds < ALLOWED * LIMIT_SECONDS
    assert most_bytes < MOST_BYTES
