"""The pages have the figures that were measured."""

import json
from pathlib import Path

import pytest

from tests.bench.page import PAGES, tables
from tests.bench.report import RESULT
from tests.pages import filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_was_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, tables(json.loads(RESULT.read_text(encoding="utf-8")))) == text
