"""The command line, as far as it goes without a kernel."""

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from ntpguard import __version__
from ntpguard.cli import main
from ntpguard.cli.output import Context, columns, wants_color
from ntpguard.errors import NtpguardError
from ntpguard.kernel import maps
from ntpguard.trace import Cause, Outcome, addresses_hidden, watch
from ntpguard.trace.outcome import Sockets, lines


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.output


def test_a_command_almost_typed_right_is_suggested() -> None:
    code, output = run("topp")
    assert code == 2
    assert "Did you mean 'top'?" in output


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("unblock 203.0.113.7", "Did you mean 'clear'?"),
        ("stop", "Did you mean 'down'?"),
        ("reload", "Did you mean 'policy apply'?"),
        ("status --json", "No such option: --json: try ntpguard -o json status"),
        ("policy check -o json", "No such option: -o: try ntpguard -o json policy check"),
        ("status -v", "No such option: -v: try ntpguard -v status"),
        ("--json status", "No such option: --json: try ntpguard -o json COMMAND"),
    ],
)
def test_what_other_programs_call_otherwise_is_told_how_it_is_called_here(
    typed: str, meant: str
) -> None:
    result = CliRunner().invoke(main, typed.split(), prog_name="ntpguard")
    assert result.exit_code == 2
    assert meant in result.output


@pytest.mark.parametrize(
    "command", ["status", "top", "limit list", "entries", "policy show", "show 203.0.113.7"]
)
def test_without_a_guard_commands_say_so_and_end_with_4(command: str, tmp_path: Path) -> None:
    code, output = run("--bpffs", str(tmp_path), *command.split())
    assert (code, output) == (
        4,
        "ntpguard: not running: nothing is attached: try ntpguard up INTERFACE, or set interfaces in "
        "the policy file and reload the service (systemctl status ntpguard tells if it waits for one)\n",
    )


def test_without_a_bpffs_up_says_how_to_mount_one(tmp_path: Path) -> None:
    code, output = run("--bpffs", str(tmp_path), "up", "eth9")
    assert code == 1
    assert output == (
        f"ntpguard: {tmp_path}: no bpffs is mounted there: try mount -t bpf bpf {tmp_path}\n"
    )


def test_an_address_that_is_none_is_named() -> None:
    assert run("show", "203.0.113.300") == (
        2,
        "ntpguard: 203.0.113.300: no IP address: write it like 203.0.113.7\n",
    )


