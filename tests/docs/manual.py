"""The manual pages, in man(7): short frames around what the code says of itself."""

import re
from collections.abc import Callable, Iterable, Mapping

from ntpguard import __version__
from ntpguard.cli import main
from ntpguard.policy.settings import CLASS_SETTINGS, SETTINGS, SIGNATURE_SETTINGS, Setting
from tests.docs.commands import commands, options

DESCRIPTION = """\
ntpguard attaches an XDP program to the interfaces of a public NTP server, in front of an unmodified
chrony, ntpd, ntpsec or ntpd-rs. The program counts the requests of each source, an IPv4 address or an
IPv6 /64, and answers those over its limit with RATE Kiss-o'-Death packets (RFC 5905, section 7.4) or
drops them, before they cost a socket. A share of the excess, the leak, is answered anyway, so that
nobody can silence a client by forging its address.

Enforcement lives in the kernel: program, maps and links are pinned, and stay when a command or the
daemon ends. Only B(ntpguard down) takes them away. Without a policy file, or a line that says
otherwise, the mode is I(observe): every packet passes, and the counters tell what would have happened.

A rate is written 60/minute (per second, minute, hour or day), a time 90s, 10m, 24h or 7d. Live changes
(B(block), B(exempt), B(limit set), B(mode)) leave the policy file as it is; B(ntpguard policy diff)
prints what to write there."""
FILES = (
    ("/etc/ntpguard/ntpguard.toml", "The policy: see B(ntpguard.toml)(5)."),
    (
        "/sys/fs/bpf/ntpguard/",
        "What is pinned, a directory for each network namespace. Only root can read it.",
    ),
    ("/var/lib/ntpguard/", "The last good policy, and the episodes. Only root can read it."),
)
ENVIRONMENT = (
    ("NTPGUARD_BPFFS", "Where the bpffs is mounted, without B(--bpffs)."),
    ("NTPGUARD_OBJECT", "Another compiled program than the one that is installed."),
    ("NO_COLOR", "If it is not empty: no colours, without B(--color)."),
)
SIGNALS = (
    ("SIGHUP", "B(ntpguard run) reads the policy file again; a bad one changes nothing."),
    (
        "SIGTERM, SIGINT",
        "B(ntpguard run) ends; what it guards stays guarded, unless I(on_exit) says otherwise.",
    ),
)
SIMPLE_EXAMPLES = (
    (
        "See what enforcement would do on eth0, and forget it again:",
        ("ntpguard up eth0", "ntpguard top -n 5", "ntpguard down"),
    ),
    (
        "Enforce a policy, and be back in observe after ten minutes, if that has cut you off:",
        ("ntpguard up eth0 --policy ntpguard.toml --revert-after 10m", "ntpguard mode enforce"),
    ),
)


def escaped(text: str) -> str:
    """Text as roff takes it; B(...) is bold and I(...) italic."""
    text = re.sub(r"`([^`]*)`", r"B(\1)", text)
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    text = re.sub(r"\bB\(([^()]*)\)", r"\\fB\1\\fR", text)
    text = re.sub(r"\bI\(([^()]*)\)", r"\\fI\1\\fR", text)
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def sentence(text: str) -> str:
    """The first letter large; a marked or quoted word stays as it is."""
    return text[0].upper() + text[1:] if text[1] != "(" else text


def _head(name: str, section: int, title: str) -> list[str]:
    return [
        r".\" written by `make reference`: change the code, not this page",
        f'.TH {name.upper()} {section} "" "ntpguard {__version__}"',
        ".SH NAME",
        rf"{escaped(name)} \- {escaped(title)}",
    ]


def _terms(items: Iterable[tuple[str, str]]) -> list[str]:
    out = []
    for term, text in items:
        out += [".TP", rf"\fB{escaped(term)}\fR", escaped(text)]
    return out


def _code(lines: Iterable[str]) -> list[str]:
    return [".RS 4", ".nf", *(escaped(line) for line in lines), ".fi", ".RE"]


