"""The pages keep what they promise: links lead somewhere, policies are valid, commands run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ntpguard.policy.check import read_policy
from tests.docs.blocks import PAGES, ROOT, Block, anchors, blocks, links

# whose sh blocks are run elsewhere: tests/unit/test_run.py, tests/bpf/test_runbooks.py
ELSEWHERE = {"README.md", "docs/runbooks.md"}
SCRIPTS = [
    page
    for page in PAGES
    if str(page.relative_to(ROOT)) not in ELSEWHERE
    and any(one.language == "sh" for one in blocks(page))
]
POLICIES = [
    pytest.param(page, one, id=f"{page.relative_to(ROOT)}:{one.line}")
    for page in PAGES
    for one in blocks(page)
    if one.language == "toml"
]
TUTORIAL = ROOT / "docs/tutorial.md"
LANGUAGES = {"sh", "toml", "text", "console", "yaml", "json", "c", "python", "ini", "conf"}
POLICY = "/etc/ntpguard/ntpguard.toml"
PRIVATE = pytest.mark.skipif("NTPGUARD_PRIVATE" not in os.environ, reason="runs in tests/private")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), link
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_of_a_page_says_what_it_is(page: Path) -> None:
    fences = page.read_text(encoding="utf-8").count("\n```")
    found = list(blocks(page))
    assert fences == 2 * len(found)
    # nobody would run it
    assert not re.search(r"^([ >]+```|~~~)", page.read_text(encoding="utf-8"), re.M)
    assert {one.language for one in found} <= LANGUAGES


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = ROOT / "docs/README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert {one for one in PAGES if one.is_relative_to(index.parent)} == {*listed, index}


@pytest.mark.parametrize(("page", "block"), POLICIES)
def test_every_policy_of_a_page_is_valid(page: Path, block: Block, tmp_path: Path) -> None:
    file = tmp_path / "ntpguard.toml"
    file.write_text(block.text)
    (tmp_path / "banned.txt").write_text("203.0.113.64/28\n")
    assert read_policy(file).warnings == ()


def script(page: Path) -> str:
    """The page as a reader follows it: each policy is written where the guard reads it."""
    out = ["set -eu -o pipefail"]
    for one in blocks(page):
        if one.language == "toml":
            out += [f"cat >{POLICY} <<'END'\n{one.text}END"]
        elif one.language == "sh":
            out += [f"echo '--- {page.name}:{one.line}'", one.text]
    return "\n".join(out)


def run(page: Path, tmp_path: Path) -> str:
    """What its commands print, all of them successful, on a host with eth0 and an /etc of its own."""
    bash = shutil.which("bash")
    assert bash
    before = "\n".join(
        (
            "ip link set lo up",
            "ip link add eth0 type veth peer name wire",
            "ip address add 198.51.100.1/24 dev eth0",
            "ip link set eth0 up",
            "ip link set wire up",
            *(
                f"mkdir -p {tmp_path}/{one}/upper {tmp_path}/{one}/work; mount -t overlay overlay "
                f"-o lowerdir=/{one},upperdir={tmp_path}/{one}/upper,workdir={tmp_path}/{one}/work /{one}"
                for one in ("etc", "var/lib")
            ),
            "mkdir -p /etc/ntpguard /var/lib/ntpguard",
            "echo 203.0.113.64/28 >/etc/ntpguard/banned.txt",
        )
    )
    path = f"{Path(sys.executable).parent}:{ROOT / 'build/peers/usr/sbin'}:{ROOT / 'build/peers/usr/bin'}"
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    if page == TUTORIAL:  # it has a bpffs of its own: ip netns exec hides the host's
        del environment["NTPGUARD_BPFFS"]
    done = subprocess.run(
        ["unshare", "--net", "--mount", bash, "-c", f"{before}\n{script(page)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env=environment,
    )
    print(done.stdout)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout
    return done.stdout


@PRIVATE
@pytest.mark.parametrize("page", [one for one in SCRIPTS if one != TUTORIAL], ids=named)
def test_the_commands_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    assert run(page, tmp_path)


@PRIVATE
def test_the_tutorial_comes_to_what_it_says(tmp_path: Path) -> None:
    out = run(TUTORIAL, tmp_path)
    asked = [
        [int(one) for one in found]
        for found in re.findall(r"^(\d+) sent: (\d+) served, (\d+) kissed", out, re.M)
    ]
    assert [sent for sent, _, _ in asked] == [2000, 2000, 2000, 80, 2000]
    served = [one for _, one, _ in asked]
    # at first all; then the burst, the leak and what the clock allows; blocked, none
    assert served[0] >= 1000 and served[1] >= 1000  # a busy machine loses some
    assert 32 <= served[2] < 400 and 1 <= served[3] < 80 and served[4] == 0
    # one source in 16 is never kissed
    assert [kissed for _, _, kissed in asked[:2]] == [0, 0] and asked[3][2] <= 1
    assert out.count("System clock wrong by") == 2
