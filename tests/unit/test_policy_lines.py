"""The line of each key in a policy file, however its TOML is written."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntpguard.errors import PolicyError
from ntpguard.policy.check import parse_policy
from ntpguard.policy.lines import lines_of

# what a scanner could take for the end of a text, a table or a comment
TRAPS = ["", " ", "]", "}", "=", "# x", "[a]", "a.b", "'", '"', '"""', "\\", ", ", "é", "x = 1"]


class Writer:
    """Writes TOML with keys that each occur once, in every style; remembers each item's line."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.keys = 0

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def key(self) -> str:
        """A key named by its number; some need quotes."""
        self.keys += 1
        name = f"k{self.keys}k" + self.pick("", "", "", *TRAPS)
        if name.replace("k", "").isdigit() and self.pick(True, False):
            return name
        if "'" not in name and self.pick(True, False):
            return f"'{name}'"
        return json.dumps(name, ensure_ascii=False)

    def blank(self) -> str:
        return self.pick("", "", " ", "\t ")

    def dotted(self) -> str:
        dot = f"{self.blank()}.{self.blank()}"
        return dot.join(self.key() for _ in range(self.pick(1, 1, 1, 2, 3)))

    def scalar(self) -> str:
        text = "".join(self.pick(*TRAPS) for _ in range(self.pick(0, 1, 3)))
        literal = text.replace("'", "")
        return self.pick(
            *("1", "-1.5", "true", "1979-05-27 07:32:00", "1979-05-27T07:32:00.5Z", "inf"),
            json.dumps(text, ensure_ascii=False),
            f"'{literal}'",
            f"'''\n{literal}\n[no]\nno = 1'''",
            f"'''{literal}'x'''''",
            f"'''{literal}'x''''",
            '"""' + json.dumps(text)[1:-1] + '"x""""',
            '"""\n' + json.dumps(text)[1:-1] + '\n[[no]]\nno = 1 \\\n  """',
            '"""' + json.dumps(text)[1:-1] + '"x"""""',
        )

    def value(self, depth: int) -> None:
        kind = self.pick("scalar", "scalar", "array", "table") if depth else "scalar"
        if kind == "scalar":
            self.text += self.scalar()
        elif kind == "array":
            self.text += "["
            for _ in range(self.pick(0, 1, 3)):
                self.text += self.pick("", " ", "\n", "\n\n  ", " # ] a\n")
                self.value(depth - 1)
                self.text += self.pick(",", " ,", ", # [\n", "\n,")
            self.text += self.pick("", "\n", "# }\n") + "]"
        else:
            self.text += "{" + self.blank()
            for index in range(self.pick(0, 1, 3)):
                self.text += ", " if index else ""
                self.pair(depth - 1)
            self.text += self.blank() + "}"

    def pair(self, depth: int) -> None:
        self.text += f"{self.dotted()}{self.blank()}={self.blank()}"
        self.value(depth)

    def statements(self) -> None:
        for _ in range(self.pick(0, 1, 3)):
            self.text += self.pick("", "  ", "\n", "# a = 1\n")
            self.pair(2)
            self.text += self.pick("\n", " # b = [\n", "\r\n")

    def document(self) -> str:
        self.statements()
        tables: list[str] = []
        for _ in range(self.pick(0, 1, 3)):
            again = self.pick(*tables) if tables and self.pick(True, False) else None
            name = again or self.dotted()
            if again and self.pick(True, False):  # a table within the last one of an array
                inner = f"{name}.{self.key()}"
                self.text += f"[{self.blank()}{inner}{self.blank()}]"
            elif again or self.pick(True, False):
                self.text += f"[[{self.blank()}{name}{self.blank()}]]"
                tables.append(name)
            else:
                self.text += f"[{self.blank()}{name}{self.blank()}]"
            self.text += self.pick("\n", " # [c]\n")
            self.statements()
        return self.text


@st.composite
def documents(draw: Any) -> str:
    return Writer(draw).document()


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key and every list item that tomllib finds."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


@given(documents())
def test_every_key_that_tomllib_finds_has_a_line_that_names_it(text: str) -> None:
    found = tomllib.loads(text)
    lines = lines_of(text)
    assert set(lines) == set(paths(found))
    rows = text.split("\n")
    for path, line in lines.items():
        if isinstance(path[-1], str):
            number = path[-1].split("k")[1]
            assert f"k{number}k" in rows[line - 1]


@given(st.lists(st.sampled_from(["\n", "# ]\n", " "]), min_size=1), st.data())
def test_an_item_has_the_line_on_which_it_begins(gaps: list[str], data: st.DataObject) -> None:
    text = "a = ["
    lines = []
    for gap in gaps:
        text += gap
        lines.append(text.count("\n") + 1)
        text += data.draw(st.sampled_from(["1", '"]"', "'''\n]\n'''", "[\n1]", "{b = 1}"])) + ","
    found = lines_of(text + "]\n")
    assert [found["a", index] for index in range(len(gaps))] == lines


WRITTEN = {
    "dotted key": 'mode = "off"\nlimit.rate = 1\n',
    "spaces in the header": 'mode = "off"\n[ limit ]\n\nrate = 1\n',
    "quotes in the header": 'mode = "off"\n["limit"]\nrate = 1\n',
    "quoted key": "mode = \"off\"\n[limit]\n'rate' = 1\n",
    "inline table": 'mode = "off"\nlimit = { burst = 4, rate = 1 }\n',
    "after a text that looks like it": 'mode = """\\\n  off"""\n[limit]\nrate = 1\n[kod]\n',
    "windows line ends": 'mode = "off"\r\n[limit]\r\nrate = 1\r\n',
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_mistake_has_its_line_however_its_key_is_written(text: str) -> None:
    rows = text.split("\n")
    expected = next(number for number, row in enumerate(rows, 1) if "rate" in row)
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p")
    assert len(caught.value.errors) == 1
    assert caught.value.errors[0].startswith(f"p:{expected}: limit.rate: must be a rate")


def test_every_bad_item_of_a_list_is_named_with_its_own_line() -> None:
    text = """ports = [123, 0,
  "ntp"]
