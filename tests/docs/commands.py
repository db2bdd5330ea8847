"""The commands as data: what the reference and the manual page are written from."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import click

from ntpguard.cli import main


@dataclass(frozen=True)
class Command:
    """One that does something; `about` and `closing` are paragraphs, `options` (option, help)."""

    path: tuple[str, ...]
    arguments: tuple[str, ...]
    about: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    closing: tuple[str, ...]

    @property
    def name(self) -> str:
        """As typed: "ntpguard limit set"."""
        return " ".join(("ntpguard", *self.path))


def paragraphs(text: str | None) -> tuple[str, ...]:
    """Of a docstring or an epilog, each in one line."""
    return tuple(" ".join(one.split()) for one in inspect.cleandoc(text or "").split("\n\n") if one)


def _metavar(one: click.Parameter) -> str:
    """What stands for a value. Not click's own words: they change from version to version."""
    if one.metavar:
        return one.metavar
    if isinstance(one.type, click.Choice):
        left, right = "[]" if isinstance(one, click.Option) else "{}"
        return left + "|".join(one.type.choices) + right
    if isinstance(one, click.Argument):
        return (one.name or "").upper() if one.required else f"[{(one.name or '').upper()}]"
    kinds = {"integer range": "N", "float range": "N"}
    return kinds.get(one.type.name, one.type.name.upper())


def _range(kind: click.ParamType) -> str:
    if not isinstance(kind, (click.IntRange, click.FloatRange)):
        return ""
    return f"{kind.min} to {kind.max}" if kind.max is not None else f"at least {kind.min}"


def _option(one: click.Option) -> tuple[str, str]:
    names = ", ".join(sorted(one.opts, key=len))
    notes = (
        f"default: {one.default}" if one.show_default else "",
        _range(one.type),
        "required" if one.required else "",
    )
    shown = "; ".join(filter(None, notes))
    text = " ".join((one.help or "").split())
    return (
        names if one.is_flag else f"{names} {_metavar(one)}",
        f"{text} [{shown}]" if shown else text,
    )


def options(command: click.Command) -> tuple[tuple[str, str], ...]:
    """Every option but --help: how it is written, and what it does."""
    return tuple(_option(one) for one in command.params if isinstance(one, click.Option))


def _one(path: tuple[str, ...], command: click.Command) -> Command:
    closing = paragraphs(command.epilog)
    examples = [one for one in closing if one.startswith("Example: ")]
    return Command(
        path,
        tuple(_metavar(one) for one in command.params if isinstance(one, click.Argument)),
        paragraphs(command.help),
        options(command),
        tuple(one.removeprefix("Example: ") for one in examples),
        tuple(one for one in closing if one not in examples),
    )


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """All of them, in the order of the alphabet."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield _one((*path, name), command)
