"""ntpguard replay: captures of which the verdicts are known, by hand or by the model."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ntpguard.cli import main
from tests import NTPGUARD, captures
from tests.bpf.packets import CLIENT_MAC, IPV4, IPV6, SERVER4, SERVER6, Frame, ntp
from tests.captures import SECOND, Record

pytestmark = pytest.mark.skipif(
    "NTPGUARD_PRIVATE" not in os.environ, reason="loads programs: runs in tests/private"
)
DAY = 1_700_000_000 * SECOND  # 2023-11-14T22:13:20Z
PLAIN = '[sources]\ncapacity = 4096\n[limit]\nrate = "60/minute"\nburst = 4\nleak = "1/1024"\n'
ABUSER, POLITE, BUSY = "198.18.0.9", "203.0.113.7", "2001:db8:12::7"


def record(seconds: float, frame: Frame) -> Record:
    return DAY + round(seconds * SECOND), bytes(frame), None


def answer(request: Frame) -> Frame:
    """What the server's daemon sends."""
    return request.but(
        payload=ntp(mode=4, stratum=2),
        source=request.destination,
        destination=request.source,
        source_port=request.destination_port,
        destination_port=request.source_port,
        source_mac=request.destination_mac,
        destination_mac=CLIENT_MAC,
    )


def day() -> list[Record]:
    """An hour of polite clients' minutes; an abuser's 20 requests within 2 s in the middle of it;
    the answers; the server's own client; and what is not NTP.
    """
    polite = IPV4.but(source=POLITE)
    polite6 = IPV6.but(source=BUSY)
    upstream = IPV4.but(source=SERVER4, destination="203.0.113.250", source_port=123)
    records = []
    for minute in range(60):
        records += [record(60 * minute, polite), record(60 * minute, answer(polite))]
        records += [record(60 * minute + 1, polite6), record(60 * minute + 1, answer(polite6))]
        records += [record(60 * minute + 2, upstream), record(60 * minute + 2, answer(upstream))]
    for i in range(20):
        one = IPV4.but(source=ABUSER, source_port=1337)
        records.append(record(1800.5 + i / 10, one))
    records.append(record(1800.5, IPV4.but(destination_port=53)))
    records.append(record(1800.5, IPV4.but(protocol=6)))
    return sorted(records, key=lambda one: one[0])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to be in, with a capture and a policy."""
    monkeypatch.chdir(tmp_path)
    Path("day.pcap").write_bytes(captures.pcap(day()))
    Path("ntpguard.toml").write_text('mode = "enforce"\n' + PLAIN)
    yield tmp_path


def told(*arguments: str, code: int = 0) -> str:
    """What the command prints, messages included."""
    done = CliRunner().invoke(main, ["replay", *arguments])
    assert done.exit_code == code, done.output
    return str(done.output)


def data(*arguments: str) -> Any:
    """Its JSON."""
    done = subprocess.run(
        [NTPGUARD, "-o", "json", "replay", *arguments], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == 1 and document["time"].endswith("Z")
    return document["data"]


def test_an_abuser_between_polite_clients_is_found(files: Path) -> None:
    found = data("day.pcap", "--policy", "ntpguard.toml")
    assert found["capture"] == {
        "file": "day.pcap",
        "servers": [SERVER4, SERVER6],
        "packets": 382,
        "first_time": "2023-11-14T22:13:20.000000Z",
        "last_time": "2023-11-14T23:12:22.000000Z",
        "span_seconds": 3542.0,
        # answers to clients, and requests to its upstream
        "sent_by_server": 180,
        "cut": 0,
        "other": 2,
        "untimed": 0,
        "backwards": 0,
        "damage": None,
    }
    own = found["policy"]
    assert found["compare"] is None and own["file"] == "ntpguard.toml"
    # 60 answers of the upstream beside 140 requests; of the abuser's, the burst of 4 passes and one
    # more when 1 s has passed (the 11th, 1.0 s after the first); the first excess is kissed
    assert (own["judged"], own["requests"], own["sources_seen"]) == (200, 140, 3)
    assert own["requests_per_second"] == pytest.approx(140 / 3542)
    assert own["reasons"] == [
        {"verdict": "pass", "reason": "conform", "packets": 125},
        {"verdict": "pass", "reason": "answer", "packets": 60},
        {"verdict": "kod", "reason": "limit", "packets": 1},
        {"verdict": "drop", "reason": "limit", "packets": 14},
    ]
    assert own["verdicts"] == {"pass": 185, "kod": 1, "drop": 14}
    assert own["classes"] == [{"class": "default", "pass": 185, "kod": 1, "drop": 14}]
    (abuser,) = own["sources"]
    assert abuser.pop("rate_per_second") == pytest.approx(10)
    assert abuser == {
        "source": ABUSER,
        "requests": 20,
        "excess": 15,
        "passed": 5,
        "kissed": 1,
        "dropped": 14,
        "signature": None,
    }


def test_the_table_is_what_people_read(files: Path) -> None:
    assert (
        told("day.pcap", "--policy", "ntpguard.toml")
        == """\
