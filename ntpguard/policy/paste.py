"""What to write into a policy file so that it says what runs."""

import tomllib
from collections.abc import Sequence
from typing import Any

from ntpguard.policy.kinds import quote
from ntpguard.policy.lines import lines_of
from ntpguard.policy.model import ClassPolicy, Policy, SignaturePolicy
from ntpguard.policy.render import signature_lines, values_of
from ntpguard.policy.settings import CLASS_SETTINGS, SETTINGS

# what a class that does not state it has from [limit] and [kod]
INHERITED = ("rate", "burst", "leak", "kod")


def paste(running: Policy, file: Policy, text: str) -> str:
    """TOML for the file whose `text` makes the policy `file`: the settings and whole tables that it
    must state otherwise. Comments tell where they go, and what goes. "" if nothing differs.
    """
    top = tomllib.loads(text)
    where = lines_of(text)

    def line(*key: str | int) -> str:
        return f", line {where[key]}" if key in where else ""

    blocks = _sections(running, file, line)
    raw = {one["name"]: one for one in top.get("class", [])}
    blocks += _removed("class", file.classes[1:], running.classes[1:], line)
    for one in running.classes[1:]:
        if not _says(file.class_named(one.name), raw.get(one.name, {}), running.classes[0], one):
            lines = _class_lines(one, running.classes[0], file.class_named(one.name), raw)
            blocks.append(_table("class", one.name, lines, file.classes, line))
    blocks += _removed("signature", file.signatures, running.signatures, line)
    known = {shape.name: shape for shape in file.signatures}
    for shape in running.signatures:
        if known.get(shape.name) != shape:
            lines = signature_lines(shape)
            blocks.append(_table("signature", shape.name, lines, file.signatures, line))
    blocks += _order("class", file.classes[1:], running.classes[1:])
    blocks += _order("signature", file.signatures, running.signatures)
    return "\n\n".join("\n".join(block) for block in blocks) + "\n" * bool(blocks)


def _sections(running: Policy, file: Policy, line: Any) -> list[list[str]]:
    old, new = values_of(file), values_of(running)
    blocks: dict[str, list[str]] = {}
    for row in SETTINGS:
        if old[row.key] != new[row.key]:
            there = line(row.section)
            head = [f"# in [{row.section}]{there}" if there else "# new", f"[{row.section}]"]
            block = blocks.setdefault(
                row.section, head if row.section else ["# before the first [section]"]
            )
            block.append(f"{row.name} = {row.kind.write(new[row.key])}")
    return list(blocks.values())


def _says(
    file: ClassPolicy | None, raw: dict[str, Any], default: ClassPolicy, running: ClassPolicy
) -> bool:
    """Whether the file's class is what runs, once the file's default class is."""
    return file is not None and all(
        getattr(default if name in INHERITED and name not in raw else file, name)
        == getattr(running, name)
        for name in (*INHERITED, "prefixes", "action", "control", "mode", "kept")
    )


def _class_lines(
    one: ClassPolicy, default: ClassPolicy, file: ClassPolicy | None, raw: dict[str, Any]
) -> list[str]:
    lines = [f"name = {quote(one.name)}"]
    for row in CLASS_SETTINGS[1:]:
        if row.name == "prefixes_file" or (row.name == "prefixes" and _same(one, file)):
            if _same(one, file) and row.name in raw[one.name]:
                lines.append(f"{row.name} = {row.kind.write(raw[one.name][row.name])}")
        elif row.name == "prefixes" or getattr(one, row.name) != (
            getattr(default, row.name) if row.name in INHERITED else row.default
        ):
            lines.append(f"{row.name} = {row.kind.write(getattr(one, row.name))}")
    return lines


def _same(one: ClassPolicy, file: ClassPolicy | None) -> bool:
    return file is not None and (one.prefixes, one.kept) == (file.prefixes, file.kept)


Named = Sequence[ClassPolicy] | Sequence[SignaturePolicy]


def _place(kind: str, name: str, file: Named, line: Any) -> str:
    """Where the file has a table; "" if it has not."""
    names = [one.name for one in file if one.name != "default" or kind == "signature"]
    return f"{name}{line(kind, names.index(name))}" if name in names else ""


def _table(kind: str, name: str, lines: list[str], file: Named, line: Any) -> list[str]:
    place = _place(kind, name, file, line)
    return [f"# instead of {kind} {place}" if place else "# new", f"[[{kind}]]", *lines]


def _removed(kind: str, file: Named, running: Named, line: Any) -> list[list[str]]:
    there = {one.name for one in running}
    return [
        [f"# remove {kind} {_place(kind, one.name, file, line)}"]
        for one in file
        if one.name not in there
    ]


def _order(kind: str, file: Named, running: Named) -> list[list[str]]:
    names = [one.name for one in running]
    stay = [one.name for one in file if one.name in names]
    stay += [name for name in names if name not in stay]
    return [[f"# the order of [[{kind}]]: {', '.join(names)}"]] if stay != names else []
