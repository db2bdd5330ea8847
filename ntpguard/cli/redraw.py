"""A table that is drawn again and again: in place on a terminal, one below the other elsewhere."""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import click

HOME_AND_CLEAR = "\x1b[H\x1b[2J"
Draw = Callable[[Sequence[str]], None]


class Ended(Exception):
    """SIGTERM: the terminal is to be restored as after Ctrl-C."""


@contextmanager
def until_stopped() -> Iterator[None]:
    """What is done until Ctrl-C or SIGTERM: the end that it has."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        with suppress(KeyboardInterrupt, Ended):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def screen() -> Iterator[Draw]:
    """Draws lines, cut to the terminal; what was on it is there again afterwards, if rich is
    installed, and the cursor always.
    """
    if not sys.stdout.isatty():
        yield _below
        return
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        yield _over
        return
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def draw(lines: Sequence[str]) -> None:
            text = Text("\n".join(lines), no_wrap=True, overflow="crop")
            live.update(text, refresh=True)

        yield draw


def _below(lines: Sequence[str]) -> None:
    click.echo("\n".join(lines) + "\n")


def _over(lines: Sequence[str]) -> None:
    width, height = shutil.get_terminal_size()
    # one line is left for what is typed: the screen must not scroll
    shown = [line[:width] for line in lines[: max(1, height - 1)]]
    click.echo(HOME_AND_CLEAR + "\n".join(shown))
