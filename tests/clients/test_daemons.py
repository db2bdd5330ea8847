"""Real daemons that serve behind the guard: plain, authenticated, NTS, interleaved."""

import contextlib
import hashlib
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.daemon import wait_for
from tests.lab import clients
from tests.lab.lab import (
    CLIENT,
    CLIENT4,
    CLOCKLESS,
    PEERS,
    SERVER,
    SERVER4,
    Daemon,
    Lab,
    inside,
    namespace,
    run,
)
from tests.lab.test_lab import POLICY, pytestmark, requests_of, up, up_kissing

__all__ = ["pytestmark"]

SERVES = "allow\nlocal stratum 10"
KEY = "000102030405060708090a0b0c0d0e0f10111213"
# half leaks: eight drops in a row would cost an NTS client its cookies, and the test a wait
SHORT = '[limit]\nrate = "1/second"\nburst = 4\nleak = "1/2"\n'
HASTY = "minpoll -4 maxpoll -4"
UNIX = 2_208_988_800  # seconds from NTP's first era to 1970, RFC 5905 section 6


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as one:
        yield one


def keys(lab: Lab, line: str) -> Path:
    """A key file that both ends read."""
    file = lab.directory / "keys"
    file.write_text(line + "\n")
    file.chmod(0o600)
    return file


def ntpsec(lab: Lab, more: str = "") -> Daemon:
    """ntpsec's ntpd that serves its own clock."""
    file = lab.directory / "ntp.conf"
    # disable ntp: the clock is not disciplined
    file.write_text(f"disable ntp\ntos orphan 10 orphanwait 1\n{more}\n")
    command = [str(PEERS / "usr/sbin/ntpd"), "-n", "-c", str(file)]
    return lab.start(SERVER, "ntpsec", command, {})


def ntpdig(*options: str) -> str:
    """What an ntpdig says of the server, asked until it serves the time."""
    environment = f"PYTHONPATH={PEERS}/usr/lib/python3/dist-packages"
    command = ["env", environment, "python3", str(PEERS / "usr/bin/ntpdig"), "-t", "1", *options]
    end = time.monotonic() + 20
    while True:
        done = run(*inside(CLIENT, *command, SERVER4), check=False)
        if "no-leap" in done.stdout or time.monotonic() > end:
            return done.stdout + done.stderr
        time.sleep(0.5)


def offset(shown: str) -> float:
    """The offset that ntpdig has found, in seconds."""
    found = re.search(r"([+-]\d+\.\d+) \+/- ", shown)
    assert found, shown
    return float(found[1])


def verdicts(lab: Lab) -> dict[str, int]:
    """Requests by verdict, as the guard's status counts them."""
    shown = lab.guard("status").stdout
    found = {name: re.search(rf"\b{name} (\d+)", shown) for name in ("pass", "kod", "drop")}
    assert all(found.values()), shown
    return {name: int(one[1]) for name, one in found.items() if one}


def ntpdata(lab: Lab, name: str) -> str:
    """What chronyc says of the server as a chronyd of ours sees it."""
    path = lab.directory / name / "command"
    command = [str(PEERS / "usr/bin/chronyc"), "-h", str(path), "ntpdata"]
    return run(*inside(CLIENT, *command), check=False).stdout  # it may not listen yet


