"""The model's state as the program has it in memory, and differences in memory as people read them."""

import ctypes
from array import array
from collections.abc import Iterator
from typing import Any

from ntpguard import abi
from ntpguard.words import Family, Group, Reason, Verdict
from tests.model.limits import Shared
from tests.model.model import Model

TAT = abi.GCRA_TAT_SHIFT
CELLS = abi.size(abi.Counters) // 8
STRUCTURES: dict[str, Any] = {
    "bounds": abi.Line * abi.BOUNDS,
    "local": abi.Local,
    "sources": abi.Bucket,
    "leak": ctypes.c_uint64,
    "counters": abi.Counters,
    "table_counters": abi.TableCounters,
    "signature_counters": abi.SignatureCounters,
    "offenders": abi.Offender,
    "trials": abi.Trial,
    "kod_counters": abi.KodCounters,
}
KEYED = ("offenders", "trials")
FIELDS = {
    "class": (abi.AUX_CLASS_SHIFT, abi.AUX_CLASS_BITS),
    "generation": (abi.AUX_GENERATION_SHIFT, abi.AUX_GENERATION_BITS),
    "excess": (abi.AUX_EXCESS_SHIFT, abi.AUX_EXCESS_BITS),
    "kod_time": (abi.AUX_KOD_TIME_SHIFT, abi.AUX_KOD_TIME_BITS),
    "after_kod": (abi.AUX_AFTER_KOD_SHIFT, abi.AUX_AFTER_KOD_BITS),
    "unheeded": (abi.AUX_UNHEEDED_SHIFT, abi.AUX_UNHEEDED_BITS),
    "established": (abi.AUX_ESTABLISHED_SHIFT, abi.AUX_ESTABLISHED_BITS),
    "steps": (abi.AUX_STEPS_SHIFT, abi.AUX_STEPS_BITS),
    "mark": (abi.AUX_MARK_SHIFT, abi.AUX_MARK_BITS),
    "free": (abi.AUX_MARK_SHIFT + abi.AUX_MARK_BITS, 5),
}


def words_of(model: Model) -> dict[str, bytes]:
    """The model's state as the program must have it in memory."""
    return {
        "sources": array("Q", model.sources.words()).tobytes(),
        "bounds": b"".join((b.tat << TAT).to_bytes(64, "little") for b in bounds(model)),
        "leak": array("Q", [one.tat << TAT for one in model.leak]).tobytes(),
        "local": b"".join(map(share_words, bounds(model)))
        + array(
            "Q",
            # the clock's and the chance's memory is not used while a test holds both
            [model.answers.tat << TAT, model.odd.tat << TAT, 0, 0, 0, model.noted_ns, model.noted],
        ).tobytes(),
        "table_counters": array(
            "Q",
            [
                *model.sources.inserted,
                *model.sources.replaced,
                model.sources.full,
                0,
                model.sources.gated,
            ],
        ).tobytes(),
        "signature_counters": array(
            "Q", [n for pair in zip(model.matched, model.blocked, strict=True) for n in pair]
        ).tobytes(),
        "counters": counter_words(model),
        "offenders": offender_words(model),
        "trials": trial_words(model),
        "kod_counters": array(
            "Q", [model.heeding[heeded, c] for heeded in (True, False) for c in (False, True)]
        ).tobytes(),
    }


def bounds(model: Model) -> tuple[Shared, Shared, Shared, Shared]:
    """In the order of enum ntpguard_bound."""
    return model.kod, model.newcomers, model.gate, model.ceiling


def share_words(one: Shared) -> bytes:
    """struct share."""
    return bytes(
        abi.Share(
            (ctypes.c_uint64 * 2)(*(r << TAT for r in one.refused)),
            (ctypes.c_uint32 * 2)(*one.tokens),
        )
    )