capture    day.pcap: 382 packets in 3542.0 s from 2023-11-14T22:13:20.000000Z
server     198.51.100.1, 2001:db8::1
judged     200: 140 requests (2.4/min) of 3 sources, 60 others
not judged 180 that the server sent, 0 cut, 2 others

pass       185 (92.5%): conform 125, answer 60
kod        1 (0.5%): limit 1
drop       14 (7.0%): limit 14

CLASS    PASS  KOD  DROP
default   185    1    14

SOURCE      REQUESTS  EXCESS  PASSED  KISSED  DROPPED  RATE    SIGNATURE
198.18.0.9        20      15       5       1       14  10.0/s  -
"""
    )


def test_observe_is_judged_as_enforce_and_said(files: Path) -> None:
    canary = '[[class]]\nname = "canary"\nprefixes = ["198.18.0.0/15"]\nmode = "observe"\n'
    Path("observe.toml").write_text(PLAIN + canary)
    shown = told("day.pcap", "--policy", "observe.toml")
    assert "observe.toml: mode is observe: judged as if it were enforce\n" in shown
    assert "observe.toml: class canary: mode is observe: judged as if it were enforce\n" in shown
    assert data("day.pcap", "--policy", "observe.toml")["policy"]["classes"] == [
        {"class": "default", "pass": 180, "kod": 0, "drop": 0},
        {"class": "canary", "pass": 5, "kod": 1, "drop": 14},
    ]


def test_compare_shows_what_another_policy_would_do(files: Path) -> None:
    Path("new.toml").write_text(
        PLAIN.replace("burst = 4", "burst = 16")
        + f'[[class]]\nname = "v6"\nprefixes = ["{BUSY}/128"]\naction = "block"\n'
    )
    arguments = ("day.pcap", "--policy", "ntpguard.toml", "--compare", "new.toml")
    found = data(*arguments)
    assert found["policy"] == data("day.pcap", "--policy", "ntpguard.toml")["policy"]
    other = found["compare"]
    assert other["policy"] == data("day.pcap", "--policy", "new.toml")["policy"]
    # of the abuser's, the burst of 16 passes and one after 1 s
    assert other["classes"] == [
        {"class": "default", "verdict": "pass", "before": 185, "after": 137, "difference": -48},
        {"class": "default", "verdict": "kod", "before": 1, "after": 1, "difference": 0},
        {"class": "default", "verdict": "drop", "before": 14, "after": 2, "difference": -12},
        {"class": "v6", "verdict": "drop", "before": 0, "after": 60, "difference": 60},
    ]
    first, second = other["sources"]
    assert [one["source"] for one in (first["before"], first["after"])] == [f"{BUSY[:-1]}/64"] * 2
    assert (first["before"]["passed"], first["after"]["passed"]) == (60, 0)
    assert second["before"]["source"] == ABUSER
    assert (second["before"]["dropped"], second["after"]["dropped"]) == (14, 2)
    shown = told(*arguments)
    assert shown.endswith(
        """\
