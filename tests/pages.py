"""Tables of measured figures in pages: written between `<!-- table: NAME -->` and `<!-- end -->`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[Any]], *, align: str = "---:") -> str:
    """A Markdown table, of numbers but for the first column."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---", *[align] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(page: str, tables: Mapping[str, str]) -> str:
    """The page with its tables written anew."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables[match[2]]}\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->).*?<!-- end -->", fill, page, flags=re.DOTALL)
