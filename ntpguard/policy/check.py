"""Reading and checking a policy file: all errors in one run, each with its line and its remedy."""

import hashlib
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from ntpguard.abi import DOCUMENT_BYTES
from ntpguard.errors import PolicyError, UsageError
from ntpguard.policy.complaints import Checker, text_and_digest
from ntpguard.policy.kinds import Network
from ntpguard.policy.lines import Path as Key
from ntpguard.policy.model import DEFAULT_CLASS, ClassPolicy, Policy
from ntpguard.policy.prefixes import FEW, WIDEST
from ntpguard.policy.render import to_toml
from ntpguard.policy.settings import SETTINGS
from ntpguard.policy.tables import check_burst, check_limit, read_classes, read_signatures
from ntpguard.state import bytes_of

__all__ = ["DEFAULT", "check_limit", "parse_policy", "read_policy", "read_text", "unchanged"]

SECTIONS = list(dict.fromkeys(row.section for row in SETTINGS if row.section))
# of what the kernel keeps as the running policy's text; the rest is for live changes
TEXT_BYTES = DOCUMENT_BYTES - 16384


def parse_policy(text: str, name: str = "policy", base: Path | None = None) -> Policy:
    """The policy that `text` states. `name` stands in messages; `base` is where prefixes_file is
    relative to. Raises PolicyError with every complaint.
    """
    return _parse(Checker(text, name, base or Path()), text, name)


def read_policy(path: Path) -> Policy:
    """The policy in the file at `path`. Raises PolicyError, UsageError if it names no file."""
    text, sha256 = _read(path)
    checker = Checker(text, str(path), path.parent)
    checker.files.append((str(path.absolute()), sha256))
    return _parse(checker, text, str(path))


def read_text(path: Path) -> str:
    """The text of a policy file. Raises as read_policy does."""
    return _read(path)[0]


def unchanged(files: dict[str, str]) -> bool:
    """Whether a policy's files (Policy.files) are there, and their bytes still the same."""
    try:
        return bool(files) and all(
            hashlib.sha256(bytes_of(Path(name))).hexdigest() == sha256
            for name, sha256 in files.items()
        )
    except OSError:
        return False


def _read(path: Path) -> tuple[str, str]:
    if path == Path():
        raise UsageError("no policy file named (got ''): name one, like ntpguard.toml")
    try:
        return text_and_digest(path)
    except OSError as error:
        raise PolicyError([f"{path}: cannot read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise PolicyError([f"{path}: not UTF-8 text"]) from None


def _parse(checker: Checker, text: str, name: str) -> Policy:
    top = _tables(text, name)
    of_file = [row.name for row in SETTINGS if not row.section]
    checker.unknown(top, (), [*of_file, *SECTIONS, "class", "signature"])
    values: dict[str, Any] = {}
    for section in ["", *SECTIONS]:
        place = (section,) if section else ()
        table = checker.table(place, top.get(section, {})) if section else top
        rows = [row for row in SETTINGS if row.section == section]
        if section:
            checker.unknown(table, place, [row.name for row in rows])
        for row in rows:
            values[row.key] = checker.value(place, row, table)

    default = ClassPolicy(
        name=DEFAULT_CLASS,
        rate=values["limit.rate"],
        burst=values["limit.burst"],
        leak=values["limit.leak"],
        kod=values["kod.enabled"],
    )
    check_burst(checker, ("limit", "burst"), default)
    for index, prefix in enumerate(values["upstreams"]):
        if prefix.prefixlen < WIDEST[prefix.version]:
            checker.warn(
                ("upstreams", index),
                f"{prefix} is much of the internet: whoever floods this host with answers (modes "
                "2, 4, 5) from there passes: name your servers only",
            )
    bits = {4: values["sources.ipv4_prefix"], 6: values["sources.ipv6_prefix"]}
    classes = read_classes(checker, top.get("class", []), default, bits)
    _check_upstreams(checker, values["upstreams"], classes)
    signatures = read_signatures(checker, top.get("signature", []))
    policy = Policy(
        mode=values["mode"],
        ports=values["ports"],
        destinations=values["destinations"],
        upstreams=values["upstreams"],
        interfaces=values["interfaces"],
        xdp=values["xdp"],
        on_exit=values["on_exit"],
        capacity=values["sources.capacity"],
        ipv4_prefix=values["sources.ipv4_prefix"],
        ipv6_prefix=values["sources.ipv6_prefix"],
        leak_max=values["limit.leak_max"],
        kod_interval=values["kod.interval"],
        kod_patience=values["kod.patience"],
        kod_flood=values["kod.flood"],
        kod_max_rate=values["kod.max_rate"],
        newcomers_rate=values["newcomers.rate"],
        established_after=values["newcomers.established_after"],
        ceiling_rate=values["ceiling.rate"],
        answers_rate=values["answers.rate"],
        odd_rate=values["odd.rate"],
        classes=(default, *classes),
        signatures=tuple(signatures),
        warnings=tuple(checker.warnings),
        files=tuple(checker.files),
    )
    _check_size(checker, policy)
    if checker.errors:
        raise PolicyError(checker.errors)
    return policy


def _tables(text: str, name: str) -> dict[str, Any]:
    """The TOML in `text`. Raises PolicyError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        what = re.sub(r" \(at .*\)", "", str(error))
        what = what.replace("Cannot overwrite a value", "this key has a value already")
        number = line[1] if line else text.rstrip("\n").count("\n") + 1
        raise PolicyError([f"{name}:{number}: not TOML: {what}"]) from None
    except RecursionError:
        raise PolicyError([f"{name}:1: not TOML: brackets too deep in one another"]) from None
    except ValueError:  # Python refuses to read it
        raise PolicyError([f"{name}:1: not TOML: a number has too many digits"]) from None


def _check_upstreams(
    checker: Checker, upstreams: tuple[Network, ...], classes: list[ClassPolicy]
) -> None:
    """Warns of each upstream whose answers a class drops: the longest prefix around it decides."""
    if not upstreams or not any(one.action == "block" for one in classes):
        return
    owners = {prefix: one for one in classes for prefix in one.prefixes}
    for index, upstream in enumerate(upstreams):
        lengths = range(upstream.prefixlen, -1, -1)
        around = (owners.get(upstream.supernet(new_prefix=length)) for length in lengths)
        own = next((one for one in around if one), None)
        if own and (own.action, own.mode) == ("block", "enforce"):
            checker.warn(
                ("upstreams", index),
                f'{upstream} is in class "{own.name}", which blocks: its answers are dropped too: '
                "name it in a class that does not block",
            )


def _check_size(checker: Checker, policy: Policy) -> None:
    """The running policy's text is kept in the kernel, many prefixes of classes left out."""
    if checker.errors:
        return
    if sum(len(one.prefixes) for one in policy.classes) > FEW:
        policy = replace(policy, classes=tuple(replace(c, prefixes=()) for c in policy.classes))
    size = len(json.dumps(to_toml(policy), ensure_ascii=False).encode())
    if size <= TEXT_BYTES:
        return
    lists: dict[int, Key] = {
        len(policy.upstreams): ("upstreams",),
        len(policy.destinations): ("destinations",),
        len(policy.interfaces): ("interfaces",),
    }
    longest = max(lists)
    checker.complain(
        lists[longest],
        f"{longest} items make the policy's text too long: {size} bytes, at most {TEXT_BYTES} are "
        "kept in the kernel: use shorter prefixes that cover several",
    )


DEFAULT = parse_policy("", "built-in policy")
