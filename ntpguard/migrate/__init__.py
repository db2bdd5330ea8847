"""The configuration of chronyd, ntpd or ntpsec, read for what ntpguard can do instead of it."""

import re
from collections.abc import Iterable

from ntpguard.errors import UsageError
from ntpguard.migrate import chrony, ntp
from ntpguard.migrate.draft import Draft, Line
from ntpguard.policy.check import parse_policy

KINDS = {"chrony": chrony, "ntpd": ntp, "ntpsec": ntp}


def lines_of(name: str, text: str) -> list[Line]:
    """The lines of a file that say something. A comment begins the line, or follows a blank."""
    found = []
    for number, raw in enumerate(text.splitlines(), 1):
        plain = re.sub(r"^\s*[!;#%].*|\s#.*", "", raw).strip()
        if plain:
            found.append(Line(name, number, tuple(plain.split())))
    return found


def kind_of(files: Iterable[str], lines: Iterable[Line]) -> str:
    """Whose configuration the files are. Raises UsageError if no directive tells."""
    for line in lines:
        for kind, one in KINDS.items():
            if line.directive in one.TELLING:
                return kind
    raise UsageError(
        f"{', '.join(files)}: no directive tells whose configuration this is: say --from chrony, "
        "ntpd or ntpsec"
    )


def migrated(files: Iterable[tuple[str, str]], kind: str | None = None) -> Draft:
    """What the files, each a name and its text, come to. Raises UsageError."""
    files = list(files)
    lines = [line for name, text in files for line in lines_of(name, text)]
    told = kind or kind_of([name for name, _ in files], lines)
    draft = Draft(told)
    KINDS[told].read(lines, draft)
    if kind is None and draft.daemon == "ntpd":
        draft.remarks.append("If it is ntpsec's, which limits without being told: --from ntpsec.")
    parse_policy(draft.toml())  # what is written is valid, whatever was read
    return draft