@pytest.mark.parametrize("listen", ["9721", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:\u00b2"])
def test_an_address_to_listen_on_that_is_none_is_named(listen: str) -> None:
    assert run("export", "--listen", listen) == (
        2,
        f"ntpguard: --listen: must be HOST:PORT, like 127.0.0.1:9721 (got {listen!r})\n",
    )


def test_a_bad_policy_ends_with_3_and_every_complaint(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('mod = "x"\nports = []\n')
    code, output = run("policy", "check", str(file))
    assert code == 3
    assert output.splitlines() == [
        f'ntpguard: {file}:1: mod: unknown setting: did you mean "mode"?',
        f"ntpguard: {file}:2: ports: must be a list of 1 to 4 ports (got [])",
    ]


def test_policy_check_tells_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text("")
    code, output = run("-o", "json", "policy", "check", str(file))
    shown = json.loads(output)
    assert code == 0 and shown["schema"] == 1
    assert shown["data"]["memory_bytes"]["sources"] == 64 * 2**20


def test_limit_set_without_a_value_is_a_usage_error() -> None:
    code, output = run("limit", "set")
    assert (code, output) == (2, "ntpguard: nothing to set: give --rate, --burst or both\n")


def test_numbers_stand_to_the_right_and_nothing_is_cut() -> None:
    address = "2001:db8:ffff:ffff::/64"
    rows = [(address, 5), ("203.0.113.7", 12345)]
    assert list(columns(("SOURCE", "N"), rows)) == [
        "SOURCE                       N",
        f"{address}      5",
        "203.0.113.7              12345",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "up",
        "status",
        "top",
        "show",
        "mode",
        "limit set",
        "block",
        "exempt",
        "policy check",
        "export",
    ],
)
def test_help_can_be_read(command: str) -> None:
    code, output = run(*command.split(), "--help")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 100


def test_the_installed_command_starts() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("ntpguard"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    digest = hashlib.sha256(maps.object_path().read_bytes()).hexdigest()
    assert done.stdout == f"ntpguard {__version__}\nprogram sha256:{digest[:16]}\n"


def test_ctrl_c_while_the_command_is_still_being_imported_leaves_no_traceback() -> None:
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ntpguard"), "status"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert process.stderr
    for line in process.stderr:
        if line.endswith(" ntpguard.errors\n"):  # the first of many
            break
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == -signal.SIGINT


def test_words_have_a_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = Context("table", False, False, Path(), color=True)
    assert colored.paint("drop") == "\x1b[31mdrop\x1b[0m"
    assert Context("table", False, False, Path()).paint("drop") == "drop"
    assert (wants_color("always"), wants_color("auto"), wants_color("never")) == (
        True,
        False,
        False,
    )
    outer, inner = pty.openpty()
    with os.fdopen(outer), os.fdopen(inner, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert (wants_color("auto"), wants_color("never")) == (True, False)
        monkeypatch.setenv("NO_COLOR", "1")
        assert (wants_color("auto"), wants_color("always")) == (False, True)


def test_trace_without_bcc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(
        NtpguardError, match=r"^trace needs bcc: try apt-get install python3-bpfcc$"
    ):
        watch(0.1, lambda drop: None)


def test_another_package_called_bcc_is_told_from_the_real_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = ModuleType("bcc")
    other.__file__ = "/venv/bcc/__init__.py"
    monkeypatch.setitem(sys.modules, "bcc", other)
    with pytest.raises(NtpguardError, match=r"^/venv/bcc/__init__.py: not the BPF Compiler"):
        watch(0.1, lambda drop: None)


def test_where_the_kernel_does_not_tell_nothing_is_claimed() -> None:
    found = Outcome(Counter({Cause("eth0", None, "udp_queue_rcv_one_skb"): 7}), None, 0, (), False)
    text = "\n".join(lines(found, Sockets(7, 212992), 0, of_all=False))
    assert found.buffer_full() is None
    assert "   unknown  read by the daemon" in text
    assert "   unknown  found the daemon's receive buffer full (212992 bytes)" in text
    assert text.splitlines()[-2].endswith("its sockets count 7, of all sources")


def test_hidden_kernel_addresses_are_noticed(tmp_path: Path) -> None:
    symbols = tmp_path / "kallsyms"
    symbols.write_text("0000000000000000 A fixed_percpu_data\n0000000000000000 T _text\n")
    assert addresses_hidden(symbols)
    symbols.write_text("0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n")
    assert not addresses_hidden(symbols)


@pytest.mark.parametrize("command", ["", "limit", "policy"])
def test_no_summary_of_a_command_is_cut(command: str) -> None:
    code, output = run(*command.split(), "--help")
    assert code == 0
    assert "..." not in output.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("203.0.113.5/33", "no such prefix: write the address alone: 203.0.113.5"),
        ("2001:db8::1/129", "no such prefix: write the address alone: 2001:db8::1"),
        ("203.0.113.5/", "no such prefix: write the address alone: 203.0.113.5"),
        ("fe80::1%eth0", "sources are known without an interface: write fe80::1"),
        ("fe80::%eth0/64", "sources are known without an interface: write fe80::"),
        ("/24", "no IP address: write it like 203.0.113.7"),
    ],
)
def test_what_is_no_source_is_refused_with_the_reason(source: str, complaint: str) -> None:
    assert run("show", source) == (2, f"ntpguard: {source}: {complaint}\n")
