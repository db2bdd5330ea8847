"""completion: what a shell needs to complete commands, interfaces and classes."""

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class
from click.types import StringParamType

from ntpguard import reading
from ntpguard.errors import NtpguardError
from ntpguard.kernel import bpffs, interfaces

VARIABLE = "_NTPGUARD_COMPLETE"  # as click derives it from the command's name


def _every_interface(_: click.Context) -> list[str]:
    return [one.name for one in interfaces.interfaces() if one.guardable]


def _guarded_interfaces(context: click.Context) -> list[str]:
    with reading.open_running(_bpffs(context)) as guard:
        return [one.name for one in guard.interfaces()]


def _classes(context: click.Context) -> list[str]:
    with reading.open_running(_bpffs(context)) as guard:
        return [one.name for one in guard.policy().classes]


def _bpffs(context: click.Context) -> Path:
    return bpffs.directory(context.find_root().params.get("bpffs_option"))


class Name(StringParamType):
    """A text that the shell can complete with what there is now."""

    def __init__(self, names: Callable[[click.Context], list[str]]) -> None:
        self._names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; none where the guard cannot be read: a shell shows no errors."""
        try:
            names = self._names(ctx)
        except (NtpguardError, OSError):
            return []
        given = ctx.params.get(param.name or "") or () if param.nargs == -1 else ()
        return [
            CompletionItem(name)
            for name in names
            if name.startswith(incomplete) and name not in given
        ]


# (command, parameter, what completes it)
COMPLETED = (
    ("up", "interfaces", _every_interface),
    ("down", "interfaces", _guarded_interfaces),
    ("doctor", "interfaces", _every_interface),
    ("limit set", "name", _classes),
    ("limit unset", "name", _classes),
)


def complete_names(group: click.Group) -> None:
    """Gives the parameters named in COMPLETED their completion."""
    for path, parameter, names in COMPLETED:
        command: click.Command = group
        for word in path.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]
        (own,) = (one for one in command.params if one.name == parameter)
        own.type = Name(names)


@click.command(
    epilog="Example: ntpguard completion bash\n\n"
    "bash: ntpguard completion bash >/etc/bash_completion.d/ntpguard\n\n"
    "zsh: echo 'source <(ntpguard completion zsh)' >>~/.zshrc\n\n"
    "fish: ntpguard completion fish >/etc/fish/completions/ntpguard.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete commands, interfaces and classes.

    The Debian package has put them in place already.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    one = kind(context.find_root().command, {}, "ntpguard", VARIABLE)
    # not source(): that wants a bash on this host
    text = one.source_template % one.source_vars()
    context.obj.emit({"shell": shell, "script": text}, text.strip("\n").split("\n"))
