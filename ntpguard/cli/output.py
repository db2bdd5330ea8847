"""What commands print: data on stdout as a table or JSON, messages on stderr."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ntpguard.errors import NtpguardError
from ntpguard.moments import Moment, rfc3339

SCHEMA = 1
STDOUT_ERRORS = (errno.ENOSPC, errno.EPIPE, errno.EIO)
COLORS = {
    **dict.fromkeys(("ok", "pass", "enforce"), "green"),
    **dict.fromkeys(("kod", "observe", "warn", "unknown"), "yellow"),
    **dict.fromkeys(("problem", "degraded", "drop", "off", "fail"), "red"),
}


def wants_color(choice: str) -> bool:
    """Whether stdout is to be coloured; a choice made on the command line goes before NO_COLOR."""
    if choice != "auto":
        return choice == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def watching_stdout() -> Iterator[None]:
    """Makes an error of stdout an NtpguardError: of one line if it is full, of none if whoever
    reads it has seen enough, as head has. What it cannot show, like a file's name that is no UTF-8,
    it escapes, as JSON does.
    """
    if sys.stdout is None:
        raise NtpguardError("stdout: closed: if nothing is to be shown, try >/dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except OSError as error:
        # a path's errors have its name; the kernel's come as NtpguardError
        if error.errno not in STDOUT_ERRORS or error.filename is not None:
            raise
        # Python would try to write the rest, and complain, at its end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        seen = isinstance(error, BrokenPipeError)
        raise NtpguardError(
            "" if seen else f"stdout: {error.strerror}: not all was shown"
        ) from None


@dataclass(frozen=True)
class Context:
    """The global options."""

    output: str
    quiet: bool
    verbose: bool
    bpffs: Path
    color: bool = False

    def paint(self, word: str) -> str:
        """A word that says how things stand (a mode, a verdict), in its colour if there is any."""
        return click.style(word, fg=COLORS[word]) if self.color else word

    def message(self, text: str) -> None:
        """To people, on stderr; not with -q."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Something to look at, on stderr."""
        click.echo(f"ntpguard: warning: {text}", err=True)

    def emit(self, data: Any, table: Iterable[str]) -> None:
        """`data` in the machine formats, the lines of `table` for people."""
        if self.output == "table":
            for line in table:
                click.echo(line, color=self.color)
        elif self.output == "ndjson":
            for one in data if isinstance(data, list) else [data]:
                click.echo(json.dumps(envelope(one), ensure_ascii=False))
        else:
            click.echo(json.dumps(envelope(data), ensure_ascii=False, indent=2))


def envelope(data: Any) -> dict[str, Any]:
    """The object that all JSON comes in."""
    return {"schema": SCHEMA, "time": rfc3339(datetime.now(UTC)), "data": data}


def when(moment: Moment | None) -> str | None:
    """A moment for JSON."""
    return moment.rfc3339() if moment else None


def columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    """A table: text to the left, numbers to the right, nothing cut."""
    body = [list(row) for row in rows]
    right = [
        bool(body) and all(isinstance(row[i], int | float) for row in body)
        for i in range(len(header))
    ]
    cells = [list(header)] + [[str(cell) for cell in row] for row in body]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        aligned = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        yield "  ".join(aligned).rstrip()
