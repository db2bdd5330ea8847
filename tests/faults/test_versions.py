"""Two versions of ntpguard on the same pins: the one that did not make them leaves them alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ntpguard import abi, lifecycle
from ntpguard.kernel import bpffs, interfaces, libbpf, maps
from tests import NTPGUARD
from tests.bpf.daemon import OFTEN, POLICY, running, wait_for
from tests.bpf.live import told
from tests.bpf.test_health import status
from tests.bpf.test_lifecycle import NAMES, guarded, left, pytestmark, up, where
from tests.faults.test_pins import READING, WRITING, file, pinned, remove, run

__all__ = ["file", "pytestmark", "where"]
OTHER = abi.ABI + 1
# ntpguard of another version, as far as the number goes
ANOTHER = (
    sys.executable,
    "-c",
    f"from ntpguard import abi; abi.ABI = {OTHER}; from ntpguard.cli import main; main()",
)


def contents(where: Path) -> list[bytes]:
    """What a command might write to: root word, policies, documents."""
    found = []
    with maps.opened(bpffs.pins(where)) as descriptors:
        for name in ("shared", "policy", "document"):
            entries = libbpf.map_info(descriptors[name]).max_entries
            for index in range(entries):
                raw = libbpf.map_lookup(
                    descriptors[name], index.to_bytes(4, "little"), maps.SIZES[name][1]
                )
                assert raw is not None
                found.append(raw)
    return found


def test_a_command_of_another_version_names_both_and_touches_nothing(
    where: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(where)
    told("block", "203.0.113.0/24")
    before, program = contents(where), interfaces.interface(NAMES[0]).program_id
    monkeypatch.setattr(abi, "ABI", OTHER)
    for command, arguments in {**READING, **WRITING}.items():
        done = run(file, *arguments)
        what = f"{command}: {done.output}"
        assert done.exit_code == (0 if command == "doctor" else 1), what
        assert f"has ABI {abi.ABI - 1}, this ntpguard {OTHER}: " in done.output, what
        assert "run ntpguard down first (sources are forgotten)" in done.output, what
    assert (contents(where), interfaces.interface(NAMES[0]).program_id) == (before, program)
    assert run(file, "down").exit_code == 0
    assert (guarded(), left(where)) == ([], [])


@pytest.mark.parametrize("name", ["table", "policy", "offenders"])
@pytest.mark.parametrize("more", [-8, 4096])
def test_a_map_of_another_size_is_not_even_read(
    where: Path, file: Path, name: str, more: int
) -> None:
    up(where)
    key, value = maps.SIZES[name]
    path = pinned(where)[name]
    remove(path)
    fd = libbpf.map_create(1, name, key, value + more, 1)
    libbpf.obj_pin(fd, path)
    os.close(fd)
    for arguments in (READING["status"], WRITING["mode"], WRITING["up"]):
        done = run(file, *arguments)
        assert done.exit_code == 1
        assert f"{name}: a map {name} ({key} + {value + more} bytes) is there" in done.output
    assert run(file, "down").exit_code == 0


def test_maps_of_another_version_that_guard_nothing_are_made_anew(where: Path, file: Path) -> None:
    subprocess.run([*ANOTHER, "up", NAMES[0], "--policy", str(file)], check=True)
    for one in bpffs.attached(bpffs.pins(where)).values():
        (one / "link").unlink()
    with running(file.parent, policy=None):
        assert (guarded(), status()) == ([NAMES[0]], (0, []))


def test_of_two_versions_at_once_one_guards_and_the_other_says_why_not(
    where: Path, file: Path
) -> None:
    for first, second in (((NTPGUARD,), ANOTHER), (ANOTHER, (NTPGUARD,))):
        both = [
            subprocess.Popen(
                [*one, "up", NAMES[0], "--policy", str(file)], stderr=subprocess.PIPE, text=True
            )
            for one in (first, second)
        ]
        ended = {one.wait(60): one.communicate()[1] for one in both}
        assert ended.keys() == {0, 1}, ended
        assert "the running table has ABI" in ended[1] and "Traceback" not in ended[1], ended
        assert guarded() == [NAMES[0]]
        codes = {
            subprocess.run([*one, "status"], capture_output=True).returncode
            for one in (first, second)
        }
        assert codes == {0, 1}
        assert lifecycle.down(None, bpffs=where) == [NAMES[0]]


def test_a_daemon_writes_nothing_to_what_another_version_has_put_in_its_place(
    where: Path, tmp_path: Path
) -> None:
    with running(tmp_path, command=OFTEN) as one:
        told("down")
        one.logs("guarded no more")
        other = [*ANOTHER, "up", NAMES[0], "--policy", str(one.file)]
        subprocess.run(other, check=True)
        subprocess.run([*ANOTHER, "block", "203.0.113.0/24", "--for", "1s"], check=True)
        one.logs("guarded by another command")
        before = contents(where)
        time.sleep(1.5)  # the entry expires, and would be removed
        one.reload(POLICY + '[limit]\nrate = "7/minute"\n')
        wait_for(lambda: f"has ABI {OTHER}" in one.log(), one.log())
        assert contents(where) == before
        with maps.descriptor(bpffs.pins(where) / "entries_ipv4") as fd:
            assert len(list(libbpf.map_keys(fd, abi.size(abi.PrefixIpv4)))) == 1
        assert guarded() == [NAMES[0]]
