"""What of root's power this process has (capabilities(7))."""

import re
from collections.abc import Iterable
from pathlib import Path

# linux/capability.h
NUMBERS = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
INCLUDED = {"CAP_PERFMON", "CAP_BPF"}  # in CAP_SYS_ADMIN


def missing(names: Iterable[str]) -> list[str]:
    """Which of these capabilities are not in effect."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (effective,) = re.findall(r"^CapEff:\s*(\w+)$", status, re.M)
    held = {name for name, bit in NUMBERS.items() if int(effective, 16) >> bit & 1}
    if "CAP_SYS_ADMIN" in held:
        held |= INCLUDED
    return [name for name in names if name not in held]
