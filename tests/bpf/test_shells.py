"""Completion by the shells themselves, and other things a person types at a running guard."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ntpguard import lifecycle
from ntpguard.cli import main
from ntpguard.policy.check import parse_policy
from tests.bpf.test_lifecycle import NAMES, POLICY, pytestmark, up, where

__all__ = ["pytestmark", "where"]
CLASSES = (
    'mode = "enforce"\n[sources]\ncapacity = 4096\n'
    '[[class]]\nname = "campus"\nprefixes = ["198.51.100.0/24"]\nrate = "10/second"\n'
    '[[class]]\nname = "camera"\nprefixes = ["203.0.113.0/24"]\naction = "block"\n'
)
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}
PATIENCE_SECONDS = 300  # under emulation a shell may take half a minute to begin


@pytest.fixture
def guard(where: Path) -> Iterator[Path]:
    up(where, NAMES[0], policy=parse_policy(CLASSES))
    yield where


def script(shell: str, tmp_path: Path) -> Path:
    """The file that `ntpguard completion SHELL` prints."""
    file = tmp_path / f"completion.{shell}"
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    file.write_text(done.output)
    return file


class Terminal:
    """A shell at a terminal."""

    def __init__(self, *command: str) -> None:
        outer, inner = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        os.close(inner)
        self.outer = outer
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.outer, text.encode())

    def see(self, text: str) -> bool:
        """Whether `text` comes to be shown; what came before it is then behind us."""
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.shown and time.monotonic() < end:
            if select.select([self.outer], [], [], 0.2)[0]:
                self.shown += os.read(self.outer, 65536).decode(errors="replace")
        found = text in self.shown
        self.shown = self.shown.partition(text)[2]
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.outer)


def completes(terminal: Terminal, typed: str, completed: str) -> None:
    """Types a line and a tab: the shell shows the line completed."""
    terminal.type(f"{typed}\t")
    assert terminal.see(completed), f"{typed}: {terminal.shown!r}"
    terminal.type("\x15")  # the line away


@pytest.mark.parametrize(
    ("shell", "start", "prepare"),
    [
        ("bash", ["bash", "--norc", "--noprofile", "-i"], ""),
        ("zsh", ["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; "),
    ],
)
def test_a_shell_completes_commands_interfaces_and_classes(
    guard: Path, tmp_path: Path, shell: str, start: list[str], prepare: str
) -> None:
    terminal = Terminal(*start)
    try:
        terminal.type(f"{prepare}source {script(shell, tmp_path)}; echo rea''dy\n")
        assert terminal.see("ready"), terminal.shown
        for typed, completed in (
            ("ntpguard stat", "ntpguard status"),
            ("ntpguard up guard1", "ntpguard up guard1 "),
            (f"ntpguard up {NAMES[0]} gu", f"ntpguard up {NAMES[0]} {NAMES[1]}"),
            ("ntpguard down g", f"ntpguard down {NAMES[0]}"),  # the only one that is guarded
            ("ntpguard limit set camp", "ntpguard limit set campus"),
            ("ntpguard limit unset came", "ntpguard limit unset camera"),
        ):
            completes(terminal, typed, completed)
    finally:
        terminal.close()


def test_bash_lists_all_that_fit(guard: Path, tmp_path: Path) -> None:
    def words(line: str) -> list[str]:
        drive = (
            f"source {script('bash', tmp_path)}; COMP_WORDS=({line} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
            '_ntpguard_completion ntpguard; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", drive], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
        )
        return done.stdout.split()

    assert words("ntpguard up") == list(NAMES)
    assert words("ntpguard limit set") == ["default", "campus", "camera"]
    assert words("ntpguard completion") == ["bash", "zsh", "fish"]
    assert words(f"ntpguard --bpffs {tmp_path} limit set") == []  # no guard there: silence


def test_fish_completes_commands_interfaces_and_classes(guard: Path, tmp_path: Path) -> None:
    def words(line: str) -> list[str]:
        done = subprocess.run(
            [
                "fish",
                "--no-config",
                "-c",
                f"source {script('fish', tmp_path)}; complete -C '{line}'",
            ],
            capture_output=True,
            text=True,
            env={**ENVIRONMENT, "HOME": str(tmp_path)},
            timeout=60,
        )
        return [one.split("\t")[0] for one in done.stdout.splitlines()]

    assert words("ntpguard stat") == ["status"]
    assert words("ntpguard up ") == list(NAMES)
    assert sorted(words("ntpguard limit set cam")) == ["camera", "campus"]


def test_a_prefix_is_shown_only_if_it_is_one_source(guard: Path) -> None:
    def show(source: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["-o", "json", "show", source])
        return done.exit_code, done.output

    code, output = show("203.0.113.0/24")
    assert (code, output) == (
        2,
        "ntpguard: 203.0.113.0/24: not one source: an IPv4 source is a /32: "
        "write one address, like 203.0.113.0\n",
    )
    assert show("2001:db8::/48")[0] == 2
    # as top prints them
    for source in ("203.0.113.7/32", "2001:db8::/64", "2001:db8::1/64"):
        code, output = show(source)
        assert code == 0 and json.loads(output)["data"]["address"] == source.partition("/")[0]


@pytest.mark.parametrize("call", ["status", "top", "-o json status", "trace --seconds 1", "doctor"])
def test_a_full_stdout_is_said_in_one_line_by_commands_that_read_the_guard(
    guard: Path, call: str
) -> None:
    done = subprocess.run(
        ["bash", "-c", f"ntpguard {call} >/dev/full"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=90,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ntpguard: stdout: No space left on device: not all was shown"
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_down_and_trace_without_a_guard_say_what_to_do(where: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["ntpguard", *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
        )
        return done.returncode, done.stderr

    code, said = run("down")
    assert (code, said) == (
        4,
        "ntpguard: not running: nothing is attached in this network namespace: try ntpguard up "
        "INTERFACE, or nsenter --net=/run/netns/NAME ntpguard down for another\n",
    )
    hint = "ntpguard: warning: not running: what the stack drops has passed no guard: try ntpguard up INTERFACE\n"
    assert hint in run("trace", "--seconds", "0.1")[1]
    up(where, policy=POLICY)
    assert hint not in run("trace", "--seconds", "0.1")[1]
    assert lifecycle.down(None, bpffs=where) == [NAMES[0]]
