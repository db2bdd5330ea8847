"""A local user without root: what they can read, change or block of a guard that runs: nothing."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntpguard import episodes
from ntpguard.daemon import lastgood
from ntpguard.episodes import Episode, Kept
from tests import NTPGUARD
from tests.bpf.daemon import POLICY, running
from tests.bpf.live import told
from tests.bpf.test_lifecycle import NAMES, guarded, pytestmark, where

__all__ = ["pytestmark"]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")
# in a user namespace of their own, where they are root
MAPPED = (*NOBODY, "unshare", "--user", "--map-root-user")
READING = ("status", "top", "show 203.0.113.7", "entries", "limit list", "kod", "policy show")
CHANGING = (
    f"up {NAMES[0]}",
    "down",
    "block 203.0.113.0/24",
    "exempt 203.0.113.0/24",
    "clear 203.0.113.0/24",
    "mode off",
    "limit set --rate 1/hour",
    "limit unset",
    "policy apply FILE",
)
PERMISSION = 5


@pytest.fixture(scope="module")
def at() -> Iterator[Path]:
    """The bpffs beside which there are interfaces."""
    make = where.__wrapped__()
    try:
        yield next(make)
    finally:
        list(make)


@pytest.fixture(scope="module")
def guard(at: Path) -> Iterator[Path]:
    """A daemon that guards, and what it keeps, in a directory that all can reach."""
    folder = Path("/run/local-user")  # of the test's own /run
    folder.mkdir()
    assert folder.stat().st_mode & 0o777 == 0o755
    with running(folder, "--listen", "none"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("STATE_DIRECTORY", str(folder / "state"))
        episodes.save(Kept(open=(Episode("203.0.113.7", 1e9, 1e9 + 60, requests=9, excess=6),)))
        (folder / "FILE").write_text(POLICY)
        told("block", "198.51.100.0/24")
        yield folder


def as_nobody(
    *words: str, prefix: tuple[str, ...] = NOBODY, at: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*prefix, *words], capture_output=True, text=True, cwd=at or "/", env=environment
    )


@pytest.mark.parametrize(
    ("command", "prefix"),
    [(command, NOBODY) for command in (*READING, *CHANGING, "episodes list")]
    + [(command, MAPPED) for command in ("status", *CHANGING[:3])],
)
def test_no_command_shows_or_changes_anything(
    guard: Path, command: str, prefix: tuple[str, ...]
) -> None:
    before = told("policy", "show"), told("entries"), guarded()
    done = as_nobody(NTPGUARD, *command.split(), prefix=prefix, at=guard)
    assert done.returncode == PERMISSION, done.stdout + done.stderr
    assert "permission denied" in done.stderr or "are needed" in done.stderr
    assert "Traceback" not in done.stderr and "203.0.113.7" not in done.stdout
    assert (told("policy", "show"), told("entries"), guarded()) == before


def test_no_file_of_the_guard_can_be_opened(guard: Path, at: Path) -> None:
    files = [at / "ntpguard", *(at / "ntpguard").rglob("*")]
    files += [guard / "state", *(guard / "state").iterdir()]
    assert {guard / "state" / name for name in (lastgood.NAME, episodes.NAME)} <= set(files)
    for path in files:
        read = "dir" if path.is_dir() else "cat"
        assert as_nobody(read, str(path)).returncode != 0, path
        assert as_nobody("test", "-w", str(path)).returncode != 0, path


def test_the_lock_cannot_be_held(guard: Path, at: Path) -> None:
    holding = as_nobody("flock", "--timeout", "1", str(at / "ntpguard"), "true")
    assert holding.returncode != 0
    begin = time.monotonic()
    told("mode", "observe")
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("name", ["click.py", "ntpguard.py", "pyroute2.py"])
def test_a_module_in_the_current_directory_is_not_imported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("raise SystemExit('planted')\n")
    done = subprocess.run([NTPGUARD, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "planted" in done.stderr) == (0, False)


def test_a_state_file_is_not_written_through_a_planted_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, target = tmp_path / "state", tmp_path / "precious"
    state.mkdir()
    target.write_text("precious\n")
    (state / episodes.NAME).symlink_to(target)
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    episodes.save(Kept())
    assert target.read_text() == "precious\n"
    assert not (state / episodes.NAME).is_symlink()
