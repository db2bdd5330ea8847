"""kod."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from ntpguard import reading, trials
from ntpguard.cli.output import Context, columns
from ntpguard.trials import Change, Comparison, Difference
from ntpguard.words import Group, Mode

ALL = "all"


@click.command(epilog="Example: ntpguard kod")
@click.pass_obj
def kod(context: Context) -> None:
    """Whether KoDs help here: kissed sources beside a control group that is never kissed.

    SLOWED: under half of its rate before, or silent; FASTER: over one and a half of it. A source is
    told about a minute after its first KoD. Differences are in points of a hundred, with intervals
    of 95 %: of 20 clients to which a KoD does nothing, one will seem to differ. A client is
    guessed from its header.
    """
    with reading.open_running(context.bpffs) as guard:
        outcomes, heeding, mode = guard.trials(), guard.heeding(), guard.mode()
        kissing = any(one.kod for one in guard.policy().classes)
    known = trials.compare(outcomes)
    rows = [
        trials.together(known.values(), ALL),
        *sorted(known.values(), key=lambda one: -sum(map(one.sources, Group))),
    ]
    undecided = sum(count for one, count in outcomes.items() if one.change is None)
    data = {
        "mode": mode.word,
        "kod": kissing,
        "heeded": {group.word: int(heeding.heeded[group]) for group in Group},
        "unheeded": {group.word: int(heeding.unheeded[group]) for group in Group},
        "undecided": undecided,
        "clients": [_data(one) for one in rows],
    }
    context.emit(data, _lines(rows, undecided, mode, kissing=kissing))


def _counts(counts: Counter[Change]) -> dict[str, int]:
    return {"sources": counts.total()} | {change.word: counts[change] for change in Change}


def _difference(one: Difference | None) -> dict[str, float] | None:
    return {"difference": one.share, "low": one.low, "high": one.high} if one else None


def _data(one: Comparison) -> dict[str, Any]:
    return {
        "client": None if one.client == ALL else one.client,
        **{group.word: _counts(one.counts[group]) for group in Group},
        "slowed": _difference(one.difference(Change.SLOWED)),
        "faster": _difference(one.difference(Change.FASTER)),
        "finding": one.finding(),
    }


def _lines(rows: list[Comparison], undecided: int, mode: Mode, *, kissing: bool) -> Iterator[str]:
    if mode != Mode.ENFORCE:
        yield f"mode is {mode.word}: nobody is kissed, no trial begins: try ntpguard mode enforce"
    elif not kissing:
        yield "kod.enabled is false: nobody is kissed, no trial begins"
    table = [
        (
            one.client,
            group.word,
            one.sources(group),
            *(_share(one.counts[group][change], one.sources(group)) for change in Change),
        )
        for one in rows
        for group in Group
    ]
    yield from columns(("CLIENT", "GROUP", "SOURCES", *(one.name for one in Change)), table)
    yield ""
    width = max(len(one.client) for one in rows)
    for one in rows:
        yield f"{one.client:{width}}  {one.finding()}"
    if undecided:
        more = "source is" if undecided == 1 else "sources are"
        yield f"{undecided} more {more} watched, and not told yet"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else "-"
