"""What a request would meet, and why: the packet path's rules (bpf/ntpguard.bpf.c, bpf/limit.h),
told of one source as it stands. Pure: reads nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ntpguard import abi
from ntpguard.entries import LiveEntry
from ntpguard.moments import span
from ntpguard.policy.compile import class_rule
from ntpguard.policy.model import ClassPolicy, Policy
from ntpguard.policy.shapes import matches
from ntpguard.sources import Source, counted_ahead
from ntpguard.words import Action, Mode, Reason, Verdict


@dataclass(frozen=True)
class Standing:
    """All that decides on a source's next request, if it looks like the last one noted."""

    policy: Policy
    mode: Mode
    own: ClassPolicy
    source: Source | None
    entry: LiveEntry | None
    header: bytes | None = None
    source_port: int = 0

    @property
    def judged(self) -> Mode:
        """The mode in which it is judged: a class may be observed only."""
        blocked = self.entry is not None and self.entry.action == Action.BLOCK
        canary = self.own.mode == "observe" and not blocked
        return Mode.OBSERVE if canary and self.mode == Mode.ENFORCE else self.mode

    @property
    def left(self) -> int:
        """Requests that it may send at once now."""
        interval, tolerance, ahead = self._units()
        return (tolerance - max(ahead, 0)) // interval + 1 if ahead <= tolerance else 0

    @property
    def wait_seconds(self) -> float:
        """Until its next request is within the limit; 0: it is now."""
        _, tolerance, ahead = self._units()
        return max(0, (ahead - tolerance) << abi.GCRA_UNIT_SHIFT) / 1e9

    def _units(self) -> tuple[int, int, int]:
        """Emission interval, burst tolerance, and how far ahead the tat counts, in gcra units."""
        limit = class_rule(self.own).limit
        interval = int(limit.emission_interval) >> abi.GCRA_TAT_SHIFT
        tolerance = int(limit.burst_tolerance) >> abi.GCRA_TAT_SHIFT
        if self.source is None:
            return interval, tolerance, 0
        ahead = round(self.source.tat_ahead_seconds * 1e9) >> abi.GCRA_UNIT_SHIFT
        if self.source.class_index in (None, self.policy.classes.index(self.own)):
            ahead = counted_ahead(ahead, interval, tolerance)
        return interval, tolerance, ahead

    def signatures(self) -> Iterator[tuple[str, str, bool]]:
        """(name, when, whether it blocks) of the signatures that fit the last header noted."""
        for one in self.policy.signatures if self.header else ():
            if matches(one, self.header or b"", self.source_port):
                yield one.name, one.when, one.mode != "observe"


@dataclass(frozen=True)
class Outlook:
    """What a plain request would meet: each verdict that it may get, and why, in words too.
    `would`: what enforce would do with what observe lets pass.
    """

    verdicts: tuple[Verdict, ...]
    reason: Reason
    words: str
    would: tuple[Verdict, ...] | None = None


def outlook(one: Standing) -> Outlook:
    """What the next request would meet now."""
    if one.mode == Mode.OFF:
        return Outlook((Verdict.PASS,), Reason.OFF, "passes: mode is off")
    judged = _judged(one)
    if judged.verdicts == (Verdict.PASS,) or one.judged == Mode.ENFORCE:
        return judged
    what = "mode" if one.mode == Mode.OBSERVE else f"class {one.own.name}'s mode"
    return replace(
        judged,
        verdicts=(Verdict.PASS,),
        reason=Reason.OBSERVED,
        words=f"passes: {what} is observe; else {judged.words}",
        would=judged.verdicts,
    )


def _judged(one: Standing) -> Outlook:
    own, entry = one.own, one.entry
    if entry:
        blocks = entry.action == Action.BLOCK
        return Outlook(
            (Verdict.DROP if blocks else Verdict.PASS,),
            Reason.ENTRY,
            f"{'dropped' if blocks else 'passes'}: live entry {entry.prefix} "
            f"{entry.action.word}s it",
        )
    if own.action == "block":
        return Outlook((Verdict.DROP,), Reason.BLOCK, f"dropped: class {own.name} is blocked")
    if own.action == "exempt":
        return Outlook((Verdict.PASS,), Reason.EXEMPT, f"passes: class {own.name} is exempt")
    blocking = {when: name for name, when, blocks in one.signatures() if blocks}
    if "always" in blocking:
        return Outlook(
            (Verdict.DROP,),
            Reason.SIGNATURE,
            f"dropped if it looks like the last one noted: signature {blocking['always']}",
        )
    if one.left:
        words = f"passes: within {own.rate} burst {own.burst}"
        if one.source is None:
            words += (
                "; it gets a slot in the source table, or, if none is free, is charged to "
                f"[newcomers] {one.policy.newcomers_rate}"
            )
        return Outlook((Verdict.PASS,), Reason.CONFORM, words)
    return _excess(one, blocking.get("excess"))


def _excess(one: Standing, signature: str | None) -> Outlook:
    wait = f"excess for {one.wait_seconds:.1f} s more: "
    if signature:
        return Outlook(
            (Verdict.DROP,),
            Reason.SIGNATURE,
            f"{wait}dropped if it looks like the last one noted: signature {signature}",
        )
    share = one.own.leak
    if share == 1:
        return Outlook((Verdict.PASS,), Reason.LEAK, f"{wait}passes: the leak is all of it")
    passes = f"{wait}{share.numerator} in {share.denominator} passes, the rest is "
    why = _no_kod(one)
    if why:
        return Outlook(
            (Verdict.PASS, Verdict.DROP), Reason.LIMIT, f"{passes}dropped: no KoD: {why}"
        )
    return Outlook(
        (Verdict.PASS, Verdict.KOD, Verdict.DROP), Reason.LIMIT, f"{passes}kissed or dropped"
    )


def _no_kod(one: Standing) -> str | None:
    """Why an excess request would not be kissed, as far as its source tells."""
    policy, source = one.policy, one.source
    if not one.own.kod:
        return f"class {one.own.name} has none"
    if source is None:
        return None
    if source.control:
        return "one source in 16 is never kissed, and this is one: see ntpguard kod"
    if source.deaf:
        return f"deaf: {source.unheeded} not heeded"
    if source.excess_since_pass >= policy.kod_flood:
        return f"a flood: over {policy.kod_flood} excess since the last pass"
    ago = source.kod_seconds_ago
    if ago is not None and ago < policy.kod_interval:
        if source.held:
            return f"its first is held back for {policy.kod_interval} s: see ntpguard kod"
        return f"the last was {span(ago)} ago, one in {policy.kod_interval} s"
    return None
