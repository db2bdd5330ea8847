"""The landing page: in a browser, and before clients of every kind."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ntpguard import lifecycle
from ntpguard.exporter import page as module
from ntpguard.exporter.page import HEADERS, KEPT, Page, Sample, chart, is_local
from ntpguard.policy.check import parse_policy
from ntpguard.words import Verdict
from tests.bpf.browser import browser
from tests.bpf.daemon import wait_for
from tests.bpf.live import data
from tests.bpf.test_exporter import POLICY, ask, exporter, flood, get
from tests.bpf.test_lifecycle import NAMES, pytestmark, up, where

__all__ = ["pytestmark", "where"]
LOCAL = {"REMOTE_ADDR": "127.0.0.1"}


def test_a_browser_shows_what_status_and_top_show(where: Path, tmp_path: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with exporter(), browser(tmp_path) as one:
        flood(where)
        wait_for(lambda: b"<svg" in get("/"), "there are two samples")
        seen = {}
        for width in (360, 1000):
            for dark in (False, True):
                one.open("http://127.0.0.1:9721/", width, dark=dark)
                assert one.tell("document.documentElement.scrollWidth") <= width
                seen[width, dark] = one.tell(
                    "getComputedStyle(document.body).backgroundColor + "
                    "getComputedStyle(document.body).color"
                )
        assert seen[360, False] == seen[1000, False] != seen[360, True]
        status, top = data("status"), data("top")
        for verdict, packets in status["packets"].items():
            assert (
                one.tell(f"document.getElementById('{verdict}').innerText")
                == f"{verdict} {packets}"
            )
        sources = status["sources"]
        held = f"{sum(sources['held'].values())} of {sources['capacity']}"
        assert one.tell("document.getElementById('sources').innerText") == held
        assert one.tell("document.getElementById('state').innerText").startswith("enforce on")
        shown = one.tell("[...document.querySelectorAll('td:first-child')].map(e => e.innerText)")
        assert shown == [source["source"] for source in top if source["excess"]][: module.TOP]
        assert one.tell("document.querySelectorAll('svg polygon').length") == len(Verdict)
        assert one.complaints() == []


def page(where: Path, **environ: str) -> str:
    return Page(where).render({**LOCAL, **environ}).decode()


def test_sources_are_shown_to_this_host_only_and_to_no_proxy(where: Path) -> None:
    up(where, policy=parse_policy(POLICY))
    flood(where)
    assert "203.0.113.2" in page(where)
    assert "203.0.113.2" in page(where, REMOTE_ADDR="::1")
    for environ in (
        {"REMOTE_ADDR": "198.51.100.9"},
        {"REMOTE_ADDR": "2001:db8::9"},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_FORWARDED": "for=127.0.0.1"},
        {"HTTP_VIA": "1.1 proxy"},
        {"HTTP_X_REAL_IP": "127.0.0.1"},
    ):
        text = page(where, **environ)
        assert "203.0.113" not in text and "ntpguard top" in text


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:198.51.100.1", False),
        ("198.51.100.1", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_this_host_is_known_by_its_address(address: str, local: bool) -> None:
    assert is_local({"REMOTE_ADDR": address}) is local


def test_a_guard_that_does_not_run_is_told_with_the_remedy(where: Path) -> None:
    text = page(where)
    assert "not running" in text and "ntpguard up INTERFACE" in text


def test_names_are_text_and_nothing_loads_from_elsewhere(where: Path, tmp_path: Path) -> None:
    file = tmp_path / "<script>alert(1)"
    file.write_text(POLICY)
    lifecycle.up(
        NAMES[:1],
        parse_policy(POLICY),
        xdp="auto",
        bpffs=where,
        policy_file=str(file),
        warn=print,
    )
    text = page(where)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=['\"]?(?:https?:)?//", text)
    policy = dict(HEADERS)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_the_headers_are_sent(where: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with exporter():
        head, _, body = ask(b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    for name, value in HEADERS:
        assert f"{name}: {value}".encode() in head
    assert body.startswith(b"<!DOCTYPE html>")


def samples(count: int, **each: int) -> list[Sample]:
    growth: dict[str, Any] = {"pass": 10, "kod": 0, "drop": 0} | each
    return [
        Sample(1000 + 5.0 * n, {one: growth[one.word] * n for one in Verdict}) for n in range(count)
    ]


def test_the_chart_covers_15_minutes_and_stays_in_its_frame() -> None:
    drawn = chart(samples(KEPT + 1, drop=100_000))
    points = [
        tuple(map(float, point.split(",")))
        for polygon in re.findall(r"points='(.*?)'", drawn)
        for point in polygon.split()
    ]
    assert len(points) == 3 * 2 * KEPT
    assert all(0 <= x <= module.WIDTH and 0 <= y <= module.HEIGHT for x, y in points)
    assert "drop 20 k" in drawn and "<span>50 k</span>" in drawn


def test_counters_that_begin_anew_are_no_negative_rate() -> None:
    falling = [*samples(2), Sample(1010, dict.fromkeys(Verdict, 0))]
    assert "now pass 0, kod 0, drop 0" in chart(falling)


def test_what_is_remembered_is_bounded(where: Path) -> None:
    up(where)
    one = Page(where)
    for _ in range(KEPT + 20):
        one.sample()
    assert len(one._samples) == KEPT + 1
