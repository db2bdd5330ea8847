"""top: through the command, on a running guard; packets go through the pinned program."""

import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from ntpguard import reading
from ntpguard.abi import Xdp
from ntpguard.policy.check import parse_policy
from tests import NTPGUARD
from tests.bpf.guard import kissed_at_once
from tests.bpf.live import data, packets, refused, told
from tests.bpf.packets import IPV4, IPV6, SERVER4
from tests.bpf.test_lifecycle import NAMES, ip, pytestmark, up, where

__all__ = ["pytestmark", "where"]
POLICY = """mode = "enforce"
[sources]
capacity = 4096
[limit]
rate = "1/hour"
burst = 1
leak = "1/1024"
[kod]
interval = "1s"
[[class]]
name = "campus"
prefixes = ["198.51.100.0/24", "2001:db8:12::/48"]
rate = "1/hour"
burst = 2
"""
# source -> requests
SENT = {
    "203.0.113.7": 5,
    "203.0.113.8": 6,
    "203.0.112.9": 10,
    "198.51.100.9": 2,
    "2001:db8:12::7": 4,
    "2001:db8:12:ff01::7": 7,
    "2001:db8:13::7": 1,
}


@pytest.fixture
def guard(where: Path) -> Iterator[Path]:
    ip("address", "add", f"{SERVER4}/24", "dev", NAMES[0])
    up(where, policy=parse_policy(POLICY))
    with packets(where) as send:
        for source, count in SENT.items():
            frame = (IPV6 if ":" in source else IPV4).but(source=source)
            for _ in range(count):
                send(frame)
    yield where


def named(rows: Any, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(one[key] for key in keys) for one in rows]


def test_sources_are_put_together_by_prefix(guard: Path) -> None:
    keys = ("prefix", "sources", "requests", "excess")
    found = named(data("top", "--by", "prefix"), *keys)
    assert set(found[:2]) == {("203.0.112.0/24", 1, 10, 9), ("203.0.113.0/24", 2, 11, 9)}
    assert found[2:] == [("2001:db8:12::/48", 2, 11, 7)]  # the others have no excess
    found = named(data("top", "--by", "prefix", "--sort", "requests"), *keys)
    assert sorted(found) == sorted(
        [
            ("203.0.113.0/24", 2, 11, 9),
            ("2001:db8:12::/48", 2, 11, 7),
            ("203.0.112.0/24", 1, 10, 9),
            ("198.51.100.0/24", 1, 2, 0),
            ("2001:db8:13::/48", 1, 1, 0),
        ]
    )
    assert [one[2] for one in found] == [11, 11, 10, 2, 1]
    assert len(data("top", "--by", "prefix", "-n", "1")) == 1
    assert told("top", "--by", "prefix").split()[:4] == ["PREFIX", "SOURCES", "REQUESTS", "EXCESS"]


def test_sources_are_put_together_by_class_and_those_of_older_prefixes_apart(guard: Path) -> None:
    keys = ("class", "sources", "requests", "excess")
    assert named(data("top", "--by", "class"), *keys) == [
        ("default", 4, 22, 18),
        ("campus", 3, 13, 7),
    ]
    up(guard, policy=parse_policy(POLICY))  # the prefixes are new ones
    assert named(data("top", "--by", "class"), *keys) == [(None, 7, 35, 25)]
    with packets(guard) as send:
        send(IPV4)
    assert named(data("top", "--by", "class"), *keys) == [
        (None, 6, 30, 21),
        ("default", 1, 6, 5),
    ]


def test_the_last_noted_and_the_most_stubborn_come_first_if_that_is_asked_for(guard: Path) -> None:
    assert data("top", "--sort", "kod") == []
    assert told("top", "--sort", "kod").endswith("\nno source ignores KoDs: try --sort excess\n")
    begin = time.monotonic()
    with reading.open_running(guard) as running:
        # one source in 16 is never kissed
        source = next(kissed_at_once((f"203.0.113.{n}" for n in range(1, 200)), running.seed))
    with packets(guard) as send:
        while not data("top", "--sort", "kod"):
            assert time.monotonic() < begin + 60
            send(IPV4.but(source=source))
            time.sleep(0.1)
        (stubborn,) = data("top", "--sort", "kod")
        assert (stubborn["source"], stubborn["unheeded"]) == (source, 1)
        time.sleep(1)
        late = IPV4.but(source="198.18.5.5")
        send(late)
        send(late)  # the first excess since a pass is always noted
    found = data("top", "--sort", "last")
    assert found[0]["source"] == "198.18.5.5"
    seen = [one["last_seen"] for one in found]
    assert None not in seen and seen == sorted(seen, reverse=True)
    assert "198.51.100.9" not in {one["source"] for one in found}  # it had no excess


