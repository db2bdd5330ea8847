"""Pins that are missing, or are something else: each command says so, and down puts it right."""

import os
import shutil
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ntpguard import lifecycle
from ntpguard.cli import main
from ntpguard.exporter.page import Page
from ntpguard.kernel import bpffs, interfaces, libbpf, maps
from tests.bpf.daemon import wait_for
from tests.bpf.test_exporter import scrape
from tests.bpf.test_lifecycle import NAMES, guarded, left, pytestmark, up, where

__all__ = ["pytestmark", "where"]
HASH = 1  # BPF_MAP_TYPE_HASH
READING = {
    "status": ("status",),
    "top": ("top",),
    "show": ("show", "203.0.113.7"),
    "kod": ("kod",),
    "entries": ("entries",),
    "limit list": ("limit", "list"),
    "policy show": ("policy", "show"),
    "policy diff": ("policy", "diff"),
    "doctor": ("doctor",),
}
WRITING = {
    "mode": ("mode", "observe"),
    "block": ("block", "203.0.113.7"),
    "limit set": ("limit", "set", "--rate", "7/minute"),
    "policy apply": ("policy", "apply"),
    "up": ("up", NAMES[0], "--policy"),
    "run": ("run", "--listen", "none", "--policy"),
}
FILE = 'interfaces = ["guard0"]\nmode = "enforce"\n[sources]\ncapacity = 4096\n'


def put_directory(path: Path) -> None:
    path.mkdir()


def put_another_map(path: Path) -> None:
    fd = libbpf.map_create(HASH, "another", 4, 1 << 16, 1)  # a value larger than any of ours
    libbpf.obj_pin(fd, path)
    os.close(fd)


def put_nothing(path: Path) -> None:
    pass


FAULTS = {"missing": put_nothing, "a directory": put_directory, "another map": put_another_map}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "ntpguard.toml"
    file.write_text(FILE)
    return file


def run(file: Path, *arguments: str) -> Result:
    """Any command; one that ends in a traceback fails the test."""
    named = [*arguments, *([str(file)] if arguments[-1] in ("apply", "--policy") else [])]
    done = CliRunner().invoke(main, named)
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done


def pinned(where: Path) -> dict[str, Path]:
    """Every pin, by name."""
    at = bpffs.pins(where)
    (own,) = bpffs.attached(at).values()
    return {
        **{name: at / name for name in maps.SHARED_MAPS},
        **{name: own / name for name in ("link", "program", "counters")},
    }


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_whatever_a_map_is_each_command_says_so_and_down_puts_it_right(
    where: Path, file: Path
) -> None:
    names = maps.SHARED_MAPS
    # in CI the faults take turns; every one of each map with NTPGUARD_ALL=1, half a minute
    turns = [(name, list(FAULTS)[i % len(FAULTS)]) for i, name in enumerate(names)]
    for name, fault in product(names, FAULTS) if "NTPGUARD_ALL" in os.environ else turns:
        up(where)
        program = interfaces.interface(NAMES[0]).program_id
        path = pinned(where)[name]
        remove(path)
        FAULTS[fault](path)
        for command, arguments in {**READING, **WRITING}.items():
            done = run(file, *arguments)
            what = f"{name} is {fault}: {command}: {done.output}"
            assert done.exit_code == (0 if command == "doctor" else 1), what
            assert name in done.output and "run ntpguard down" in done.output, what
        assert name in Page(where).render({"REMOTE_ADDR": "127.0.0.1"}).decode()
        shown = scrape(where)
        assert shown["ntpguard_up"] == 0
        assert shown['ntpguard_collector_errors_total{collector="guard"}'] == 1
        assert interfaces.interface(NAMES[0]).program_id == program
        assert run(file, "down").exit_code == 0
        assert (guarded(), left(where)) == ([], [])


# exit codes of status, policy apply, up, down; of a link that is none, nothing is attached
OF_INTERFACE = {
    ("link", "missing"): (4, 4, 0, 0),
    ("link", "a directory"): (4, 4, 0, 0),
    ("link", "another map"): (4, 4, 0, 0),
    ("program", "missing"): (0, 0, 0, 0),
    ("program", "a directory"): (0, 0, 1, 0),
    ("program", "another map"): (0, 0, 1, 0),
    ("counters", "missing"): (1, 0, 0, 0),
    ("counters", "a directory"): (1, 0, 1, 0),
    ("counters", "another map"): (1, 0, 1, 0),
}


@pytest.mark.parametrize(("name", "fault"), OF_INTERFACE)
def test_whatever_a_pin_of_an_interface_is_down_or_up_puts_it_right(
    where: Path, file: Path, name: str, fault: str
) -> None:
    calls = (("status",), ("policy", "apply"), ("up", NAMES[0], "--policy"), ("down",))
    codes = []
    for arguments in calls:
        up(where)
        path = pinned(where)[name]
        remove(path)
        FAULTS[fault](path)
        done = run(file, *arguments)
        codes.append(done.exit_code)
        if done.exit_code == 1:
            assert name in done.output, done.output
        run(file, "down")
        assert left(where) == [], arguments
        # a link whose pin was replaced is detached in the kernel's own time
        wait_for(lambda: guarded() == [], f"{guarded()} after {arguments}")
    assert tuple(codes) == OF_INTERFACE[name, fault]


@pytest.mark.parametrize("command", ["up", "down"])
def test_what_does_not_belong_there_is_removed_and_breaks_nothing(
    where: Path, file: Path, command: str
) -> None:
    up(where)
    own = bpffs.pins(where)
    (own / "ifx").mkdir()
    put_another_map(own / "if77")
    (own / "if78").symlink_to("/")
    (own / "more" / "below").mkdir(parents=True)
    put_another_map(bpffs.staging(where))
    for arguments in READING.values():
        assert run(file, *arguments).exit_code == 0
    assert run(file, *WRITING.get(command, (command,))).exit_code == 0
    if command == "up":
        assert run(file, "status").exit_code == 0
        assert run(file, "down").exit_code == 0
    assert (guarded(), left(where)) == ([], [])


def test_a_map_in_the_place_of_all_is_removed(where: Path, file: Path) -> None:
    up(where)
    own = bpffs.pins(where)
    for command in ("down", "up"):
        lifecycle.down(None, bpffs=where)
        put_another_map(own)
        assert run(file, "status").exit_code == 4
        assert run(file, *WRITING.get(command, (command,))).exit_code == 0
        assert left(where) == ([own] if command == "up" else [])
        up(where)


def test_a_map_where_all_pins_should_be_is_named(where: Path, file: Path) -> None:
    top = where / "ntpguard"
    remove(top)
    put_another_map(top)
    try:
        for arguments in WRITING.values():
            done = run(file, *arguments)
            assert (done.exit_code, str(top) in done.output) == (1, True), done.output
        assert run(file, "status").exit_code == 4
    finally:
        top.unlink()
