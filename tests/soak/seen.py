"""What is soaked, and what the kernel says that is held and was seen."""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntpguard.errors import NtpguardError
from ntpguard.kernel import libbpf, maps
from tests.lab.lab import ROOT, inside, run


@dataclass(frozen=True)
class Held:
    """What a process holds: bytes of resident memory, and numbers."""

    memory_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        """By a process, now. Raises OSError or LookupError if it has ended."""
        status = Path(f"/proc/{pid}/status").read_text()
        memory, threads = (
            int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "Threads")
        )
        return cls(memory * 1024, len(os.listdir(f"/proc/{pid}/fd")), threads)

    def least(self, other: "Held") -> "Held":
        """The least of both."""
        return Held(
            min(self.memory_bytes, other.memory_bytes),
            min(self.descriptors, other.descriptors),
            min(self.threads, other.threads),
        )


def driver(name: str, way: str, counter: str) -> int:
    """A counter of the queues of eth0 in a namespace of the lab (ethtool -S of a veth)."""
    shown = run(*inside(name, "ethtool", "-S", "eth0")).stdout
    return sum(int(one) for one in re.findall(rf"{way}_queue_\d+_{counter}: (\d+)", shown))


def programs(bpffs: Path, known: set[int]) -> int:
    """Programs that the kernel holds and that work on a map that is pinned in `bpffs` or was: `known`
    are those maps' ids.
    """
    for one in bpffs.rglob("*"):
        if one.name in maps.SIZES:
            # it may have gone meanwhile
            with suppress(NtpguardError), maps.descriptor(one, read_only=True) as fd:
                known.add(int(libbpf.map_info(fd).id))
    shown = json.loads(run("bpftool", "-j", "prog", "list", check=False).stdout)
    return sum(not known.isdisjoint(one.get("map_ids", ())) for one in shown)


def tree() -> dict[str, Any]:
    """What is soaked: the commit, whether the tree is what it says, and the program's hash."""
    git = ("git", "-C", str(ROOT))
    return {
        "commit": run(*git, "rev-parse", "HEAD").stdout.strip(),
        "dirty": bool(run(*git, "status", "--porcelain", "--untracked-files=no").stdout),
        "program": maps.object_digest(),
    }
