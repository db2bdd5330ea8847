"""What a local user may try, with calls of their own, names, files and namespaces: test_local_user.py
has the commands.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ntpguard import episodes
from ntpguard.daemon import lastgood
from ntpguard.episodes import Episode, Kept
from ntpguard.kernel import bpffs, maps
from ntpguard.policy.check import parse_policy
from tests import NTPGUARD
from tests.bpf.daemon import POLICY, running
from tests.bpf.live import data, told
from tests.bpf.test_exporter import POLICY as FLOODED
from tests.bpf.test_exporter import exporter, flood
from tests.bpf.test_health import status
from tests.bpf.test_lifecycle import NAMES, guarded, left, pytestmark, up, where

__all__ = ["pytestmark", "where"]
NOBODY = 65534
USER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")


def user(
    *command: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What the user's command does."""
    return subprocess.run(
        [*USER, *command],
        capture_output=True,
        text=True,
        cwd=cwd or "/",
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory in one that everybody may enter, as /var/lib is."""
    for one in (tmp_path, *tmp_path.parents):
        if one.is_relative_to("/tmp/pytest-of-root"):
            one.chmod(0o755)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state"


def test_no_call_reads_changes_or_removes_what_is_pinned_or_kept(where: Path, state: Path) -> None:
    up(where)
    told("block", "203.0.113.0/24", "--reason", "why")
    episodes.save(Kept(open=(Episode("203.0.113.7", 1.0, 2.0),)))
    lastgood.save(parse_policy(POLICY), Path("/etc/ntpguard/ntpguard.toml"))
    assert where.stat().st_mode & 0o7777 == 0o1777  # as mount -t bpf makes it: the worst case
    before = data("policy", "show"), data("entries")
    code = f"""
import fcntl, os
from pathlib import Path
own = {str(bpffs.pins(where))!r}
top = os.path.dirname(own)
kept = [{str(state)!r}, {str(episodes.path())!r}, {str(lastgood.path())!r}]
names = {maps.SHARED_MAPS!r}
done = []
def attempt(what, do, *arguments):
    try:
        do(*arguments)
    except PermissionError:
        return
    done.append((what, arguments))
for path in (top, own, *(f"{{own}}/{{name}}" for name in names), *kept):
    attempt("open", os.open, path, os.O_RDONLY)
    if path not in (top, own, {str(state)!r}):
        attempt("write", os.open, path, os.O_RDWR)
    attempt("unlink", os.unlink, path)
    attempt("rename", os.rename, path, f"{{path}}-away")
    attempt("chmod", os.chmod, path, 0o777)
for directory in (own, {str(state)!r}):
    attempt("list", os.listdir, directory)
    attempt("mkdir", os.mkdir, f"{{directory}}/mine")
    attempt("symlink", os.symlink, "/etc/passwd", f"{{directory}}/episodes.new")
attempt("rmdir", os.rmdir, top)
print(done)
"""
    tried = user(sys.executable, "-c", code)
    assert (tried.returncode, tried.stdout, tried.stderr) == (0, "[]\n", "")
    assert (guarded(), status()) == ([NAMES[0]], (0, []))
    assert (data("policy", "show"), data("entries")) == before


def test_a_directory_that_the_user_made_where_pins_go_is_refused(where: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (where / "ntpguard").rmdir()
    assert user("mkdir", "-m", "700", str(where / "ntpguard")).returncode == 0
    try:
        refused = subprocess.run(
            [NTPGUARD, "up", NAMES[0]], capture_output=True, text=True, cwd="/"
        )
        assert refused.returncode == 1
        assert f"ntpguard: belongs to uid {NOBODY}, mode 0700" in refused.stderr
        assert f"rm -r {where}/ntpguard" in refused.stderr
        assert (guarded(), left(where)) == ([], [])
    finally:
        (where / "ntpguard").rmdir()


def test_in_a_user_namespace_of_its_own_the_user_gets_no_further(
    where: Path, tmp_path: Path
) -> None:
    up(where)
    script = f"""
ip link add mine0 type veth peer name mine1
mkdir /tmp/mine-$$ && mount -t bpf bpf /tmp/mine-$$
{NTPGUARD} --bpffs /tmp/mine-$$ up mine0; echo up $?
{NTPGUARD} --bpffs {where} down; echo down $?
umount /tmp/mine-$$; rmdir /tmp/mine-$$
"""
    done = user("unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script)
    # some kernels let anybody mount a bpffs there; to load a program it takes more
    assert done.stdout in ("up 1\ndown 5\n", "up 5\ndown 5\n"), (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert (guarded(), status()) == ([NAMES[0]], (0, []))


def test_of_the_exporter_the_user_reads_the_page_with_its_sources_and_no_address_in_metrics(
    where: Path,
) -> None:
    up(where, policy=parse_policy(FLOODED))
    flood(where)
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9721{}').read().decode())"
    with exporter():
        metrics = user(sys.executable, "-c", ask.format("/metrics")).stdout
        page = user(sys.executable, "-c", ask.format("/")).stdout
    assert "ntpguard_up 1.0" in metrics and "203.0.113." not in metrics
    # said in docs: whoever may log in here may see those with the most excess
    assert page.count("<tr><td>203.0.113.") in range(1, 16)


def test_a_secret_in_a_file_that_was_not_meant_is_told_to_root_only(
    where: Path, state: Path
) -> None:
    directory = state.parent
    (directory / "shadow").write_text("root:$y$hunter2:20000:0:99999:7:::\n")
    (directory / "shadow").chmod(0o600)
    listed = f'{POLICY}[[class]]\nname = "banned"\naction = "block"\nprefixes_file = "shadow"\n'
    with running(directory, "--listen", "127.0.0.1:9721") as one:
        one.reload(listed)
        told_systemd = one.told("READY=1", "STATUS")["STATUS"]
        assert f"{directory}/shadow:1: must be a prefix" in told_systemd
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9721/').read())"
        page = user(sys.executable, "-c", ask).stdout
        assert "must be a prefix" in page
        assert "hunter2" in one.log()
        for text in (told_systemd, page, *status()[1]):
            assert "hunter2" not in text
    check = user(NTPGUARD, "policy", "check", str(one.file))
    assert "hunter2" not in check.stderr and "Permission denied" in check.stderr


ENDLESS = {"/dev/zero": "larger than 64 MiB", "directory": "Is a directory"}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_policy_file_that_is_none_is_refused_in_little_memory(tmp_path: Path, what: str) -> None:
    file = tmp_path if what == "directory" else Path(what)
    limited = ("prlimit", f"--as={1 << 30}", NTPGUARD, "policy", "check", str(file))
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        3,
        f"ntpguard: {file}: cannot read: {ENDLESS[what]}\n",
    )


def test_a_pipe_among_the_prefix_files_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "banned")
    file = tmp_path / "ntpguard.toml"
    file.write_text('[[class]]\nname = "a"\naction = "block"\nprefixes_file = "banned"\n')
    done = subprocess.run(
        [NTPGUARD, "policy", "check", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert f"cannot read {tmp_path}/banned: not a regular file" in done.stderr
