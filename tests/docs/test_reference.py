"""The generated pages are those of the code, and read well."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs import migration
from tests.docs.commands import commands
from tests.docs.reference import EXIT_CODES, ROOT, pages

PAGES = pages()


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
    assert [code for code, _ in EXIT_CODES] == [0, 1, 2, 3, 4, 5]
    assert all(one.examples for one in commands())


def test_the_page_on_migrated_policies_has_the_models_figures() -> None:
    assert migration.PAGE.read_text(encoding="utf-8") == migration.page()


def test_every_statement_on_security_has_a_test_that_there_is() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| `(tests/\S+\.py)::(test_\w+)` \|$", page, re.M)
    assert len(rows) == page.count("\n| ") - 1
    for statement, file, name in rows:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), statement
