"""Operation: metrics, refusal, what the commands tell."""

import re
import signal
import subprocess
import time

import pytest

from tests import NTPGUARD
from tests.bpf.daemon import wait_for
from tests.bpf.packets import Frame
from tests.lab.lab import CLIENT, CLIENT4, SERVER, SERVER4, Lab, inside, packet_socket, run
from tests.lab.test_lab import POLICY, pytestmark, up

__all__ = ["pytestmark"]


def test_the_metrics_are_clean_and_hold_no_source(lab: Lab) -> None:
    up(lab)
    exporter = subprocess.Popen(inside(SERVER, NTPGUARD, "export", "--listen", "127.0.0.1:9721"))
    curl = inside(SERVER, "curl", "-s", "http://127.0.0.1:9721/metrics")
    try:
        wait_for(lambda: run(*curl, check=False).returncode == 0, "it listens")
        text = run(*curl).stdout
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert (checked.returncode, checked.stderr) == (0, "")
        assert 'ntpguard_attached{interface="eth0",xdp="native"} 1.0' in text
        assert 'ntpguard_mode{mode="enforce"} 1.0' in text
        assert "ntpguard_sources_capacity 4096.0" in text
        assert not re.search(r"203\.0\.113|198\.51", text)
        landing = run(*inside(SERVER, "curl", "-s", "http://127.0.0.1:9721/")).stdout
        assert "/metrics" in landing
    finally:
        exporter.send_signal(signal.SIGTERM)
        assert exporter.wait(60) == 0


def test_a_bad_policy_changes_nothing(lab: Lab) -> None:
    up(lab)
    before = lab.guard("policy", "show").stdout
    bad = lab.directory / "bad.toml"
    bad.write_text("[limit]\nrate = 3\n")
    refused = lab.guard("up", "eth0", "--policy", str(bad), check=False)
    assert refused.returncode == 3
    assert lab.guard("policy", "show").stdout == before


def test_another_capacity_is_refused_and_says_what_to_do(lab: Lab) -> None:
    up(lab)
    file = lab.directory / "larger.toml"
    file.write_text(POLICY.replace("4096", "8192"))
    refused = lab.guard("up", "eth0", "--policy", str(file), check=False)
    assert refused.returncode == 1
    assert "run ntpguard down first" in refused.stderr


def test_live_changes_show_as_a_difference_from_the_file(lab: Lab) -> None:
    up(lab)
    assert "differs" not in lab.guard("status").stdout
    lab.guard("limit", "set", "--rate", "30/minute")
    assert "running differs from the file" in lab.guard("status").stdout
    lab.guard("limit", "unset")
    assert "differs" not in lab.guard("status").stdout


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_show_says_what_the_next_request_meets(lab: Lab, mode: str) -> None:
    limit = '[limit]\nrate = "1/minute"\nburst = 1\n'
    classes = (
        '[[class]]\nname = "friends"\nprefixes = ["203.0.113.128/25"]\naction = "exempt"\n'
        '[[class]]\nname = "banned"\nprefixes = ["198.18.0.0/15"]\naction = "block"\n'
    )
    up(lab, policy=POLICY.replace("enforce", mode) + limit + classes)
    _, server = lab.link(SERVER)
    _, client = lab.link(CLIENT)
    request = Frame(destination=SERVER4, source_mac=client, destination_mac=server)
    with packet_socket() as wire:
        for _ in range(3):
            wire.send(bytes(request))
    counted = "requests   3, 2 of them excess"
    wait_for(lambda: counted in lab.guard("show", request.source).stdout, counted)
    shown = lab.guard("show", request.source).stdout
    assert re.search(
        r"excess for \d+\.\d s more: 1 in 4 passes, the rest is (kissed or|dropped)", shown
    )
    assert ("passes: mode is observe; else excess" in shown) == (mode == "observe")
    assert "passes: class friends is exempt" in lab.guard("show", "203.0.113.200").stdout
    assert "by prefix 198.18.0.0/15" in lab.guard("show", "198.18.1.1").stdout
    assert "passes: within 1/minute burst 1" in lab.guard("show", "2001:db8::99").stdout


def test_a_blocked_client_gets_no_answer_until_it_is_cleared(lab: Lab) -> None:
    lab.server()
    up(lab)
    _, server = lab.link(SERVER)
    _, client = lab.link(CLIENT)
    request = bytes(Frame(destination=SERVER4, source_mac=client, destination_mac=server))

    def answered(requests: int, expected: int) -> bool:
        """Whether so many requests got so many answers, waited for."""
        before, _ = lab.replies()["polite"]
        with packet_socket() as wire:
            for _ in range(requests):
                wire.send(request)
        for _ in range(200 if expected else 10):
            time.sleep(0.05)
            if expected and lab.replies()["polite"][0] - before == expected:
                break
        return lab.replies()["polite"][0] - before == expected

    assert answered(3, 3)
    lab.guard("block", "203.0.113.0/24", "--for", "1h", "--reason", "a try")
    assert answered(3, 0)
    assert "a try" in lab.guard("entries").stdout
    lab.guard("clear", "203.0.113.0/24")
    assert answered(3, 3)


def test_a_real_chronyd_in_a_hurry_is_known_by_its_header(lab: Lab) -> None:
    up(lab, policy=POLICY + '[limit]\nrate = "1/minute"\nburst = 1\n')
    lab.hasty()
    wait_for(lambda: "header " in lab.guard("show", CLIENT4).stdout, "its header is noted")
    shown = lab.guard("show", CLIENT4).stdout
    assert re.search(r"client     looks like (?:Go beevik/ntp or )?chrony\n", shown), shown
