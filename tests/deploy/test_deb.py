"""The Debian package, installed, upgraded and removed in a minimal Debian 12 of its own."""

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bpf.daemon import wait_for
from tests.deploy.chroot import ROOT, Chroot, debian
from tests.deploy.net import CLIENT, Traffic, network

POLICY = "/etc/ntpguard/ntpguard.toml"
ONE_SOURCE = '[[class]]\nname = "client"\nprefixes = ["198.51.100.0/24"]\n'
BLOCK_ALL = 'interfaces = ["eth0"]\nmode = "enforce"\n' + ONE_SOURCE + 'action = "block"\n'
LIMIT_ALL = 'interfaces = ["eth0"]\nmode = "enforce"\n' + ONE_SOURCE + 'rate = "1/minute"\n'


def package(version: str, tree: Path = ROOT) -> Path:
    """Builds the package of a tree, as this version; returns it."""
    out = subprocess.run(
        ["deploy/debian/build", version], cwd=tree, check=True, capture_output=True, text=True
    )
    return tree / out.stdout.strip()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Of the commit before, where it has one, and of the tree as it is."""
    before = tmp_path_factory.mktemp("before")
    archive = subprocess.run(["git", "archive", "HEAD~1"], cwd=ROOT, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(before)], input=archive.stdout, check=True)
    assert (before / "deploy/debian/build").exists(), "HEAD~1 has no package"
    made = package("0.0.1", before), package("0.0.2")
    try:
        yield made
    finally:
        made[1].unlink()


@pytest.fixture
def here() -> Iterator[Chroot]:
    with network(), debian("bookworm") as one:
        yield one


def install(one: Chroot, deb: Path) -> str:
    shutil.copy(deb, one / "/root")
    return one.run("apt-get", "install", "-qq", "-y", f"/root/{deb.name}").stdout


@contextmanager
def service(one: Chroot) -> Iterator[subprocess.Popen[str]]:
    """What the unit runs; killed in the end."""
    log = one / "/root/log"
    with log.open("w") as out:
        process = subprocess.Popen(one.command("ntpguard", "run"), stderr=out, text=True)
    try:
        wait_for(lambda: "ready: " in log.read_text(), log.read_text())
        yield process
    finally:
        process.kill()
        process.wait()


def restart(one: Chroot, process: subprocess.Popen[str]) -> None:
    process.terminate()
    assert process.wait(60) == 0


def state(one: Chroot, *words: str) -> dict[str, object]:
    done = one.run("ntpguard", "-o", "json", *words, code=None)
    return dict(json.loads(done.stdout)["data"])


def pins(one: Chroot) -> list[str]:
    return [path.name for path in (one / "/sys/fs/bpf/ntpguard").glob("*/*")]


def test_from_a_minimal_debian_to_a_guarded_server(
    here: Chroot, packages: tuple[Path, Path]
) -> None:
    shutil.copy(packages[1], here / "/root/ntpguard.deb")
    begin = time.monotonic()
    typed = [
        "apt-get install -y /root/ntpguard.deb",
        f"""sed -i 's/^# interfaces/interfaces/' {POLICY}""",
        "ntpguard policy check",
    ]
    for line in typed:
        here.run(*shlex.split(line))
    with service(here):
        seconds = time.monotonic() - begin
        status = here.run("ntpguard", "status").stdout
        assert "eth0" in status and "observe" in status
        with Traffic().flowing() as traffic:
            wait_for(lambda: traffic.arrived > 1000, "requests pass")
    print(f"\n{len(typed)} commands and a start, {seconds:.1f} s:", *typed, status, sep="\n")
    for file in (
        "/usr/share/man/man8/ntpguard.8.gz",
        "/usr/share/man/man5/ntpguard.toml.5.gz",
        "/usr/share/ntpguard/prometheus/ntpguard.rules.yml",
        "/usr/share/ntpguard/grafana/ntpguard.json",
        "/usr/share/bash-completion/completions/ntpguard",
        "/usr/share/zsh/vendor-completions/_ntpguard",
        "/usr/share/fish/vendor_completions.d/ntpguard.fish",
        "/lib/systemd/system/ntpguard.service",
    ):
        assert (here / file).is_file() or file.startswith("/usr/share/man"), file
    assert here.run("dpkg", "--verify", "ntpguard").stdout.split()[-1:] == [POLICY]


@pytest.mark.parametrize("policy", [BLOCK_ALL, LIMIT_ALL])
def test_an_upgrade_under_load_lets_no_packet_by_and_forgets_no_source(
    here: Chroot, packages: tuple[Path, Path], policy: str
) -> None:
    before, after = packages
    install(here, before)
    (here / POLICY).write_text(policy)
    with service(here) as process, Traffic().flowing() as traffic:
        wait_for(lambda: traffic.sent > 2000, "a load")
        counted, passed = state(here, "show", CLIENT), traffic.arrived
        assert (passed == 0) == (policy == BLOCK_ALL)
        install(here, after)
        restart(here, process)
        with service(here):
            sent = traffic.sent
            wait_for(lambda: traffic.sent > sent + 2000, "a load")
            now = state(here, "show", CLIENT)
    assert here.run("dpkg-query", "-W", "-f", "${Version}", "ntpguard").stdout == "0.0.2"
    assert traffic.sent > 5000
    if policy == BLOCK_ALL:
        assert traffic.arrived == 0
    else:
        requests = [one["source"]["requests"] for one in (counted, now)]  # type: ignore[index]
        assert requests[1] > requests[0] > 1000
        # the burst was spent before: what arrives is the leak
        assert traffic.arrived - passed < 0.3 * (traffic.sent - requests[0])


def test_without_the_service_an_upgrade_leaves_the_guard_and_says_how_to_swap_it(
    here: Chroot, packages: tuple[Path, Path]
) -> None:
    install(here, packages[0])
    (here / POLICY).write_text(BLOCK_ALL)
    here.run("ntpguard", "up")
    with Traffic().flowing() as traffic:
        assert "ntpguard up INTERFACE swaps it" in install(here, packages[1])
        assert "guarded on" in here.run("ntpguard", "up").stdout
    assert traffic.arrived == 0


def test_removal_detaches_and_a_purge_removes_the_state(
    here: Chroot, packages: tuple[Path, Path]
) -> None:
    install(here, packages[1])
    (here / POLICY).write_text(BLOCK_ALL)
    with service(here) as process:
        restart(here, process)
    assert pins(here)
    assert list((here / "/var/lib/ntpguard").iterdir())
    here.run("apt-get", "remove", "-qq", "-y", "ntpguard")
    with Traffic().flowing() as traffic:
        wait_for(lambda: traffic.arrived > 100, "nothing guards any more")
    assert pins(here) == []
    assert (here / POLICY).exists() and (here / "/var/lib/ntpguard").exists()
    here.run("apt-get", "purge", "-qq", "-y", "ntpguard")
    assert not (here / "/etc/ntpguard").exists() and not (here / "/var/lib/ntpguard").exists()
    left = here.run("find", "/usr", "/etc", "/lib", "/var/lib", "-path", "*ntpguard*").stdout
    assert left == ""


def test_a_package_that_was_never_used_is_removed_without_a_word(
    here: Chroot, packages: tuple[Path, Path]
) -> None:
    install(here, packages[1])
    assert "ntpguard:" not in here.run("apt-get", "purge", "-qq", "-y", "ntpguard").stdout