def _text(text: str) -> list[str]:
    return [line for one in text.split("\n\n") for line in (".PP", escaped(one))][1:]


def ntpguard(exit_codes: Iterable[tuple[int, str]]) -> str:
    """ntpguard(8)."""
    out = _head("ntpguard", 8, "rate limiter in front of a public NTP server, in XDP")
    out += [".SH SYNOPSIS", r"\fBntpguard\fR [\fIoptions\fR] \fIcommand\fR [\fIarguments\fR]"]
    out += [".SH DESCRIPTION", *_text(DESCRIPTION)]
    out += [".SH OPTIONS", "They stand before the command.", *_terms(options(main))]
    out += [".SH COMMANDS"]
    for one in commands():
        arguments = [rf"\fI{escaped(word)}\fR" for word in one.arguments]
        if one.options:
            arguments.insert(0, r"[\fIoptions\fR]")
        out += [".SS " + " ".join((escaped(" ".join(one.path)), *arguments))]
        out += [line for text in one.about for line in (".PP", escaped(text))][1:]
        out += _terms(one.options)
        out += [line for text in one.closing for line in (".PP", escaped(text))]
        if one.examples:
            out += [".PP", "Example:", *_code(one.examples)]
    codes = [(str(code), re.sub(r"`(\w+)`", r"B(\1)", text)) for code, text in exit_codes]
    out += [".SH EXIT STATUS", *_terms((code, f"{sentence(text)}.") for code, text in codes)]
    for title, items in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("SIGNALS", SIGNALS)):
        out += [f".SH {title}", *_terms(items)]
    out += [".SH EXAMPLES"]
    for text, lines in SIMPLE_EXAMPLES:
        out += [".PP", escaped(text), *_code(lines)]
    out += [
        ".SH SEE ALSO",
        r"\fBntpguard.toml\fR(5), \fBchrony.conf\fR(5), \fBip\-link\fR(8), \fBbpftool\fR(8)",
    ]
    return "\n".join(out) + "\n"


def policy(tables: Mapping[str, str], example: str, default: Callable[[Setting], str]) -> str:
    """ntpguard.toml(5)."""

    def rows(settings: Iterable[Setting]) -> list[str]:
        out = []
        for one in settings:
            value = default(one)
            shown = {"required": "Required.", "": ""}.get(value, f"Default: {value}.")
            meaning, wanted = sentence(one.meaning), sentence(one.kind.wanted)
            out += [
                ".TP",
                rf"\fB{escaped(one.name)}\fR",
                escaped(f"{meaning}. {wanted}. {shown}").rstrip(),
            ]
        return out

    out = _head("ntpguard.toml", 5, "the policy of ntpguard")
    out += [".SH SYNOPSIS", "/etc/ntpguard/ntpguard.toml"]
    out += [
        ".SH DESCRIPTION",
        *_text(
            "The file is TOML. What is not set has its default, and the defaults alone are a good policy "
            "for a server of the NTP pool. B(ntpguard policy check) names all that is wrong with a file, "
            "B(ntpguard policy show) writes out what runs.\n\n"
            "Applying is atomic and whole, and every source keeps its state; a file with a mistake "
            "changes nothing."
        ),
    ]
    for section, title in tables.items():
        out += [f".SH {f'[{section}]' if section else 'TOP LEVEL'}", escaped(f"{title}.")]
        out += rows(one for one in SETTINGS if one.section == section)
    out += [
        ".SH [[CLASS]]",
        escaped("Sources with a limit or an action of their own; the longest prefix decides."),
    ]
    out += rows(CLASS_SETTINGS)
    out += [".SH [[SIGNATURE]]", escaped("A shape of requests; what is not named is not compared.")]
    out += rows(SIGNATURE_SETTINGS)
    out += [".SH EXAMPLE", *_code(example.rstrip().splitlines())]
    out += [".SH SEE ALSO", r"\fBntpguard\fR(8)"]
    return "\n".join(out) + "\n"