destinations = [
  "198.51.100.1",
  "198.51.100.256", # no address

  7,
]
[[class]]
name = "a"
prefixes = ["203.0.113.0/24"]
[[class]]
name = "b"
prefixes = [
  "198.51.100.0/24",
  "198.51.100.7/24", "banana",
  "203.0.113.0/24",
]
"""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p")
    assert caught.value.errors == [
        "p:1: ports: must be a whole number from 1 to 65535 (got 0)",
        "p:2: ports: must be a whole number from 1 to 65535 (got 'ntp')",
        'p:5: destinations: must be an IP address like "198.51.100.1" or "2001:db8::1" (got \'198.51.100.256\')',
        'p:7: destinations: must be an IP address like "198.51.100.1" or "2001:db8::1" (got 7)',
        "p:16: class.prefixes: has host bits set: did you mean \"198.51.100.0/24\"? (got '198.51.100.7/24')",
        'p:16: class.prefixes: must be a prefix like "198.51.100.0/24" or "2001:db8::/32", or an address (got \'banana\')',
    ]


def test_a_prefix_of_two_classes_is_named_where_it_comes_again(tmp_path: Path) -> None:
    text = """[[class]]
name = "a"
prefixes = ["203.0.113.0/24", "2001:db8::/32"]
[[class]]
name = "b"
prefixes = [
  "198.51.100.0/24",
  "203.0.113.0/24",
]
prefixes_file = "b.txt"
"""
    (tmp_path / "b.txt").write_text("# ours\n2001:db8::/32\n")
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "p", tmp_path)
    assert caught.value.errors == [
        'p:8: class.prefixes: "203.0.113.0/24" is in class "a" already: keep one of the two',
        f'{tmp_path}/b.txt:2: "2001:db8::/32" is in class "a" already: keep one of the two',
    ]


def test_brackets_too_deep_are_a_mistake_in_the_file() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy("a = " + "[" * 20_000, "p")
    assert caught.value.errors == ["p:1: not TOML: brackets too deep in one another"]
