"""migrate."""

from pathlib import Path

import click

from ntpguard.cli.output import Context
from ntpguard.errors import NtpguardError
from ntpguard.migrate import KINDS, migrated
from ntpguard.state import bytes_of, rest_of


@click.command(
    epilog="Example: ntpguard migrate /etc/chrony/chrony.conf\n\n"
    "Example: ntpguard migrate --from ntpd /etc/ntp.conf"
)
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
)
@click.option(
    "--from",
    "kind",
    type=click.Choice(list(KINDS)),
    help="Whose configuration it is.  [default: what its directives tell]",
)
@click.pass_obj
def migrate(context: Context, files: tuple[Path, ...], kind: str | None) -> None:
    """The policy that chrony.conf or ntp.conf comes to, as a policy file.

    Each setting has the line that it comes from, and each line that concerns clients and could not
    be carried over has a comment. The mode is observe. The daemon's own file is left as it is; its
    limits may stay, or be taken out once ntpguard enforces. FILE may be a pipe, or - for standard
    input.
    """
    draft = migrated([(str(file), _text(file)) for file in files], kind)
    text = draft.toml()
    notes = [
        {
            "file": one.line.file,
            "line": one.line.number,
            "directive": one.line.directive,
            "why": one.why,
        }
        for one in draft.notes
    ]
    context.emit({"policy": text, "notes": notes}, text.rstrip("\n").split("\n"))
    if notes:
        context.message(
            f"{len(notes)} notes on what could not be carried over: see the comments at the end"
        )


def _text(file: Path) -> str:
    try:
        stdin = str(file) == "-"
        raw = rest_of(click.get_binary_stream("stdin")) if stdin else bytes_of(file)
    except OSError as error:
        raise NtpguardError(f"{file}: cannot be read: {error.strerror}") from None
    if b"\0" in raw:
        raise NtpguardError(f"{file}: not UTF-8 text: if it is UTF-16: iconv -f UTF-16 -t UTF-8")
    return raw.decode("utf-8-sig", "replace")
