"""The generated pages are those of the code, and read well."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.clients import __main__ as clients
from tests.docs import migration
from tests.docs.commands import commands
from tests.docs.manual import ENVIRONMENT
from tests.docs.reference import EXIT_CODES, ROOT, pages

PAGES = pages()
# sd_notify(3), sd_listen_fds(3), systemd.exec(5): between systemd and its services
SYSTEMD = {
    "JOURNAL_STREAM",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_the_codes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path], "try make reference"


@pytest.mark.parametrize("name", ["ntpguard.8", "ntpguard.toml.5"])
def test_a_manual_page_has_no_warning(name: str) -> None:
    command = ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", str(ROOT / "docs/man" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "NAME" in done.stdout and "B(" not in done.stdout


def test_every_command_and_exit_code_is_in_the_reference() -> None:
    page = PAGES[ROOT / "docs/reference/cli.md"]
    assert all(f"\n## {one.name}\n" in page for one in commands())
    assert [code for code, _ in EXIT_CODES] == [0, 1, 2, 3, 4, 5, 130]
    assert all(one.examples for one in commands())
    for one in commands():
        for name, text in one.options:
            assert text and not text.startswith("["), f"{one.name} {name}: what it does"


def test_the_manual_names_every_variable_that_is_read() -> None:
    reads = r'os\.environ(?:\.get\(|\[)"(\w+)"|"(\w+)" in os\.environ'
    sources = (ROOT / "ntpguard").rglob("*.py")
    found = [
        pair for path in sources for pair in re.findall(reads, path.read_text(encoding="utf-8"))
    ]
    read = {first or second for first, second in found}
    told = {name for names, _ in ENVIRONMENT for name in names.split(", ")}
    assert read - told == SYSTEMD
    assert told <= read


def test_the_page_on_migrated_policies_has_the_models_figures() -> None:
    assert migration.PAGE.read_text(encoding="utf-8") == migration.page()


def test_every_statement_on_security_has_a_test_that_there_is() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| `(tests/\S+\.py)::(test_\w+)` \|$", page, re.M)
    assert len(rows) == page.count("\n| ") - 1
    for statement, file, name in rows:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), statement


def test_the_page_on_clients_has_the_results_figures() -> None:
    assert clients.PAGE.read_text(encoding="utf-8") == clients.page()
