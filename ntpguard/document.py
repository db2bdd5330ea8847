"""The running policy's document: its text, files and live changes; what policy they make.

The document is kept in the kernel beside the compiled policy. Knows no file descriptor.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ntpguard import abi
from ntpguard.errors import NtpguardError, PolicyError
from ntpguard.moments import rfc3339
from ntpguard.policy.check import parse_policy, read_policy, unchanged
from ntpguard.policy.kinds import Network
from ntpguard.policy.model import Kept, Policy, packed
from ntpguard.policy.prefixes import light
from ntpguard.policy.render import to_toml
from ntpguard.policy.settings import SOURCE_RATE
from ntpguard.temporary import Document


def new_document(policy: Policy, file: str | None) -> Document:
    """What is kept of a policy beside its compiled form: its text, its files, live changes.

    Prefixes that are too many for the text are in the tries alone: "kept" describes them by class.
    """
    shortened = light(policy)
    return {
        "schema": 1,
        "file": file,
        "files": dict(policy.files),
        "text": to_toml(shortened),
        "kept": {
            one.name: {
                "count": one.kept.count,
                "sha256": one.kept.sha256,
                # of these, the tries do not tell whether the class states them too
                "upstreams": _stated(policy.upstreams, set(whole.packed)),
            }
            for one, whole in zip(shortened.classes, policy.classes, strict=True)
            if one.kept
        },
        "applied": rfc3339(datetime.now(UTC)),
        "mode": None,
        "overrides": {},
        "temporary": {},
    }


def _stated(prefixes: Iterable[Network], among: set[bytes]) -> list[str]:
    return [str(one) for one in prefixes if packed(one) in among]


def effective_policy(document: Document) -> Policy:
    """The policy that runs: the text with the live changes, of mode and of limits by class.

    Prefixes that are not in the text are in `kept`: tries.whole_policy has them.
    """
    policy = parse_policy(document["text"], "running policy")
    kept = document.get("kept", {})
    classes = [
        replace(one, kept=Kept(kept[one.name]["count"], kept[one.name]["sha256"]))
        if one.name in kept
        else one
        for one in policy.classes
    ]
    return with_live(replace(policy, classes=tuple(classes)), document)


def with_live(policy: Policy, document: Document) -> Policy:
    """The policy with the document's live changes."""
    classes = []
    for one in policy.classes:
        own = dict(document["overrides"].get(one.name, {}))
        if "rate" in own:
            own["rate"] = SOURCE_RATE.read(own["rate"])
        classes.append(replace(one, **own) if own else one)
    mode = document["mode"] or policy.mode
    return replace(policy, classes=tuple(classes), mode=mode)


def differs_from_file(document: Document) -> bool | None:
    """Whether what runs is not what the policy's file says; None: there is no file. A file whose
    bytes are those applied is not parsed again.
    """
    live = bool(document["overrides"] or document["mode"])
    if not document["file"]:
        return live or None
    if unchanged(document.get("files", {})):
        untouched = {**document, "overrides": {}, "mode": None}
        return live and effective_policy(untouched) != effective_policy(document)
    try:
        return light(read_policy(Path(document["file"]))) != effective_policy(document)
    except PolicyError:
        return True


def policy_hash(document: Document) -> str:
    """Twelve hexadecimal digits of the applied policy, prefixes included."""
    kept = "".join(one["sha256"] for one in document.get("kept", {}).values())
    return hashlib.sha256((document["text"] + kept).encode()).hexdigest()[:12]


def document_bytes(document: Document, before: Document) -> bytes:
    """The document as struct document. Notes on live entries, which outlive a policy, are those of
    `before` unless it has its own; of too many, the oldest are left out.
    """
    notes: Document = dict(document.get("notes") or before.get("notes") or {})
    while True:
        data = {**document, "notes": notes}
        # a file's name may be no UTF-8
        text = json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(text) <= abi.DOCUMENT_BYTES:
            return bytes(abi.Document(len(text), text))
        if not notes:
            raise NtpguardError(
                f"the policy's text: {len(text)} bytes, at most {abi.DOCUMENT_BYTES} fit: "
                "use shorter prefixes that cover several, in upstreams and destinations"
            )
        for prefix in list(notes)[: 1 + len(notes) // 16]:
            del notes[prefix]
