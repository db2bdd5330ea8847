"""Writes docs/reference and docs/man from the code: `make reference`. A test compares them."""

from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap

from ntpguard.cli import main
from ntpguard.cli.group import INTERRUPTED
from ntpguard.policy.settings import (
    CLASS_SETTINGS,
    REQUIRED,
    SETTINGS,
    SIGNATURE_SETTINGS,
    Setting,
)
from tests.docs import manual
from tests.docs.commands import Command, commands, options

ROOT = Path(__file__).parents[2]
GENERATED = "<!-- written by `make reference`: change the code, not this page -->"
TABLES = {
    "": "The top level of the file",
    "sources": "What a source is, and how many are held",
    "limit": "What each source may send",
    "kod": "When excess is answered with a Kiss-o'-Death",
    "newcomers": "Sources that have no slot in the table",
    "ceiling": "A rate that the daemon can bear",
    "answers": "Answers to requests that this host may have sent",
    "odd": "What cannot be parsed to UDP",
}
EXIT_CODES = (
    (0, "done; `status`: healthy"),
    (1, "failed; `status`: degraded; `doctor`: something would fail"),
    (2, "wrong usage"),
    (3, "a policy file that is not valid: every mistake is named"),
    (4, "nothing is guarded in this network namespace"),
    (5, "not permitted: the capability that is wanted is named"),
    (INTERRUPTED, "interrupted by Ctrl-C, before it was done"),
)
EXAMPLE = """\
interfaces = ["eth0"]
mode = "enforce"
upstreams = ["203.0.113.8", "2001:db8:8::8"]

[limit]
rate = "60/minute"
burst = 32

[ceiling]
rate = "150000/second"

[[class]]
name = "campus"
prefixes = ["198.51.100.0/24", "2001:db8:1::/48"]
rate = "10/second"
burst = 100

[[class]]
name = "monitoring"
prefixes = ["2001:db8:2::53"]
action = "exempt"

[[class]]
name = "banned"
prefixes = ["203.0.113.64/28"]
action = "block"

[[signature]]
name = "nixie-clock"
source_port = 1337
header = "e3 00 06 ec 00000000 00000000 314e3134"
action = "block"
mode = "observe"
"""


def default(setting: Setting) -> str:
    """A setting's default as it would be written, or what holds without it."""
    if setting.default is REQUIRED:
        return "required"
    if setting.default is None:
        return '"off"' if "off" in setting.kind.wanted else ""
    return setting.kind.write(setting.default)


def _rows(settings: Iterable[Setting]) -> list[str]:
    rows = ["| setting | default | meaning | accepted |", "|---|---|---|---|"]
    for one in settings:
        cells = (f"`{one.name}`", f"`{default(one)}`", one.meaning, one.kind.wanted)
        line = " | ".join(cell.replace("|", "\\|") for cell in cells)
        rows.append(f"| {line} |".replace("| `` |", "| |"))
    return rows


def policy_page() -> str:
    """docs/reference/policy.md."""
    out = [
        "# The policy file",
        "",
        GENERATED,
        "",
        "`/etc/ntpguard/ntpguard.toml` is [TOML](https://toml.io). What is not set has its default, and",
        "the defaults alone are a good policy for a server of the NTP pool. `ntpguard policy check FILE`",
        "names all that is wrong with a file, and the memory it needs; `ntpguard policy show` writes out",
        "what runs, defaults included.",
        "",
        "```toml",
        EXAMPLE.rstrip(),
        "```",
        "",
    ]
    for section, title in TABLES.items():
        rows = [one for one in SETTINGS if one.section == section]
        out += [f"## {f'[{section}]: ' if section else ''}{title}", "", *_rows(rows), ""]
    out += [
        "## [[class]]: sources with a limit or an action of their own",
        "",
        "The longest prefix decides. A class needs `prefixes` or `prefixes_file`.",
        "",
        *_rows(CLASS_SETTINGS),
        "",
        "## [[signature]]: shapes of requests",
        "",
        "What is not named is not compared. `ntpguard policy signatures` prints those of known faulty",
        "clients.",
        "",
        *_rows(SIGNATURE_SETTINGS),
        "",
    ]
    return "\n".join(out)


def _options(found: Iterable[tuple[str, str]]) -> list[str]:
    rows = [f"| `{name.replace('|', chr(92) + '|')}` | {text} |" for name, text in found]
    return ["| option | meaning |", "|---|---|", *rows, ""] if rows else []


def _command(one: Command) -> list[str]:
    usage = " ".join((one.name, *(["[OPTIONS]"] if one.options else []), *one.arguments))
    out = [f"## {one.name}", "", "```text", usage, "```", ""]
    for paragraph in one.about:
        out += [*wrap(paragraph, 100), ""]
    out += _options(one.options)
    if one.examples:
        out += ["```text", *one.examples, "```", ""]
    for paragraph in one.closing:
        out += [*wrap(paragraph, 100), ""]
    return out


def commands_page() -> str:
    """docs/reference/cli.md."""
    out = [
        "# The command line",
        "",
        GENERATED,
        "",
        "stdout is data, stderr is messages. With `-o json` (before the command) data is",
        "[JSON](../json.md). Live changes are of what runs; the policy file stays as it is, `status` says",
        "that they differ, and `policy diff` prints the TOML to paste.",
        "",
        "## Global options",
        "",
        *_options(options(main)),
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| {code} | {text} |" for code, text in EXIT_CODES),
        "",
    ]
    for one in commands():
        out += _command(one)
    return "\n".join(out)


def pages() -> dict[Path, str]:
    """Every generated file, and what is to be in it."""
    docs = ROOT / "docs"
    return {
        docs / "reference/cli.md": commands_page(),
        docs / "reference/policy.md": policy_page(),
        docs / "man/ntpguard.8": manual.ntpguard(EXIT_CODES),
        docs / "man/ntpguard.toml.5": manual.policy(TABLES, EXAMPLE, default),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
