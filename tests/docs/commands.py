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


def options(command: click.Command) -> tuple[tuple[str, str], ...]:
    """Every option but --help, as click describes it."""
    context = click.Context(command, help_option_names=[])
    records = [one.get_help_record(context) for one in command.get_params(context)]
    return tuple((name, text.strip()) for name, text in filter(None, records))


def _one(path: tuple[str, ...], command: click.Command) -> Command:
    closing = paragraphs(command.epilog)
    examples = [one for one in closing if one.startswith("Example: ")]
    return Command(
        path,
        tuple(one.make_metavar() for one in command.params if isinstance(one, click.Argument)),
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
