"""What status says is wrong, and that it stops saying so."""

import json
import re
import threading
from pathlib import Path

import click
from click.testing import CliRunner

from ntpguard.cli import main
from ntpguard.kernel import bpffs, interfaces, maps
from ntpguard.policy.check import parse_policy
from tests import testrun
from tests.bpf.packets import IPV4
from tests.bpf.test_lifecycle import NAMES, ip, load_time, pytestmark, up, where

__all__ = ["pytestmark", "where"]


def status() -> tuple[int, list[str]]:
    """Exit code and problems, as the command tells them."""
    done = CliRunner().invoke(main, ["-o", "json", "status"])
    return done.exit_code, json.loads(done.output)["data"]["problems"] if done.output else []


def test_a_mac_address_that_changed_is_a_problem_until_the_next_up(where: Path) -> None:
    up(where)
    assert status() == (0, [])
    ip("link", "set", NAMES[0], "address", "02:00:00:00:00:77")
    code, (problem,) = status()
    assert code == 1
    assert problem.startswith(f"{NAMES[0]}: its MAC address is now 02:00:00:00:00:77")
    assert problem.endswith(f"run ntpguard up {NAMES[0]}")
    up(where)
    assert status() == (0, [])
    assert bytes(load_time(where, NAMES[0]).mac) == bytes.fromhex("020000000077")


def test_interfaces_that_are_asked_for_are_those_of_all_and_one_that_is_gone_is_none() -> None:
    everyone = interfaces.interfaces()
    last = max(one.ifindex for one in everyone)
    asked = interfaces.interfaces_of([last + 1000, *(one.ifindex for one in everyone)])
    assert asked == everyone


def test_a_guarded_interface_that_is_gone_is_a_problem(where: Path) -> None:
    up(where, *NAMES)
    ifindex = interfaces.interface(NAMES[1]).ifindex
    ip("link", "del", NAMES[1])
    code, (problem,) = status()
    assert (code, problem.partition(":")[0]) == (1, f"interface {ifindex}")


def test_an_interface_that_the_policy_names_is_a_problem_until_it_is_guarded(where: Path) -> None:
    """It would be attacked unnoticed; whatever is not there yet is waited for by the daemon."""
    policy = parse_policy(f'interfaces = ["{NAMES[0]}", "{NAMES[1]}", "guard-none"]')
    up(where, NAMES[0], policy=policy)
    code, (not_guarded, not_there) = status()
    assert code == 1
    assert not_guarded == (
        f"{NAMES[1]}: not guarded, but the policy names it: run ntpguard up {NAMES[1]}"
    )
    assert not_there.startswith("guard-none: no such interface, but the policy names it: ")
    up(where, NAMES[1], policy=policy)
    assert status() == (1, [not_there])
    up(where, NAMES[1], policy=parse_policy(f'interfaces = ["{NAMES[0]}"]'))
    assert status() == (0, [])


def test_status_is_degraded_while_requests_go_untracked(where: Path) -> None:
    up(
        where,
        policy=parse_policy(
            'mode = "enforce"\n[sources]\ncapacity = 1024\n[limit]\nrate = "1/hour"\nburst = 1\n'
        ),
    )
    mac = interfaces.interface(NAMES[0]).mac
    frame = bytes(IPV4.but(destination_mac=mac))
    head, tail = frame[:26], frame[30:]  # around the source address
    stop = threading.Event()

    def flood(program: int) -> None:
        host = 0
        while not stop.is_set():
            host += 1
            packet = head + (0xC6120000 + host).to_bytes(4, "big") + tail
            # twice: over its limit, so that its slot is not given away
            for _ in range(2):
                testrun.run(program, packet)

    own = next(iter(bpffs.attached(bpffs.pins(where)).values()))
    with maps.descriptor(own / "program") as program:
        thread = threading.Thread(target=flood, args=(program,))
        thread.start()
        try:
            for _ in range(50):
                code, problems = status()
                text = "\n".join(problems)
                if "go untracked" in text:
                    break
        finally:
            stop.set()
            thread.join()
    assert code == 1
    assert re.search(
        r"go untracked: in \d+ ms, [1-9]\d* were of more new .*raise sources.cap", text
    )
    assert "go untracked" not in "\n".join(status()[1])


def test_verbose_tells_more_and_colours_are_on_words_alone(where: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, list(arguments), color=True)
        assert done.exit_code == 0, done.output
        return done.output

    up(where)
    own = next(iter(bpffs.attached(bpffs.pins(where)).values()))
    frame = bytes(IPV4.but(destination_mac=interfaces.interface(NAMES[0]).mac))
    with maps.descriptor(own / "program") as program:
        testrun.run(program, frame)
    plain, more, colored = run("status"), run("-v", "status"), run("--color", "always", "status")
    assert "reasons    pass: conform 1" in more and "ports      123" in more
    assert set(plain.splitlines()) < set(more.splitlines())
    assert "mode       \x1b[32menforce\x1b[0m" in colored
    assert click.unstyle(colored) == plain
    assert "TAT AHEAD" in run("-v", "top") and "TAT AHEAD" not in run("top")
    assert "s ahead" in run("-v", "show", IPV4.source)


def test_brief_is_one_line_with_the_state_the_mode_where_and_how_many_problems(
    where: Path,
) -> None:
    def brief() -> tuple[int, str]:
        done = CliRunner().invoke(main, ["status", "--brief"])
        return done.exit_code, done.output

    up(where)
    sums = "pass 0, kod 0, drop 0\n"
    assert brief() == (0, f"ok: enforce on {NAMES[0]} (native); 0 problems; {sums}")
    ip("link", "set", NAMES[0], "address", "02:00:00:00:00:77")
    assert brief() == (1, f"degraded: enforce on {NAMES[0]} (native); 1 problem; {sums}")


def test_times_in_status_have_one_form(where: Path) -> None:
    up(where)
    shown = json.loads(CliRunner().invoke(main, ["-o", "json", "status"]).output)
    for text in (shown["time"], shown["data"]["policy"]["applied"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text), text
