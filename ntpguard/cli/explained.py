"""What `show` prints of an explanation: as JSON, and for people."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ntpguard.cli.output import when
from ntpguard.explain import Explanation, Header, Inside, Noted
from ntpguard.moments import Moment, span
from ntpguard.reading import Ending
from ntpguard.sources import Source
from ntpguard.words import Reason, Verdict

SHOWN_INSIDE = 8  # lines for people; JSON has all


def source_data(one: Source, class_name: str | None) -> dict[str, Any]:
    """A source's slot for JSON."""
    return {
        "source": one.source,
        "requests": one.requests,
        "excess": one.excess,
        "class": class_name,
        "established": one.established,
        "deaf": one.deaf,
        "unheeded": one.unheeded,
        "excess_since_pass": one.excess_since_pass,
        "tat_ahead_seconds": one.tat_ahead_seconds,
    }


def ago(moment: Moment) -> str:
    """How long a moment is past, for people."""
    return span(-moment.left_seconds())


def show_data(one: Explanation) -> dict[str, Any]:
    """An explanation for JSON; null where something is unknown, or is not."""
    own, entry, standing, outlook = one.own, one.entry, one.standing, one.outlook
    index = one.source.class_index if one.source else None
    classes = standing.policy.classes
    of_slot = classes[index].name if index is not None and index < len(classes) else None
    return {
        "address": str(one.address),
        "name": one.name,
        "class": own.name,
        "prefix": str(one.prefix) if one.prefix else None,
        "upstream": str(one.upstream) if one.upstream else None,
        "action": own.action,
        "rate": str(own.rate),
        "rate_per_second": float(own.rate.per_second),
        "burst": own.burst,
        "leak": float(own.leak),
        "kod": own.kod,
        "live": one.live,
        "until": when(one.limit_ending.until) if one.limit_ending else None,
        "then": _then(one.limit_ending, own.name),
        "left": standing.left if own.action == "limit" else None,
        "wait_seconds": standing.wait_seconds if own.action == "limit" else None,
        "mode": standing.mode.word,
        "judged": standing.judged.word,
        "mode_until": when(one.mode_ending.until) if one.mode_ending else None,
        "mode_after": one.mode_ending.after.mode if one.mode_ending else None,
        "inside": [
            {"prefix": str(each.prefix), "class": each.class_name, "action": each.action}
            for each in one.inside
        ],
        "source": source_data(one.source, of_slot) if one.source else None,
        "patience": standing.policy.kod_patience,
        "last_kod": when(one.last_kod),
        "deaf_until": when(one.deaf_until),
        "noted": _noted_data(one.noted) if one.noted else None,
        "entry": {
            "prefix": str(entry.prefix),
            "action": entry.action.word,
            "expires": when(entry.moment()),
            "by": one.note.by,
            "reason": one.note.reason,
        }
        if entry
        else None,
        "next_request": outlook.words,
        "next_verdicts": [verdict.word for verdict in outlook.verdicts],
        "next_reason": outlook.reason.word,
        "enforce_verdicts": [verdict.word for verdict in outlook.would or outlook.verdicts],
        "commands": [dataclasses.asdict(each) for each in one.commands],
    }


def _then(ending: Ending | None, name: str) -> dict[str, Any] | None:
    after = ending.after.class_named(name) if ending else None
    if after is None:
        return None
    return {
        "rate": str(after.rate),
        "rate_per_second": float(after.rate.per_second),
        "burst": after.burst,
    }


def _noted_data(noted: Noted) -> dict[str, Any]:
    return {
        "first_seen": when(noted.first_seen),
        "last_seen": when(noted.last_seen),
        "sampled": {verdict.word: count for verdict, count in noted.sampled.items()},
        "source_port": noted.source_port,
        "ttl": noted.ttl,
        **dataclasses.asdict(Header.of(noted.header)),
        "header": noted.header.hex(),
        "signatures": list(noted.signatures),
        "clients": list(noted.clients),
    }


