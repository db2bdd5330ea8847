"""Live changes of the running policy's document, some of them for a time only.

The document says what holds now; of what is temporary it remembers until when, and what then holds:

    "mode": "enforce", "overrides": {"campus": {"rate": "30/minute"}},
    "temporary": {"mode": {"until": {...}, "then": null}, "limit campus": {"until": {...}, ...}}
"""

from typing import Any

from ntpguard.moments import Moment

Document = dict[str, Any]
MODE = "mode"


def limit_of(name: str) -> str:
    """What a class's limit is called among live changes."""
    return f"limit {name}"


def settled(document: Document, *, everything: bool = False) -> Document:
    """The document in which what is over has given way to what then holds; with `everything`, each
    temporary change has.
    """
    result = {**document, "overrides": dict(document["overrides"]), "temporary": {}}
    for what, one in document.get("temporary", {}).items():
        if everything or Moment.read(one["until"]).is_over():
            _put(result, what, one["then"])
        else:
            result["temporary"][what] = one
    return result


def change(document: Document, what: str, value: Any, until: Moment | None) -> None:
    """Makes a live change, of the mode or of a class's limit, until a moment or for good. It takes
    the place of a temporary one; None is what the policy's text says.
    """
    if until:
        then = lasting(document, what)
        document["temporary"][what] = {"until": until.data(), "then": then}
    else:
        document["temporary"].pop(what, None)
    _put(document, what, value)


def lasting(document: Document, what: str) -> Any:
    """The live change that holds when a temporary one, if there is any, is over."""
    one = document["temporary"].get(what)
    if one:
        return one["then"]
    return document["mode"] if what == MODE else document["overrides"].get(_class(what))


def until(document: Document, what: str) -> Moment | None:
    """When a temporary change is over; None: what holds, holds for good."""
    one = document["temporary"].get(what)
    return Moment.read(one["until"]) if one else None


def _put(document: Document, what: str, value: Any) -> None:
    if what == MODE:
        document["mode"] = value
    elif value is None:
        document["overrides"].pop(_class(what), None)
    else:
        document["overrides"][_class(what)] = value


def _class(what: str) -> str:
    return what.removeprefix("limit ")
