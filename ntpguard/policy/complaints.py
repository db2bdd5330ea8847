"""Collects what is wrong with a policy file, each with its line, while its values are read."""

import difflib
import errno
import hashlib
import math
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from ntpguard.policy.kinds import BadItems
from ntpguard.policy.lines import Path as Key
from ntpguard.policy.lines import lines_of
from ntpguard.policy.settings import REQUIRED, SETTINGS, Setting
from ntpguard.state import bytes_of

Place = Key | str
"""A key of the policy file, or a line of another: "banned.txt:7"."""


def shown(key: Key) -> str:
    """A key as people know it: class.rate, whichever class."""
    return ".".join(part for part in key if isinstance(part, str))


def got(value: Any) -> str:
    """The value that is wrong, at the end of a complaint."""
    try:
        text = repr(value)
    except ValueError:  # Python reads such a number in hexadecimal, but does not write it
        return "(got a number of too many digits)"
    return f"(got {text if len(text) <= 40 else text[:37] + '...'})"


def text_and_digest(file: Path) -> tuple[str, str]:
    """A file's text, and the SHA-256 of its bytes. Raises OSError, UnicodeDecodeError."""
    raw = bytes_of(file)
    # some editors begin a file with a byte order mark
    return raw.decode("utf-8-sig"), hashlib.sha256(raw).hexdigest()


def _elsewhere(name: str) -> str:
    """Where a setting of that name belongs, if there is one."""
    sections = [row.section for row in SETTINGS if row.name == name]
    if "" in sections:
        return "it belongs before the first [section]"
    return "it belongs in " + " or ".join(f"[{one}]" for one in sections) if sections else ""


class Checker:
    """`name` stands in messages, `base` is where prefixes_file is relative to."""

    def __init__(self, text: str, name: str, base: Path) -> None:
        self.base = base
        self._errors: list[tuple[float, str]] = []
        self._warnings: list[tuple[float, str]] = []
        self.files: list[tuple[str, str]] = []
        self._text = text
        self._name = name
        self._lines: dict[Key, int] | None = None

    def complain(self, place: Place, what: str) -> None:
        """An error: the policy is not accepted."""
        self._errors.append(self._at(place, what))

    def warn(self, place: Place, what: str) -> None:
        """What the operator should know of a policy that is accepted."""
        self._warnings.append(self._at(place, what))

    @property
    def errors(self) -> list[str]:
        """In the order of their lines; those of other files come last."""
        return [text for _, text in sorted(self._errors, key=itemgetter(0))]

    @property
    def warnings(self) -> list[str]:
        """In that order."""
        return [text for _, text in sorted(self._warnings, key=itemgetter(0))]

    def unknown(self, table: dict[str, Any], place: Key, known: Iterable[str]) -> None:
        """Complains of every key of `table`, which stands at `place`, that is none of `known`."""
        names = list(known)
        for key in table:
            if key not in names:
                close = difflib.get_close_matches(key, names, 1)
                hint = f'did you mean "{close[0]}"?' if close else _elsewhere(key)
                hint = hint or "known: " + ", ".join(names)
                self.complain((*place, key), f"unknown setting: {hint}")

    def table(self, place: Key, value: Any) -> dict[str, Any]:
        """`value` if it is a table, else an empty one and a complaint."""
        if isinstance(value, dict):
            return value
        self.complain(place, f"must be a table, [{shown(place)}] {got(value)}")
        return {}

    def tables(self, name: str, value: Any) -> list[dict[str, Any]]:
        """`value` if it is an array of tables, else an empty one and a complaint."""
        if isinstance(value, list) and all(isinstance(one, dict) for one in value):
            return value
        self.complain((name,), f"must be tables, [[{name}]] {got(value)}")
        return []

    def value(self, place: Key, row: Setting, table: dict[str, Any]) -> Any:
        """A setting's value in its table at `place`; its default if it is absent or wrong."""
        key = (*place, row.name)
        if row.name not in table:
            if row.default is REQUIRED:
                self.complain(key, f"must be {row.kind.wanted} (missing)")
            return row.default
        try:
            return row.kind.read(table[row.name])
        except BadItems as error:
            for index, item, what in error.items:
                self.complain((*key, index), f"{what} {got(item)}")
        except ValueError as error:
            self.complain(key, f"{error} {got(table[row.name])}")
        return row.default

    def text_of(self, file: Path) -> str:
        """A file's text, noted in `files`. Raises OSError, UnicodeDecodeError."""
        if file.exists() and not file.is_file():  # a pipe may keep a daemon waiting for ever
            raise OSError(errno.EINVAL, "not a regular file")
        text, sha256 = text_and_digest(file)
        self.files.append((str(file.absolute()), sha256))
        return text

    def _at(self, place: Place, what: str) -> tuple[float, str]:
        """The line of the policy file, infinite for one of another, and the whole text."""
        if isinstance(place, str):
            return math.inf, f"{place}: {what}"
        if self._lines is None:
            self._lines = lines_of(self._text)
        at = place
        while at and at not in self._lines:
            at = at[:-1]
        line = self._lines.get(at, 1)
        return line, f"{self._name}:{line}: {shown(place)}: {what}"