def interleaves(lab: Lab, name: str, more_than: int = 0) -> int:
    """Valid answers so far, once there are more than that and the last was interleaved."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        shown = ntpdata(lab, name)
        valid = re.search(r"Total valid RX\s*: (\d+)", shown)
        if valid and int(valid[1]) > more_than and re.search(r"Interleaved\s*: Yes", shown):
            return int(valid[1])
        time.sleep(0.1)
    raise AssertionError(ntpdata(lab, name))


def answers(count: int, key: bytes | None = None) -> list[bytes]:
    """What comes back for so many requests, 50 a second, with key 7 or without."""
    replies = []
    with namespace(CLIENT):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.connect((SERVER4, 123))
        for number in range(1, count + 1):
            body = struct.pack("!B39xQ", 0x23, number)
            tag = struct.pack("!I", 7) + hashlib.sha1(key + body).digest() if key else b""
            asking.send(body + tag)
            time.sleep(0.02)
        asking.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                replies.append(asking.recv(256))
    return replies


def asked_by_a_chronyd() -> float | None:
    """The time from a chronyd's point of view, less the clock's; None: it took no answer."""
    chronyd = [*CLOCKLESS, str(PEERS / "usr/sbin/chronyd"), "-Q", "-t", "10", "-u", "root"]
    server = f"server {SERVER4} iburst maxsamples 1"
    done = run(*inside(CLIENT, *chronyd, server, "pidfile /run/once.pid"), check=False)
    wrong = re.search(r"wrong by (-?\d+\.\d+) seconds", done.stdout + done.stderr)
    return float(wrong[1]) if wrong else None


def test_a_chronyd_serves_a_polite_chronyd(lab: Lab) -> None:
    lab.chronyd(SERVER, "server", SERVES)
    up(lab)
    wrong = asked_by_a_chronyd()
    assert wrong is not None and abs(wrong) < 0.5
    requests, excess = requests_of(lab, CLIENT4)
    assert requests >= 1 and excess == 0


def test_an_ntpsec_ntpd_serves_an_ntpdig_with_a_key_and_without(lab: Lab) -> None:
    file = keys(lab, f"7 SHA1 {KEY}")
    daemon = ntpsec(lab, f"keys {file}\ntrustedkey 7")
    up_kissing(lab, CLIENT4)
    for options in ((), ("-a", "7", "-k", str(file))):
        shown = ntpdig(*options)
        assert "no-leap" in shown, shown + daemon.log.read_text()
        assert abs(offset(shown)) < 0.5  # a busy machine stamps late
    # its own limit, which it has without a word in its configuration, is lower than the guard's
    assert len(answers(22)) < 22
    counted = verdicts(lab)
    assert counted["kod"] == counted["drop"] == 0


def test_an_ntpsec_ntpd_gets_requests_with_a_key_whole_and_in_excess_none_is_kissed(
    lab: Lab,
) -> None:
    file = keys(lab, f"7 SHA1 {KEY}")
    # its own limit would leave some of what the guard passes unanswered
    ntpsec(lab, f"keys {file}\ntrustedkey 7\nunrestrict default limited")
    assert "no-leap" in ntpdig()
    up_kissing(lab, CLIENT4, policy=POLICY + SHORT)
    secret = bytes.fromhex(KEY)
    replies = answers(60, secret)
    for reply in replies:
        assert reply[0] & 7 == 4 and reply[1] > 0
        assert reply[48:] == struct.pack("!I", 7) + hashlib.sha1(secret + reply[:48]).digest()
    counted = verdicts(lab)
    assert counted["kod"] == 0 and counted["drop"] > 0
    assert 4 < counted["pass"] == len(replies) == 60 - counted["drop"]


def test_an_openntpd_answers_with_its_time_and_serves_a_chronyd(lab: Lab) -> None:
    """It is synchronized, and so taken by a client, after three minutes or more: in CI an answer of
    one that is not yet will do; with NTPGUARD_ALL=1 a chronyd takes its time.
    """
    lab.chronyd(CLIENT, "upstream", SERVES)
    daemon = clients.openntpd(lab, [CLIENT4], namespace=SERVER, serve=True)
    up(lab)
    with namespace(CLIENT):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.connect((SERVER4, 123))
        asking.settimeout(1)
        for _ in range(10):
            sent = time.time()
            try:
                asking.send(struct.pack("!B39xQ", 0x23, 0x0102030405060708))
                reply = asking.recv(128)
                break
            except OSError:  # it does not listen yet
                time.sleep(0.2)
        else:
            pytest.fail("no answer")
    assert reply[0] & 7 == 4 and reply[24:32] == bytes(range(1, 9))
    assert abs(struct.unpack("!I", reply[40:44])[0] - UNIX - sent) < 2
    if "NTPGUARD_ALL" in os.environ:
        assert daemon.logged("clock is now synced", 600), daemon.log.read_text()
        wrong = asked_by_a_chronyd()
        assert wrong is not None and abs(wrong) < 0.5


@pytest.mark.parametrize("kind", ["key", "nts"])
def test_protected_requests_are_answered_and_in_excess_never_kissed(lab: Lab, kind: str) -> None:
    if kind == "key":
        file = keys(lab, f"1 SHA256 HEX:{KEY}")
        serves, asks, trusts = f"keyfile {file}", "key 1", f"keyfile {file}"
    else:
        secret, public = lab.directory / "tls.key", lab.directory / "tls.pem"
        names = ["-subj", "/CN=lab", "-addext", f"subjectAltName=IP:{SERVER4}"]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        files = ["-keyout", str(secret), "-out", str(public)]
        run("openssl", "req", "-x509", "-days", "2", *curve, *names, *files)
        serves = f"ntsserverkey {secret}\nntsservercert {public}"
        asks, trusts = "nts", f"ntstrustedcerts {public}"
    lab.chronyd(SERVER, "server", f"{SERVES}\n{serves}")
    up_kissing(lab, CLIENT4, policy=POLICY + SHORT)
    daemon = lab.chronyd(CLIENT, "protected", f"server {SERVER4} {asks} {HASTY}\n{trusts}")
    assert daemon.logged("Selected source", 20), daemon.log.read_text()
    end = time.monotonic() + 60
    while requests_of(lab, CLIENT4)[1] < 16 and time.monotonic() < end:
        time.sleep(0.2)
    path = lab.directory / "protected" / "command"
    chronyc = [str(PEERS / "usr/bin/chronyc"), "-h", str(path), "authdata"]
    shown = run(*inside(CLIENT, *chronyc)).stdout
    columns = shown.split(SERVER4)[1].split()  # mode, key, type, length, last, tries, NAK, cookies
    assert columns[0] == {"key": "SK", "nts": "NTS"}[kind], shown
    assert columns[6] == "0", shown
    daemon.stop()

    requests, excess = requests_of(lab, CLIENT4)
    counted = verdicts(lab)
    served = lab.chronyc(SERVER, "server", "serverstats")
    assert excess >= 16 and counted["kod"] == 0 and counted["drop"] > 0
    assert counted["pass"] + counted["drop"] == requests
    # conform and leak, all of them untouched: the server finds each authentic
    assert requests - excess <= counted["pass"] == served["NTP packets received"]
    assert served["Authenticated NTP packets"] == counted["pass"]
    assert "KoD" not in daemon.log.read_text()

    # the same source, unprotected, is kissed
    plain = lab.chronyd(CLIENT, "plain", f"server {SERVER4} {HASTY}")
    assert plain.logged("Received KoD RATE", 20), plain.log.read_text()


def test_a_chronyd_interleaves_and_does_so_again_after_a_kod_and_after_drops(lab: Lab) -> None:
    lab.chronyd(SERVER, "server", SERVES)
    up_kissing(lab, CLIENT4)
    daemon = lab.chronyd(CLIENT, "xleave", f"server {SERVER4} xleave {HASTY}")
    interleaves(lab, "xleave")
    assert daemon.logged("Received KoD RATE", 20), daemon.log.read_text()
    lab.guard("mode", "observe")
    valid = interleaves(lab, "xleave")
    interleaves(lab, "xleave", more_than=valid + 8)

    before = verdicts(lab)
    file = lab.directory / "silent.toml"
    file.write_text(POLICY + SHORT + "[kod]\nenabled = false\n")
    lab.guard("policy", "apply", str(file))
    wait_for(lambda: verdicts(lab)["drop"] >= before["drop"] + 8, "requests are dropped")
    assert verdicts(lab)["kod"] == before["kod"]
    lab.guard("mode", "observe")
    valid = interleaves(lab, "xleave")
    interleaves(lab, "xleave", more_than=valid + 8)
