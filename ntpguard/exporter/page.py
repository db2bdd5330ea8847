"""The landing page: what `status` and `top` show, and the last 15 minutes, for a browser."""

import ipaddress
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from ntpguard import __version__, health
from ntpguard.errors import NotRunning, NtpguardError
from ntpguard.moments import span
from ntpguard.ranking import Ranked, Ranking
from ntpguard.reading import Running, open_running
from ntpguard.words import Verdict

SAMPLE_SECONDS = 5.0
KEPT = 15 * 60 // int(SAMPLE_SECONDS)
TOP, TOP_SECONDS = 15, 10.0  # so many sources, read anew no more often
WIDTH, HEIGHT = 720, 150
PROXIED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")
HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #59636e; --line: #d1d9e0;
  --pass: #1a7f37; --kod: #9a6700; --drop: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #9198a1;
  --line: #3d444d; --pass: #3fb950; --kod: #d29922; --drop: #f85149; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .3rem 0; } a { color: inherit; } .faint { color: var(--faint); }
.state { font-weight: 600; } .ok { color: var(--pass); } .bad { color: var(--drop); }
.pass { color: var(--pass); } .kod { color: var(--kod); } .drop { color: var(--drop); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .6rem 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
svg { width: 100%; height: 9rem; display: block; }
.axis { display: flex; justify-content: space-between; color: var(--faint); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 500; color: var(--faint); } td { white-space: nowrap; }
@media (max-width: 30rem) { th:nth-child(2), td:nth-child(2), th:nth-child(5), td:nth-child(5)
  { display: none; } }
"""


@dataclass(frozen=True)
class Sample:
    """The packet path's totals at a time (monotonic, seconds)."""

    seconds: float
    packets: Mapping[Verdict, int]


class Page:
    """The page, and what it remembers: totals of the last 15 minutes, and the top for a while."""

    def __init__(self, bpffs: Path) -> None:
        self._bpffs = bpffs
        self._samples: deque[Sample] = deque(maxlen=KEPT + 1)
        self._ranking = Ranking("source", "excess", TOP)
        self._top: list[Ranked] = []
        self._top_at: float | None = None
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Takes a sample every five seconds, in a thread of its own."""

        def forever() -> None:
            while True:
                self.sample()
                time.sleep(SAMPLE_SECONDS)

        threading.Thread(target=forever, daemon=True).start()

    def sample(self) -> None:
        """Takes one sample; of a guard that does not run, there is none."""
        try:
            with open_running(self._bpffs) as guard:
                self._add(guard)
        except (NtpguardError, OSError):
            return

    def _add(self, guard: Running) -> None:
        """A sample: of mode observe, what would have happened."""
        counts = guard.counts()
        totals = counts.verdicts()
        for cell in counts.observed:
            if cell.verdict != Verdict.PASS:
                totals[cell.verdict] += cell.packets
                totals[Verdict.PASS] -= cell.packets
        with self._lock:
            self._samples.append(Sample(time.monotonic(), totals))

    def render(self, environ: Mapping[str, Any]) -> bytes:
        """The page for a client."""
        try:
            with open_running(self._bpffs) as guard:
                parts = [*self._status(guard), *self._history()]
                if is_local(environ):
                    parts += self._sources(guard)
                else:
                    parts.append(
                        "<h2>Sources</h2><p class=faint>Shown to a browser on this host only "
                        "(ssh -L 9721:127.0.0.1:9721), or by <code>ntpguard top</code>.</p>"
                    )
        except NotRunning as error:
            parts = [_state("not running", "bad"), f"<p>{escape(str(error))}</p>"]
        except NtpguardError as error:
            parts = [_state("cannot be read", "bad"), f"<p>{escape(str(error))}</p>"]
        body = "\n".join(parts)
        return (
            "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width, initial-scale=1'>"
            "<meta http-equiv=refresh content=10>"
            f"<title>ntpguard</title><style>{STYLE}</style></head><body>\n"
            f"<h1>ntpguard</h1>\n{body}\n<p class=faint><a href=/metrics>metrics</a> &middot; "
            f"version {escape(__version__)} &middot; {time.strftime('%H:%M:%S', time.gmtime())} UTC"
            "</p>\n</body></html>\n"
        ).encode("utf-8", "backslashreplace")

    def _status(self, guard: Running) -> Iterable[str]:
        problems = health.standing(guard, self._bpffs)
        policy, document, held = guard.policy(), guard.document(), guard.sources_held()
        where = ", ".join(f"{one.name} ({one.xdp})" for one in guard.interfaces()) or "nowhere"
        totals = guard.counts().verdicts()
        mode = guard.mode().word
        yield _state("degraded" if problems else f"{mode} on {where}", "bad" if problems else "ok")
        for problem in problems:
            yield f"<p class=bad>{escape(problem)}</p>"
        default = policy.classes[0]
        rows = {
            "attached": escape(where),
            "mode": escape(mode),
            "policy": escape(
                f"{document['file'] or 'built-in'}, revision {guard.revision()}, "
                f"{len(policy.classes) - 1} classes besides the default"
            ),
            "limit": escape(f"{default.rate} burst {default.burst}"),
            "packets": ", ".join(
                f"<span class={one.word} id={one.word}>{one.word} {totals[one]}</span>"
                for one in Verdict
            ),
            "sources": f"<span id=sources>{sum(held.values())} of {guard.capacity}</span>",
        }
        yield "<dl>" + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows.items()) + "</dl>"

    def _history(self) -> Iterable[str]:
        with self._lock:
            samples = list(self._samples)
        yield "<h2>The last 15 minutes</h2>"
        if len(samples) < 2:
            yield "<p class=faint>Begins now: come back in a few seconds.</p>"
            return
        yield chart(samples)
        covered = samples[-1].seconds - samples[0].seconds
        if covered < (KEPT - 2) * SAMPLE_SECONDS:
            yield f"<p class=faint>Watched for {span(covered)} so far.</p>"

    def _sources(self, guard: Running) -> Iterable[str]:
        with self._lock:
            now = time.monotonic()
            if self._top_at is None or now - self._top_at >= TOP_SECONDS:
                self._top, self._top_at = self._ranking.look(guard), now
            top, age = self._top, now - self._top_at
        yield "<h2>Sources with the most excess</h2>"
        shown = [one for one in top if one.excess]
        if not shown:
            yield "<p class=faint>None is over its limit.</p>"
            return
        head = ("source", "requests", "excess", "excess/s", "class")
        rows = [
            (
                escape(one.name or "-"),
                str(one.requests),
                str(one.excess),
                "-" if one.excess_per_second is None else f"{one.excess_per_second:.1f}",
                escape(one.class_name or "-"),
            )
            for one in shown
        ]
        yield "<div class=scroll><table><thead><tr>"
        yield "".join(f"<th scope=col>{name}</th>" for name in head)
        yield "</tr></thead><tbody>"
        for row in rows:
            cells = "".join(f"<td>{cell}</td>" for cell in row[1:])
            yield f"<tr><td>{row[0]}</td>{cells}</tr>"
        yield f"</tbody></table></div><p class=faint>As of {span(age)} ago.</p>"


def is_local(environ: Mapping[str, Any]) -> bool:
    """Whether a request comes from this host, and from no one behind a proxy on it."""
    try:
        address = ipaddress.ip_address(environ.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback and not any(name in environ for name in PROXIED)


def _state(text: str, kind: str) -> str:
    return f"<p class='state {kind}' id=state>{escape(text)}</p>"


def chart(samples: list[Sample]) -> str:
    """Packets a second, pass at the bottom, kod and drop on it, as an SVG."""
    begin = samples[-1].seconds - KEPT * SAMPLE_SECONDS
    rates = [
        (
            after.seconds,
            [
                max(0, after.packets[one] - before.packets[one])
                / max(0.001, after.seconds - before.seconds)
                for one in Verdict
            ],
        )
        for before, after in pairwise(samples)
    ]
    most = _round_up(max(sum(values) for _, values in rates))

    def x(seconds: float) -> str:
        return f"{WIDTH * (seconds - begin) / (KEPT * SAMPLE_SECONDS):.1f}"

    def y(rate: float) -> str:
        return f"{HEIGHT * (1 - rate / most):.1f}"

    areas = []
    for verdict in Verdict:
        upper = [f"{x(at)},{y(sum(values[: verdict + 1]))}" for at, values in rates]
        lower = [f"{x(at)},{y(sum(values[:verdict]))}" for at, values in reversed(rates)]
        areas.append(
            f"<polygon fill='var(--{verdict.word})' fill-opacity='.75' points='"
            f"{' '.join([*upper, *lower])}'/>"
        )
    lines = "".join(
        f"<line x1='0' x2='{WIDTH}' y1='{y(most * part)}' y2='{y(most * part)}' "
        "stroke='var(--line)'/>"
        for part in (0, 0.5, 1)
    )
    last = ", ".join(f"{one.word} {_short(rates[-1][1][one])}" for one in Verdict)
    legend = ", ".join(f"<span class={one.word}>{one.word}</span>" for one in reversed(Verdict))
    return (
        f"<p>Packets a second: {legend}. Now {last}.</p>"
        f"<div class=axis><span>{_short(most)}</span></div>"
        f"<svg viewBox='0 -1 {WIDTH} {HEIGHT + 2}' preserveAspectRatio=none role=img "
        "aria-labelledby='chart-title'><title id=chart-title>Packets a second over the last 15 "
        f"minutes; now {last}</title>{lines}{''.join(areas)}</svg>"
        "<div class=axis><span>15 minutes ago</span><span>now</span></div>"
    )


def _round_up(rate: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if rate <= step * factor:
                return step * factor
        step *= 10


def _short(rate: float) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if rate >= size:
            return f"{rate / size:.3g}{unit}"
    return f"{rate:.3g}"
