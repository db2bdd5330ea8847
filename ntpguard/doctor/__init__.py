"""doctor: whether this host can be guarded well, and what to do where not.

Looks, and changes nothing: no packet is sent, nothing is attached or pinned. What a privilege hides
is `unknown`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from ntpguard.doctor import host, link
from ntpguard.doctor.finding import FAIL, UNKNOWN, Answer, Finding, Guard, Host, read_guard
from ntpguard.errors import NtpguardError, PermissionNeeded, PolicyError, UsageError
from ntpguard.kernel import interfaces, nic
from ntpguard.policy.check import DEFAULT, read_policy
from ntpguard.policy.model import Policy

__all__ = ["FAIL", "Finding", "examine"]
SUDO = "sudo ntpguard doctor"
AnswerT = TypeVar("AnswerT", Answer, Answer | None)


def examine(names: Sequence[str], *, bpffs: Path, policy_file: Path | None) -> list[Finding]:
    """Every check on this host and its interfaces: those named, else those guarded, else those of
    the policy, else every Ethernet interface. Raises UsageError for one that does not exist.
    """
    guard = read_guard(bpffs)
    policy, complaint = _policy(guard, policy_file)
    known = interfaces.interfaces()
    for name in names:
        interfaces.interface(name)
    chosen = (
        names
        or [one.name for one in known if one.ifindex in (guard.programs or {})]
        or (policy.interfaces if policy else ())
        or [one.name for one in known if one.guardable]
    )
    patient = Host(bpffs, policy, policy_file, guard)
    findings = [_finding("policy", None, complaint)] if complaint else []
    findings += [
        _finding(name, None, _asked(partial(check, patient))) for name, check in host.CHECKS
    ]
    for name in dict.fromkeys(chosen):
        findings += _link(patient, name)
    return findings


def _link(patient: Host, name: str) -> list[Finding]:
    try:
        one = nic.nic(name)
    except UsageError as error:  # the policy's, or gone meanwhile
        file = patient.policy_file or "the policy file"
        return [_finding("xdp", name, Answer(FAIL, str(error), f"set interfaces in {file}"))]
    answers = ((check, _asked(partial(look, patient, one))) for check, look in link.CHECKS)
    return [_finding(check, name, answer) for check, answer in answers if answer]


def _asked(check: Callable[[], AnswerT]) -> AnswerT | Answer:
    """What a check answers; what it could not see is an answer too."""
    try:
        return check()
    except (NtpguardError, OSError) as error:
        if isinstance(error, PermissionNeeded | PermissionError):
            return Answer(UNKNOWN, str(error), SUDO)
        return Answer(UNKNOWN if isinstance(error, OSError) else FAIL, str(error))


def _policy(guard: Guard, file: Path | None) -> tuple[Policy | None, Answer | None]:
    if guard.policy:
        return guard.policy, None
    if file is None:
        return DEFAULT, None
    try:
        return read_policy(file), None
    except PolicyError as error:
        found = f"{error.errors[0]}" + (" and more" if error.errors[1:] else "")
        return None, Answer(FAIL, found, f"ntpguard policy check {file}")


def _finding(name: str, interface: str | None, answer: Answer) -> Finding:
    return Finding(name, interface, answer.result, answer.found, answer.remedy)