def show_lines(one: Explanation, *, verbose: bool) -> Iterator[str]:
    """An explanation for people."""
    own, standing = one.own, one.standing
    address = str(one.address)
    yield f"source     {one.name if one.source else address}" + (
        "" if one.source else ", not in the source table"
    )
    yield f"class      {own.name}" + (f", by prefix {one.prefix}" if one.prefix else "")
    for each in one.inside[:SHOWN_INSIDE]:
        yield f"{'':11}{_inside(each)}"
    if len(one.inside) > SHOWN_INSIDE:
        yield f"{'':11}and {len(one.inside) - SHOWN_INSIDE} more prefixes in it: -o json has them"
    if one.upstream:
        blocked = one.outlook.reason in (Reason.BLOCK, Reason.ENTRY)
        dropped = blocked and Verdict.DROP in one.outlook.verdicts
        yield f"upstream   {one.upstream}: its answers {'are dropped too' if dropped else 'pass'}"
    if own.action == "limit":
        yield f"limit      {own.rate} burst {own.burst}, {standing.left} left now{_temporary(one)}"
    else:
        yield f"action     {own.action}"
    yield from _state(one)
    canary = f", class {own.name}: observe" if standing.judged != standing.mode else ""
    until = f" {one.mode_ending.until.words()}" if one.mode_ending else ""
    yield f"mode       {standing.mode.word}{until}{canary}"
    if one.source and verbose:
        yield f"since pass {one.source.excess_since_pass} excess"
        yield f"tat        {one.source.tat_ahead_seconds:.1f} s ahead"
    if one.noted:
        yield from _noted(one.noted, verbose=verbose)
    if one.entry:
        by = f", by {one.note.by}" if one.note.by else ""
        why = f": {one.note.reason}" if one.note.reason else ""
        yield f"entry      {one.entry.prefix} {one.entry.words()}{by}{why}"
    yield f"next       {one.outlook.words}"
    width = max(len(each.command) for each in one.commands) if one.commands else 0
    for index, todo in enumerate(one.commands):
        yield f"{'' if index else 'try':11}{todo.command:{width}}  # {todo.effect}"


def _inside(one: Inside) -> str:
    if one.class_name is None:
        return f"{one.prefix} in it has a live entry: {one.action}"
    return f"{one.prefix} in it is of class {one.class_name}" + (
        "" if one.action == "limit" else f": {one.action}"
    )


def _temporary(one: Explanation) -> str:
    then = _then(one.limit_ending, one.own.name)
    if one.limit_ending and then:
        until = one.limit_ending.until.words()
        return f", live {until}, then {then['rate']} burst {then['burst']}"
    return ", live" if one.live else ""


def _state(one: Explanation) -> Iterator[str]:
    source = one.source
    if source is None:
        yield "requests   none seen, or forgotten"
        return
    yield f"requests   {source.requests}, {source.excess} of them excess"
    yield f"state      {'established' if source.established else 'newcomer'}"
    if source.control:
        yield "kod        never kissed: it is in the control group of ntpguard kod"
        return
    patience = one.standing.policy.kod_patience
    heeded = f"kod        {source.unheeded} not heeded, deaf at {patience}"
    if one.last_kod:
        heeded += f", the last {ago(one.last_kod)} ago"
    if one.deaf_until:
        heeded += f": deaf, until it sends no excess for {one.deaf_until.left()}"
    yield heeded


def _noted(noted: Noted, *, verbose: bool) -> Iterator[str]:
    sampled = ", ".join(f"{v.word} {n}" for v, n in noted.sampled.items() if n or v != Verdict.KOD)
    yield (
        f"excess     first {ago(noted.first_seen)} ago, last {ago(noted.last_seen)} ago; "
        f"of a sample: {sampled}"
    )
    header = Header.of(noted.header)
    yield (
        f"header     version {header.version}, mode {header.mode}, poll {header.poll}, "
        f"stratum {header.stratum}, from port {noted.source_port}, TTL {noted.ttl}"
    )
    if verbose:
        yield f"{'':11}{noted.header.hex(' ', 4)}"
    if noted.signatures:
        yield f"signature  {', '.join(noted.signatures)}"
    looks = " or ".join(noted.clients)
    yield f"client     {f'looks like {looks}' if looks else 'of no known shape'}"