A: ntpguard.toml, B: new.toml
CLASS    VERDICT    A    B  B - A
default  pass     185  137    -48
default  kod        1    1      0
default  drop      14    2    -12
v6       drop       0   60     60

SOURCE            PASS A   B  KOD A  B  DROP A   B
2001:db8:12::/64      60   0      0  0       0  60
198.18.0.9             5  17      1  1      14   2
"""
    )


def test_a_policy_compared_with_itself_differs_in_nothing(files: Path) -> None:
    shown = told("day.pcap", "--policy", "ntpguard.toml", "--compare", "ntpguard.toml")
    assert shown.endswith("\nno source is treated differently\n")


def test_every_format_and_link_type_is_judged_alike(files: Path) -> None:
    expected = data("day.pcap", "--policy", "ntpguard.toml")["policy"]
    records = day()
    raw = [(time, frame[14:], None) for time, frame, _ in records]
    cooked = [
        (
            time,
            bytes([0, 4 if frame[6:12] != CLIENT_MAC else 0, 0, 1, 0, 6]) + bytes(8) + frame[12:],
            None,
        )
        for time, frame, _ in records
    ]
    for name, written in (
        ("big.pcap", captures.pcap(records, order=">", nanoseconds=True)),
        ("day.pcapng", captures.ng(records)),
        ("raw.pcap", captures.pcap(raw, link=captures.RAW)),
        ("any.pcap", captures.pcap(cooked, link=captures.SLL)),
    ):
        Path(name).write_bytes(written)
        assert data(name, "--policy", "ntpguard.toml")["policy"] == expected, name


def test_the_name_of_a_signature_that_refused_requests_have_is_shown(files: Path) -> None:
    shapes = (
        '[[signature]]\nname = "port"\nsource_port = 1338\nmode = "observe"\n'
        '[[signature]]\nname = "clock"\nsource_port = 1337\nheader = "23 00 06 20"\n'
        'mode = "observe"\n'
    )
    Path("shapes.toml").write_text(PLAIN + shapes)
    (abuser,) = data("day.pcap", "--policy", "shapes.toml")["policy"]["sources"]
    assert abuser["signature"] == "clock"


def test_whose_capture_it_is_can_be_said(files: Path) -> None:
    mine, another = "198.51.100.1", "198.51.100.2"
    records = [record(i, IPV4) for i in range(3)] + [record(9, IPV4.but(destination=another))]
    Path("two.pcap").write_bytes(captures.pcap(records))
    both = data("two.pcap", "--policy", "ntpguard.toml")
    assert both["capture"]["servers"] == [mine, another] and both["policy"]["judged"] == 4
    one = data("two.pcap", "--policy", "ntpguard.toml", "--server", mine)
    assert one["capture"]["servers"] == [mine] and one["policy"]["judged"] == 3
    assert one["capture"]["other"] == 1
    two = data("two.pcap", "--policy", "ntpguard.toml", "--server", mine, "--server", another)
    assert two["policy"] == both["policy"]


def test_a_pipe_is_read_once_if_the_server_is_named(files: Path) -> None:
    script = f"cat day.pcap | {NTPGUARD} replay /dev/stdin --policy ntpguard.toml"
    refused = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=90)
    assert (refused.returncode, refused.stderr) == (
        2,
        "ntpguard: /dev/stdin: no regular file, to be read twice: give --server ADDRESS\n",
    )
    script += f" --server {SERVER4} --server {SERVER6}"
    read = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=90)
    assert (read.returncode, read.stderr) == (0, "")
    expected = told("day.pcap", "--policy", "ntpguard.toml")
    assert read.stdout == expected.replace("day.pcap", "/dev/stdin")


def test_only_the_policys_ports_and_destinations_are_judged(files: Path) -> None:
    other = IPV4.but(destination_port=1123)
    records = [record(1, IPV4), record(2, other), record(3, IPV6), record(4, IPV6)]
    Path("some.pcap").write_bytes(captures.pcap(records))
    Path("ports.toml").write_text("ports = [1123]\n" + PLAIN)
    Path("destinations.toml").write_text(f'destinations = ["{SERVER6}"]\n' + PLAIN)
    found = data("some.pcap", "--policy", "ports.toml", "--compare", "destinations.toml")
    assert (found["policy"]["judged"], found["compare"]["policy"]["judged"]) == (1, 2)
    assert found["capture"]["other"] == 1


def test_a_policy_that_judges_nothing_can_be_compared_with_one_that_does(files: Path) -> None:
    Path("ports.toml").write_text("ports = [1123]\n" + PLAIN)
    shown = told("day.pcap", "--policy", "ports.toml", "--compare", "ntpguard.toml")
    assert "\njudged     0: 0 requests" in shown and "\npass       0 (-)\n" in shown
    assert re.search(r"^default +pass +0 +185 +185$", shown, re.M), shown


def test_time_that_goes_back_stands_still_and_is_said(files: Path) -> None:
    # 5 requests, of which one is late: at 1/s and a burst of 4 all pass, but for the late one's time
    records = [record(at, IPV4) for at in (10, 11, 12, 5, 12)]
    Path("late.pcap").write_bytes(captures.pcap(records))
    shown = told("late.pcap", "--policy", "ntpguard.toml")
    assert "late.pcap: 1 packets are earlier than one before them: judged at the time of" in shown
    found = data("late.pcap", "--policy", "ntpguard.toml")
    assert (found["capture"]["backwards"], found["capture"]["span_seconds"]) == (1, 2)
    assert found["policy"]["verdicts"]["pass"] == 5


def test_packets_without_a_time_are_judged_and_said(files: Path) -> None:
    written = captures.section() + captures.interface() + captures.simple(bytes(IPV4)) * 5
    Path("simple.pcapng").write_bytes(written)
    shown = told("simple.pcapng", "--policy", "ntpguard.toml")
    assert "simple.pcapng: 5 packets have no time (simple packet blocks): judged at" in shown
    found = data("simple.pcapng", "--policy", "ntpguard.toml")
    assert found["capture"]["first_time"] is None
    assert found["policy"]["requests_per_second"] is None
    assert found["policy"]["verdicts"] == {"pass": 4, "kod": 1, "drop": 0}


def test_a_truncated_capture_counts_as_far_as_it_goes(files: Path) -> None:
    whole = captures.pcap([record(i, IPV4) for i in range(3)])
    Path("cut.pcap").write_bytes(whole[:-1])
    shown = told("cut.pcap", "--policy", "ntpguard.toml")
    at = 24 + 2 * (16 + len(bytes(IPV4)))
    damage = f"cut.pcap: record 3, at byte {at}: truncated: what came before counts"
    assert f"ntpguard: warning: {damage}\n" in shown
    found = data("cut.pcap", "--policy", "ntpguard.toml")
    assert (found["capture"]["damage"], found["policy"]["judged"]) == (damage, 2)


def test_packets_cut_by_the_snap_length_are_counted_and_said(files: Path) -> None:
    time_ns, frame, _ = record(1, IPV4)
    short = (time_ns, frame[:68], len(frame))
    dns = (time_ns, bytes(IPV4.but(destination_port=53))[:68], len(frame))
    Path("short.pcap").write_bytes(captures.pcap([short, short, dns, record(2, IPV4)]))
    shown = told("short.pcap", "--policy", "ntpguard.toml")
    assert (
        "ntpguard: warning: short.pcap: 2 packets are cut before the end of their NTP header and "
        "not judged: capture with tcpdump -s 256\n"
    ) in shown
    found = data("short.pcap", "--policy", "ntpguard.toml")
    assert (found["capture"]["cut"], found["capture"]["other"]) == (2, 1)
    assert found["policy"]["judged"] == 1
    Path("short.pcap").write_bytes(captures.pcap([short, short]))
    assert told("short.pcap", "--policy", "ntpguard.toml", code=1) == (
        "ntpguard: short.pcap: all 2 packets to judge are cut before the end of their NTP header: "
        "capture with tcpdump -s 256\n"
    )


def test_what_cannot_be_judged_is_refused_with_a_remedy(files: Path) -> None:
    Path("text.pcap").write_text("no capture\n")
    Path("none.pcap").write_bytes(captures.pcap([]))
    Path("dns.pcap").write_bytes(captures.pcap([record(1, IPV4.but(destination_port=53))]))
    late = (DAY + 10**10 * SECOND // 20, bytes(IPV4), None)
    Path("years.pcap").write_bytes(captures.pcap([record(0, IPV4), late]))
    Path("bad.toml").write_text("rate = 1\n")
    named = ("--server", SERVER4)
    for arguments, code, start in (
        (("gone.pcap",), 2, "gone.pcap: cannot read: No such file or directory"),
        ((".",), 2, ".: no regular file, to be read twice"),
        ((".", *named), 2, ".: cannot read: Is a directory"),
        (("text.pcap",), 1, "text.pcap: neither pcap nor pcapng (begins with 6e6f2063): if"),
        (("none.pcap",), 1, "none.pcap: no packet in it: capture for longer"),
        (("none.pcap", *named), 1, "none.pcap: no packet in it: capture for longer"),
        (("dns.pcap",), 1, "dns.pcap: no NTP request (mode 3 to port 123) in it that tells"),
        (("dns.pcap", *named), 1, f"dns.pcap: no packet to port 123 of {SERVER4} in it: see"),
        (("years.pcap",), 1, "years.pcap: packet 2 is 5787 days after the first: split"),
        (("day.pcap", "--server", "host"), 2, "--server: host: no IP address: write it like"),
    ):
        shown = told(*arguments, "--policy", "ntpguard.toml", code=code)
        assert shown.startswith(f"ntpguard: {start}"), shown
    assert told("day.pcap", "--policy", "bad.toml", code=3).startswith("ntpguard: bad.toml:1: ")
    assert "Missing option '--policy'" in told("day.pcap", code=2)


def test_without_the_capabilities_they_are_named(files: Path) -> None:
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
            *(NTPGUARD, "replay", "day.pcap", "--policy", "ntpguard.toml"),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 5
    assert re.fullmatch(
        "ntpguard: .*: EPERM: CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed: try sudo\n",
        done.stderr,
    )


def test_nothing_is_left_and_no_interface_is_touched(files: Path) -> None:
    bpffs = Path(os.environ["NTPGUARD_BPFFS"])
    before = (sorted(bpffs.rglob("*")), os.sched_getaffinity(0))
    told("day.pcap", "--policy", "ntpguard.toml")
    assert (sorted(bpffs.rglob("*")), os.sched_getaffinity(0)) == before
    shown = subprocess.run(["ip", "-d", "link"], capture_output=True, text=True, check=True)
    assert "xdp" not in shown.stdout


def test_on_a_terminal_a_bar_shows_how_far_it_is(files: Path) -> None:
    Path("long.pcap").write_bytes(captures.pcap([record(i / 1000, IPV4) for i in range(20_000)]))
    for option, bar in (("", True), ("-q ", False)):
        line = f"{NTPGUARD} {option}replay long.pcap --policy ntpguard.toml >out"
        done = subprocess.run(
            ["script", "--quiet", "--return", "--command", line, "/dev/null"],
            capture_output=True,
            text=True,
            timeout=90,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout
        assert ("100%" in done.stdout) == bar
        assert Path("out").read_text().startswith("capture    long.pcap: 20000 packets in 20.0 s")
    piped = subprocess.run(
        [NTPGUARD, "replay", "long.pcap", "--policy", "ntpguard.toml"], capture_output=True
    )
    assert (piped.returncode, piped.stderr) == (0, b"")
