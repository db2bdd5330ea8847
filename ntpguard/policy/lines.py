"""Where in a TOML text each key and each item of a list stands: tomllib does not tell.

The text is one that tomllib accepts: only what decides where a key stands is looked at.
"""

import re
import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]

TOKEN = re.compile(
    r"""
    (?P<text>  "{3} (?: \\. | [^\\] )*? "{3,5} | '{3} .*? '{3,5}
             | " (?: \\. | [^"\\\n] )* "       | ' [^'\n]* ' )
  | (?P<bare> [^\s\[\]{}=,.\#"']+ )
  | (?P<skip> [ \t\r]+ | \#[^\n]* )
  | (?P<mark> . )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Tokens:
    """The tokens of a text, blanks and comments left out, one ahead of the reader."""

    def __init__(self, text: str) -> None:
        self._rest = self._all(text)
        self.kind, self.text, self.line = next(self._rest)

    @staticmethod
    def _all(text: str) -> Iterator[tuple[str, str, int]]:
        line = 1
        for match in TOKEN.finditer(text):
            if match.lastgroup != "skip":
                yield str(match.lastgroup), match[0], line
            line += match[0].count("\n")
        yield "end", "", line

    def take(self) -> str:
        """This token's text; the next one becomes this one."""
        taken = self.text
        self.kind, self.text, self.line = next(self._rest, ("end", "", self.line))
        return taken

    def ends(self, mark: str) -> bool:
        """Whether this token is that mark, or the text's end."""
        return self.kind == "end" or (self.kind == "mark" and self.text == mark)

    def skip(self, marks: str) -> None:
        """Passes any of these."""
        while self.kind == "mark" and self.text in marks:
            self.take()

    def key(self) -> Path:
        """The parts of a dotted key."""
        parts: list[str] = []
        while self.kind in ("text", "bare"):
            text = self.take()
            parts += tomllib.loads(f"{text} = 0") if text[0] in "\"'" else [text]
            self.skip(".")
        return tuple(parts)


def lines_of(text: str) -> dict[Path, int]:
    """Path of each key, table and list item -> line where it is first named, from 1.

    `[[class]]` twice makes ("class", 0) and ("class", 1).
    """
    lines: dict[Path, int] = {}
    arrays: dict[Path, int] = {}
    tokens = _Tokens(text)
    table: Path = ()

    def named(base: Path, parts: Path, line: int) -> Path:
        for part in parts:
            base = (*base, part)
            lines.setdefault(base, line)
        return base

    def value(path: Path) -> None:
        if tokens.kind == "mark" and tokens.text == "[":
            tokens.take()
            tokens.skip("\n")
            index = 0
            while not tokens.ends("]"):
                lines[*path, index] = tokens.line
                value((*path, index))
                tokens.skip(",\n")
                index += 1
            tokens.take()
        elif tokens.kind == "mark" and tokens.text == "{":
            tokens.take()
            tokens.skip("\n")
            while not tokens.ends("}"):
                pair(path)
                tokens.skip(",\n")
            tokens.take()
        else:
            while tokens.kind != "end" and (tokens.kind != "mark" or tokens.text not in ",]}\n"):
                tokens.take()

    def pair(base: Path) -> None:
        line = tokens.line
        path = named(base, tokens.key(), line)
        tokens.skip("=")
        value(path)

    def header() -> Path:
        line = tokens.line
        tokens.take()
        is_array = tokens.kind == "mark" and tokens.text == "["
        tokens.skip("[")
        *outer, last = tokens.key()
        tokens.skip("]")
        path: Path = ()
        for part in outer:
            path = named(path, (part,), line)
            path += (arrays[path] - 1,) if path in arrays else ()
        path = named(path, (last,), line)
        if is_array:
            arrays[path] = arrays.get(path, 0) + 1
            path = named(path, (arrays[path] - 1,), line)
        return path

    while tokens.kind != "end":
        if tokens.kind == "mark" and tokens.text == "[":
            table = header()
        elif tokens.kind == "mark":
            tokens.take()
        else:
            pair(table)
    return lines