def test_an_order_that_only_sources_have_is_refused_for_others(guard: Path) -> None:
    for sort in ("last", "kod"):
        assert refused("top", "--by", "class", "--sort", sort) == (
            f"ntpguard: --sort {sort}: an order of single sources: with --by class, use --sort "
            "excess or requests\n"
        )
    assert refused("-o", "json", "top", "-w") == (
        "ntpguard: -w: one JSON document would have no end: use -o ndjson\n"
    )


@contextmanager
def watching(*arguments: str, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*arguments], **settings)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_ndjson_tells_each_source_every_time_with_rates(guard: Path) -> None:
    call = (NTPGUARD, "-o", "ndjson", "top", "-n", "1", "-w", "0.5", "--sort", "requests")
    with watching(*call, stdout=subprocess.PIPE) as process, packets(guard) as send:
        assert process.stdout
        first = json.loads(process.stdout.readline())["data"]
        assert (first["source"], first["requests_per_second"]) == ("203.0.112.9", None)
        for _ in range(100):
            assert send(IPV4.but(source="203.0.112.9")) in (Xdp.DROP, Xdp.TX, Xdp.PASS)
        # each look has the requests since the one before: together, all that were sent
        rates = []
        while True:
            one = json.loads(process.stdout.readline())["data"]
            rates.append((one["requests_per_second"], one["excess_per_second"]))
            if one["requests"] == 110:
                break
        assert max(rates)[0] > 0 and max(rates)[1] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_elsewhere_than_on_a_terminal_each_look_is_a_block(guard: Path) -> None:
    with watching(NTPGUARD, "top", "-w0.2", stdout=subprocess.PIPE) as process:
        assert process.stdout
        lines = [process.stdout.readline().decode() for _ in range(2 * 8)]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert lines[0].split() == [
        "SOURCE",
        "REQUESTS",
        "EXCESS",
        "REQ/S",
        "EXC/S",
        "R",
        "LAST",
        "CLASS",
    ]
    blocks = "".join(lines).split("\n\n")
    assert len(blocks) >= 3 and "\x1b" not in "".join(lines)
    assert " - " in blocks[0] and " 0.0 " in blocks[1]


def terminal(
    call: list[str], environment: dict[str, str], stop: signal.Signals = signal.SIGINT
) -> tuple[int, str]:
    """Exit code, and what a terminal was sent, of a command that is stopped once it has drawn twice:
    by Ctrl-C, as it is typed, or by another signal.
    """
    outer, inner = pty.openpty()
    shown = bytearray()
    drawn = threading.Event()

    def read(stream: IO[bytes]) -> None:
        # a terminal whose last user has gone cannot be read
        try:
            while part := stream.read1(4096):  # type: ignore[attr-defined]
                shown.extend(part)
                if b" 0.0 " in shown:
                    drawn.set()
        except OSError:
            pass

    with os.fdopen(outer, "rb") as stream:
        process = subprocess.Popen(
            ["setsid", "--ctty", *call],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "70", "LINES": "9"}
            | environment,
        )
        os.close(inner)
        thread = threading.Thread(target=read, args=(stream,))
        thread.start()
        try:
            assert drawn.wait(60), shown
            if stop == signal.SIGINT:
                os.write(outer, b"\x03")
            else:
                process.send_signal(stop)
            code = process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
            thread.join()
    return code, shown.decode()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_rich_draws_in_place_and_gives_the_screen_back(
    guard: Path, stop: signal.Signals
) -> None:
    code, shown = terminal([NTPGUARD, "top", "-w", "0.3"], {}, stop)
    assert code == 0
    assert "\x1b[?1049h" in shown and "\x1b[?25l" in shown
    assert "203.0.112.9" in shown and "Traceback" not in shown
    end = shown.rpartition("203.0.112.9")[2]
    assert "\x1b[?1049l" in end and "\x1b[?25h" in end


def test_on_a_terminal_without_rich_it_is_drawn_in_place_too(guard: Path, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError\n")
    code, shown = terminal([NTPGUARD, "top", "-w", "0.3"], {"PYTHONPATH": str(tmp_path)})
    assert code == 0
    assert shown.count("\x1b[H\x1b[2J") >= 2
    assert "1049" not in shown and "\x1b[?25l" not in shown
    assert "203.0.112.9" in shown and "Traceback" not in shown
    for look in shown.split("\x1b[H\x1b[2J")[1:]:
        lines = look.split("\r\n")
        assert len(lines) <= 9 and max(map(len, lines)) <= 70


def test_top_ends_with_4_when_the_guard_goes_down(guard: Path) -> None:
    with watching(
        NTPGUARD, "top", "-w", "0.2", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        told("down")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 4 and b"not running" in errors
