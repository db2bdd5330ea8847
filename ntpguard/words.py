"""The words of ntpguard, each defined once: mirror of the enums in bpf/ntpguard.h."""

from enum import IntEnum
from typing import Self


class Word(IntEnum):
    """An enumerator whose lower-case name is the word that people read and type."""

    @property
    def word(self) -> str:
        """The word in code, command line, metrics and documentation."""
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> Self:
        """The enumerator that `word` names. Raises ValueError for any other text."""
        for member in cls:
            if member.word == word:
                return member
        raise ValueError(f"{word!r} is none of {', '.join(member.word for member in cls)}")


class Family(Word):
    """Address family of a packet."""

    IPV4 = 0
    IPV6 = 1


class Mode(Word):
    """enforce; observe: count what would happen, pass the packet; off."""

    OFF = 0
    OBSERVE = 1
    ENFORCE = 2


class Action(Word):
    """What a class does with its sources."""

    LIMIT = 0
    EXEMPT = 1
    BLOCK = 2


class Verdict(Word):
    """What happens to a packet."""

    PASS = 0
    KOD = 1
    DROP = 2


class Group(Word):
    """Sources in the trial of KoDs: kissed, or never kissed."""

    KISSED = 0
    CONTROL = 1


class Reason(Word):
    """Why a verdict was given; bpf/ntpguard.h says what each means."""

    CONFORM = 0
    EXEMPT = 1
    LEAK = 2
    LIMIT = 3
    UNTRACKED = 4
    BLOCK = 5
    ANSWER = 6
    CONTROL = 7
    MALFORMED = 8
    ODD = 9
    OFF = 10
    OBSERVED = 11
    ENTRY = 12
    SIGNATURE = 13
    CEILING = 14
