"""The command line: parse, call, render. No logic lives here."""

from ntpguard.cli.group import main

__all__ = ["main"]