def counter_words(model: Model) -> bytes:
    """struct counters of every class."""
    cells = array("Q", bytes(8 * CELLS * abi.CLASSES))
    by_family, by_verdict = abi.VERDICTS * abi.REASON_ROOM, abi.REASON_ROOM
    for offset, counter in ((0, model.packets), (2 * by_family, model.observed)):
        for (index, family, verdict, reason), count in counter.items():
            at = index * CELLS + offset + family * by_family + verdict * by_verdict + reason
            cells[at] = count
    for (index, family, verdict), count in model.bytes.items():
        cells[index * CELLS + 4 * by_family + family * abi.VERDICTS + verdict] = count
    return cells.tobytes()


def offender_words(model: Model) -> bytes:
    """Key and struct offender of every offender, in the order of the keys' bytes."""
    words = {
        key.to_bytes(8, "little"): bytes(
            abi.Offender(
                one.first_seen_ns,
                one.last_seen_ns,
                (ctypes.c_uint32 * abi.VERDICTS)(*one.sampled),
                one.source_port,
                one.ttl,
                abi.HEADER_BYTES,
                (ctypes.c_uint8 * abi.HEADER_BYTES)(*one.header),
            )
        )
        for key, one in model.offenders.items()
    }
    return b"".join(key + words[key] for key in sorted(words))


def trial_words(model: Model) -> bytes:
    """Key and struct trial of every trial, in the order of the keys' bytes."""
    words = {
        key.to_bytes(8, "little"): bytes(
            abi.Trial(
                *(when for when, _ in (one.begin, one.kod, one.end)),
                *(requests for _, requests in (one.begin, one.kod, one.end)),
                one.source_port,
                Group.CONTROL if model.sources.hash(key) >> 44 & 15 == 0 else Group.KISSED,
                0,
                (ctypes.c_uint8 * abi.HEADER_BYTES)(*one.header),
            )
        )
        for key, one in model.trials.items()
    }
    return b"".join(key + words[key] for key in sorted(words))


# differences for people


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every number in a ctypes value by its path."""
    if isinstance(value, ctypes.Array):
        for index, one in enumerate(value):
            yield from flat(one, f"{name}[{index}]")
    elif isinstance(value, ctypes.Structure):
        for one, *_ in value._fields_:
            yield from flat(getattr(value, one), f"{name}.{one}")
    elif ".aux" in name:
        for one, (shift, bits) in FIELDS.items():
            yield f"{name}.{one}", abi.field(value, shift, bits)
    else:
        yield name, value


def decoded(name: str, raw: bytes) -> dict[str, Any]:
    """A map's memory as numbers by their paths."""
    kind = STRUCTURES[name]
    found: dict[str, Any] = {}
    key_size = 8 if name in KEYED else 0
    step = key_size + ctypes.sizeof(kind)
    for index, at in enumerate(range(0, len(raw), step)):
        label = raw[at : at + key_size][::-1].hex() or str(index)
        value = kind.from_buffer_copy(raw, at + key_size)
        found |= dict(flat(getattr(value, "value", value), f"{name}[{label}]"))
    return found


def named(path: str) -> str:
    """A counter's path in words."""
    parts = path.replace("]", "").split("[")
    if not path.startswith("counters") or len(parts) < 4:
        return path
    words = [parts[1], Family(int(parts[2])).word, Verdict(int(parts[3])).word]
    words += [Reason(int(parts[4])).word] if len(parts) > 4 and int(parts[4]) < len(Reason) else []
    return f"class {' '.join(words)}"


def differences(model: dict[str, bytes], program: dict[str, bytes]) -> list[str]:
    """One line for each number that differs."""
    lines = []
    for name, expected in model.items():
        if program[name] != expected:
            ours, theirs = decoded(name, expected), decoded(name, program[name])
            for path in sorted(ours.keys() | theirs.keys()):
                if ours.get(path) != theirs.get(path):
                    lines.append(
                        f"{path} ({named(path)}): model {ours.get(path)}, program {theirs.get(path)}"
                    )
    return lines
