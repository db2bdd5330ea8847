"""Runs every attack and writes the tables: python -m tests.attack.run [PART ...] (minutes; root).

RESULT.json keeps every number; docs/explanation/attacks.md gets them as tables between its markers.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.attack import prefixes, scenes, shape, victim
from tests.attack.peers import peers
from tests.attack.victim import SPOOFED_PER_SECOND, Forger
from tests.pages import filled, table

RESULT = Path(__file__).with_name("RESULT.json")
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "attacks.md"
POLLS, STARTS = 1280, 1280
SHARD_PER_SECOND = 62.5  # of the prototypes; leak_max / 256
VARIANTS = {
    "the leak alone": shape.Variant(),
    "other than the excess packet before (kept)": shape.Variant(shape.Preference.MINORITY, 4, 0, 1),
    "other than the majority, 1-bit counter": shape.Variant(shape.Preference.MINORITY, 4, 1, 1),
    "the same, out of the leak": shape.Variant(shape.Preference.MINORITY, 4, 1, 1, 0.5, True),
    "as remembered from polite times, 8 bits": shape.Variant(shape.Preference.REMEMBERED, 8, 2, 1),
}


def spoofed() -> dict[str, Any]:
    """What the spoofed victim gets: by who limits, by spoofed packets a second."""
    found: dict[str, Any] = {}
    for forger in Forger:
        found[f"ntpguard; forger {forger}"] = {
            str(rate): asdict(victim.by_program(forger, rate, POLLS if rate < 1000 else 96))
            for rate in SPOOFED_PER_SECOND
        }
    for name in peers():
        found[name] = {
            str(rate): asdict(victim.by_peer(peers()[name], rate, POLLS if rate < 1000 else 96))
            for rate in SPOOFED_PER_SECOND
        }
    return found


def iburst() -> dict[str, Any]:
    """The same of a victim that only ever starts, eight requests 2 s apart."""
    rates = [rate for rate in SPOOFED_PER_SECOND if rate <= 20]
    found: dict[str, Any] = {
        "ntpguard": {
            str(rate): asdict(victim.by_program(Forger.KNOWING, rate, STARTS, iburst=True))
            for rate in rates
        }
    }
    for name in peers():
        found[name] = {
            str(rate): asdict(victim.by_peer(peers()[name], rate, STARTS, iburst=True))
            for rate in rates
        }
    return found


def shapes() -> dict[str, Any]:
    """The prototypes of a preference inside the excess, at 200 spoofed packets a second."""
    return {
        name: {
            forger: round(
                100
                * shape.share_answered(
                    variant, forger, 200, shard_rate=SHARD_PER_SECOND, polls=960, worlds=64
                ),
                1,
            )
            for forger in shape.Forger
        }
        | {
            f"abuser, {label}": round(
                100 * shape.abuser_share(variant, count, 100, SHARD_PER_SECOND), 1
            )
            for label, count in (("one shape", 1), ("two in turn", 2), ("random", 0))
        }
        for name, variant in VARIANTS.items()
    }


def wider() -> dict[str, Any]:
    """The prototypes of wider prefixes."""
    return {
        name: {
            "hopper passes": round(prefixes.hopper_passes(multiples, 20_000 if multiples else 1e5)),
            "100 clients": round(prefixes.honest_share(multiples, 100), 1),
            "1,000 clients": round(prefixes.honest_share(multiples, 1000), 1),
            "100 clients, forger of 20/s": round(prefixes.honest_share(multiples, 100, 20, 600), 1),
            "100 clients, forger of 200/s": round(
                prefixes.honest_share(multiples, 100, 200, 600), 1
            ),
        }
        for name, multiples in (
            ("the /64 alone", {}),
            ("/56 x 3, /48 x 4 (Knot)", prefixes.KNOT),
            ("/56 x 16, /48 x 64", prefixes.GENEROUS),
        )
    }


def _fate(share: dict[str, Any]) -> str:
    starts = "" if share["starts"] is None else f"; {share['starts']:g}"
    return (
        f"{share['answered']:g}" + (f" ({share['kissed']:g})" if share["kissed"] else "") + starts
    )


def tables(result: dict[str, Any]) -> dict[str, str]:
    """The page's tables by name."""
    rates = [f"{rate:,g}/s" if rate < 1000 else f"{rate:,.0f}/s" for rate in SPOOFED_PER_SECOND]
    shape_rows = result["shapes"]
    wider_rows = result["wider"]
    return {
        "spoofed": table(
            ["% answered (kissed)", *rates],
            [[name, *map(_fate, row.values())] for name, row in result["spoofed"].items()],
        ),
        "iburst": table(
            ["% answered (kissed); starts with an answer", *rates[:3]],
            [[name, *map(_fate, row.values())] for name, row in result["iburst"].items()],
        ),
        "attacks": table(
            ["attack", "offered/s", "to the daemon/s", "established %", "newcomer's first %",
             "its next %", "stated %", "victim %"],
            [
                [name, f"{row['offered_per_second']:,}", f"{row['passed_per_second']:,}",
                 *(f"{row[key]:g}" for key in ("established", "first", "later", "stated", "victim"))]
                for name, row in result["attacks"].items()
            ],
        ),
        "patience": table(
            ["waves", "packets", "minutes", "slots held %", "sets held whole %"],
            [[f"{cell:,}" for cell in row.values()] for row in result["patience"]],
        ),
        "shapes": table(
            ["prefers packets", *next(iter(shape_rows.values()))],
            [[name, *(f"{cell:g}" for cell in row.values())] for name, row in shape_rows.items()],
        ),
        "wider": table(
            ["charged", *next(iter(wider_rows.values()))],
            [[name, *(f"{cell:,g}" if cell < 1000 else f"{cell:,}" for cell in row.values())]
             for name, row in wider_rows.items()],
        ),
    }  # fmt: skip


def floods() -> dict[str, Any]:
    """Every scene's outcome by its name."""
    found: dict[str, Any] = {}
    for attack in scenes.attacks():
        found[attack.name] = asdict(scenes.run(attack)) | {"scale": attack.scale}
        print(attack.name, found[attack.name], flush=True)
    return found


PARTS: dict[str, Callable[[], Any]] = {
    "attacks": floods,
    "patience": lambda: [asdict(held) for held in scenes.patience()],
    "wider": wider,
    "shapes": shapes,
    "iburst": iburst,
    "spoofed": spoofed,
}


def main(parts: Iterable[str]) -> None:
    """Measures the named parts, prints and writes them."""
    for name in parts:
        measured = PARTS[name]()
        print(name, json.dumps(measured), flush=True)
        result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        result = {key: measured if key == name else result.get(key) for key in PARTS}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if all(result.values()):
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or PARTS)
