"""What a check answers, and what all checks may look at."""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ntpguard import health, lifecycle, reading
from ntpguard.errors import NotRunning, NtpguardError, PermissionNeeded
from ntpguard.kernel import bpffs as pinned
from ntpguard.kernel import libbpf, maps
from ntpguard.policy.model import Policy

OK, WARN, FAIL, UNKNOWN = "ok", "warn", "fail", "unknown"


@dataclass(frozen=True)
class Answer:
    """ok, warn, fail or unknown (it could not be seen); what was found; a command that mends it."""

    result: str
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Finding:
    """An answer, and to which check; `interface`: None for those of the whole host."""

    check: str
    interface: str | None
    result: str
    found: str
    remedy: str | None


@dataclass(frozen=True)
class Guard:
    """The guard that runs here.

    programs: interface index -> id of the program that its link runs; None: the pins cannot be
    read, and `why` says so. policy: what runs, None if nothing does or it cannot be read. problems:
    as status tells them.
    """

    programs: dict[int, int] | None
    policy: Policy | None = None
    problems: tuple[str, ...] = ()
    why: str = ""


def read_guard(bpffs: Path) -> Guard:
    """What runs in this network namespace, as far as we may see it."""
    try:
        with reading.open_running(bpffs) as guard:
            problems = health.problems(guard, bpffs, health.untracked(guard))
            return Guard(_programs(pinned.pins(bpffs)), guard.policy(), tuple(problems))
    except NotRunning:
        return Guard({})
    except PermissionNeeded as error:
        return Guard(None, why=str(error))
    except NtpguardError as error:
        return Guard(_programs(pinned.pins(bpffs)), problems=(str(error),))


def _programs(at: Path) -> dict[int, int]:
    found = {}
    for ifindex, own in maps.live_links(at).items():
        with maps.descriptor(own / "link") as link:
            found[ifindex] = int(libbpf.link_info(link).prog_id)
    return found


@dataclass(frozen=True)
class Host:
    """What checks look at; policy: the one that runs, else the file's; None: the file is bad."""

    bpffs: Path
    policy: Policy | None
    policy_file: Path | None
    guard: Guard

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor of the kernel's version."""
        return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])

    @cached_property
    def trial(self) -> int:
        """Bytes of machine code that the program becomes; 0: it would be interpreted.

        Loads the program with a table of one bucket, attaches it to nothing and lets it go again.
        Raises NtpguardError with the verifier's words.
        """
        with libbpf.Object.open(maps.object_path()) as program:
            program.set_max_entries("sources", 1)
            lifecycle.load(program)
            return int(libbpf.prog_info(program.program_fd(maps.PROGRAM)).jited_prog_len)
