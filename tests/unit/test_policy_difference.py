"""What two policies state differently, and the TOML that makes a file say what runs."""

import json
import re
import tomllib
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ntpguard.policy.check import DEFAULT, parse_policy
from ntpguard.policy.difference import differences
from ntpguard.policy.model import Policy
from ntpguard.policy.paste import paste
from ntpguard.policy.render import to_toml
from tests.unit.test_policy_roundtrip import policies

FILE = """mode = "enforce"

[limit]
rate = "60/minute"

[[class]]
name = "campus"
prefixes = ["198.51.100.0/24"]
burst = 100

[[class]]
name = "banned"
prefixes = ["203.0.113.0/24"]
action = "block"
"""


def toml(value: dict[str, Any]) -> str:
    """A whole policy as TOML: JSON's scalars and lists are TOML."""
    lines = [
        f"{key} = {json.dumps(one, ensure_ascii=False)}"
        for key, one in value.items()
        if not isinstance(one, dict) and key not in ("class", "signature")
    ]
    for key, one in value.items():
        if isinstance(one, dict):
            lines += [f"[{key}]", toml(one)]
        elif key in ("class", "signature"):
            for table in one:
                lines += [f"[[{key}]]", toml(table)]
    return "\n".join(lines).replace("\x7f", "\\u007f")


def pasted(file: str, snippet: str, running: Policy) -> Policy:
    """What the file says when its operator has done as the snippet tells."""
    top, new = tomllib.loads(file), tomllib.loads(snippet)
    for key, value in new.items():
        if isinstance(value, dict):
            top[key] = top.get(key, {}) | value
        elif key not in ("class", "signature"):
            top[key] = value
    for kind, order in (
        ("class", [one.name for one in running.classes]),
        ("signature", [one.name for one in running.signatures]),
    ):
        tables = {one["name"]: one for one in top.get(kind, [])}
        tables |= {one["name"]: one for one in new.get(kind, [])}
        for name in re.findall(rf"^# remove {kind} ([a-z0-9_-]+)", snippet, re.MULTILINE):
            del tables[name]
        if f"# the order of [[{kind}]]" in snippet:
            tables = dict(sorted(tables.items(), key=lambda pair: order.index(pair[0])))
        top[kind] = list(tables.values())
    return parse_policy(toml(top))


# without shrinking: of two whole policies it takes minutes
@settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    max_examples=50,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(policies(), policies(), st.booleans())
def test_no_difference_means_equal_and_what_is_pasted_is_what_runs(
    one: Policy, two: Policy, mixed: bool
) -> None:
    if mixed:  # differ in a few things only
        two = replace(one, ports=two.ports, signatures=one.signatures[::-1], mode=two.mode)
        two = replace(two, classes=(*one.classes[:1], *one.classes[:0:-1]))
    assert bool(differences(one, two)) == (one != two)
    assert differences(one, one) == [] and paste(one, one, to_toml(one)) == ""
    text = to_toml(one)
    assert pasted(text, paste(two, one, text), two) == two


def test_a_class_that_inherits_is_pasted_if_what_it_inherits_was_changed_and_it_was_not() -> None:
    file = parse_policy(FILE)
    running = replace(file, classes=(replace(file.classes[0], burst=5), *file.classes[1:]))
    snippet = paste(running, file, FILE)
    assert pasted(FILE, snippet, running) == running
    assert snippet == (
        "# in [limit], line 3\n[limit]\nburst = 5\n\n"
        '# instead of class banned, line 11\n[[class]]\nname = "banned"\n'
        'prefixes = ["203.0.113.0/24"]\naction = "block"\nburst = 32\n'
    )


def test_a_file_of_prefixes_stays_a_file_when_they_are_the_same() -> None:
    text = FILE.replace('prefixes = ["203.0.113.0/24"]', 'prefixes_file = "banned.txt"')
    file = parse_policy(FILE)
    observing = replace(file.classes[2], mode="observe")
    snippet = paste(replace(file, classes=(*file.classes[:2], observing)), file, text)
    assert 'prefixes_file = "banned.txt"\n' in snippet and "203.0.113" not in snippet


def test_changes_read_as_one_line_each() -> None:
    before = parse_policy(FILE)
    text = FILE.replace('"60/minute"', '"30/minute"').replace("burst = 100", "kod = false")
    text = text.replace('"203.0.113.0/24"', '"203.0.113.0/25", "203.0.113.128/26"')
    text += '[ceiling]\nrate = "9/second"\n[[signature]]\nname = "s"\nsource_port = 7\n'
    assert [str(one) for one in differences(before, parse_policy(text))] == [
        "limit.rate: 60/minute -> 30/minute",
        "ceiling.rate: off -> 9/second",
        "class.campus.rate: 60/minute -> 30/minute",
        "class.campus.burst: 100 -> 32",
        "class.campus.kod: true -> false",
        "class.banned.prefixes: 1 -> 2: added 203.0.113.0/25, 203.0.113.128/26; "
        "removed 203.0.113.0/24",
        "class.banned.rate: 60/minute -> 30/minute",
        "signature.s: none -> source_port 7, when excess, mode enforce",
    ]
    assert "class.banned: block, 1 prefixes -> none" in [
        str(one) for one in differences(before, DEFAULT)
    ]
