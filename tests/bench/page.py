"""The benchmark's figures in README.md and docs/explanation/benchmark.md: python -m tests.bench.page"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bench.report import RESULT
from tests.pages import filled, table

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs/explanation/benchmark.md")
MILLION = 1_000_000
PEERS = ("LRU_HASH", "nft prerouting", "nft ingress", "hashlimit")
NAMES = {
    "LRU_HASH": "the same limiter over a BPF LRU_HASH",
    "nft prerouting": "nftables dynamic set, prerouting",
    "nft ingress": "nftables dynamic set, netdev ingress",
    "hashlimit": "iptables hashlimit",
}
# server, as the service part calls it: as people read it
SERVERS = {
    "no limiter": "chronyd alone",
    "chrony ratelimit": "chrony's `ratelimit`",
    "ntpsec limited kod": "ntpsec's `limited kod`",
    "nft prerouting": "nftables dynamic set",
    "hashlimit": "iptables hashlimit",
    "no limiter, 4 MiB": "chronyd alone, 4 MiB of receive buffer",
    "ntpguard": "**ntpguard**",
    "ntpguard, ceiling": "**ntpguard**, ceiling",
    "ntpguard, 4 MiB": "**ntpguard**, 4 MiB",
    "ntpguard, ceiling, 4 MiB": "**ntpguard**, ceiling, 4 MiB",
    "perfect knowledge": "a program that knows who attacks",
}
OURS = (
    "no limiter",
    "ntpguard",
    "ntpguard, ceiling",
    "ntpguard, 4 MiB",
    "ntpguard, ceiling, 4 MiB",
)
COMMON = ("one source", "1,000 sources", "1 M spoofed")


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Every table of the pages, by name."""
    cost, service = result["cost"], result["service"]["results"]
    return {
        "first_cost": first_cost(cost["ns"]),
        "first_service": table(
            ["", *COMMON],
            [
                [name, *(percent(service, server, attack, None) for attack in COMMON)]
                for server, name in SERVERS.items()
                if "alone, 4" not in name
            ],
        ),
        "cost": cost_table(cost),
        "times": times(cost),
        "growth": table(
            ["capacity", "bytes for each source held, 1 % lost", "lost at capacity, %", "drop, ns"],
            [
                [
                    f"{row['capacity']:,}",
                    f"{row['bytes_per_source']:.0f}",
                    f"{100 * row['lost_at_capacity']:.2f}",
                    f"{row['drop_ns']:.0f}",
                ]
                for row in result["growth"]["results"]
            ],
        ),
        "service": service_table(service, OURS),
        "others": service_table(
            service, [server for server in SERVERS if server not in OURS], COMMON
        ),
        "rates": rates(service),
        "delay": table(
            ["", "flood", "added, median, us", "added, 99th percentile, us", "noise, us"],
            [
                [
                    row["subject"],
                    row["flood"],
                    *(
                        f"{row[key] / 1000:.1f}"
                        for key in ("added_median_ns", "added_p99_ns", "noise_ns")
                    ),
                ]
                for row in result["delay"]["results"]
            ],
        ),
    }


def first_cost(ns: dict[str, float]) -> str:
    """The README's: nanoseconds, by sources."""
    rows = [
        ("an empty XDP program that drops", "empty drop"),
        ("**ntpguard**", "drop"),
        *((NAMES[peer], peer) for peer in ("LRU_HASH", "hashlimit", "nft prerouting")),
    ]
    return table(
        ["", "1 source", "1,000 sources", "1,000,000 sources"],
        [[name, *(f"{ns[f'{key} {n}']:.0f}" for n in (1, 1000, MILLION))] for name, key in rows],
    )


def cost_table(cost: dict[str, Any]) -> str:
    """What a packet costs against its baseline."""
    ns, figures = cost["ns"], cost["figures"]
    generator = ns["generator"]

    def row(name: str, case: str, base: str, wanted: str) -> list[str]:
        ours, theirs = ns[case], ns[base]
        net = (theirs - generator) / (ours - generator)
        return [name, f"{ours:.0f}", f"{theirs / ours:.2f}", f"{net:.2f}", wanted]

    sources = ((1, "1 source"), (1000, "1,000 sources"), (MILLION, "1 M sources"))
    wanted = {("drop", 1): "0.80", ("drop", 1000): "0.75", ("drop", MILLION): "0.50"} | {
        ("kod", 1): "0.80",
        ("kod", MILLION): "0.50",
    }
    rows = [["an empty XDP_DROP", f"{ns['empty drop 1']:.0f}", "1", "1", ""]]
    for case, base, name in (
        ("touch", "empty drop", "one bucket read and written, nothing else"),
        ("drop", "empty drop", "drop"),
        ("kod", "swap", "KoD, against a bare swap and XDP_TX"),
        ("pass", "empty pass", "pass, against an empty XDP_PASS"),
    ):
        for count, text in sources:
            rows.append(
                row(
                    f"{name}, {text}",
                    f"{case} {count}",
                    f"{base} {count}",
                    wanted.get((case, count), ""),
                )
            )
    more = ns["drop, 8 signatures 1"] / ns["drop 1"] - 1
    rows += [
        [
            "what is not NTP, more than an empty program",
            f"{figures['non_ntp_ns_over_empty']:.1f}",
            "",
            "",
            "12",
        ],
        [
            "100,000 prefixes, more on a limited packet",
            f"{100 * figures['prefixes_more_1']:.0f} %",
            "",
            "",
            "15 %",
        ],
        ["8 signatures, more on a limited packet", f"{100 * more:.0f} %", "", "", ""],
    ]
    return table(["", "ns", "rate", "net", "wanted"], rows)


def times(cost: dict[str, Any]) -> str:
    """How many times as much a drop costs the others."""
    counts = (1, 1000, 100_000, MILLION)
    figures = cost["figures"]

    def cell(peer: str, count: int) -> str:
        word = f"times_{peer.lower().replace(' ', '_')}_{count}"
        return f"{figures[word]:.1f} ({figures[f'{word}_net']:.1f})"

    return table(
        ["", *(f"{count:,}" for count in counts)],
        [[NAMES[peer], *(cell(peer, count) for count in counts)] for peer in PEERS],
    )


def percent(rows: list[dict[str, Any]], server: str, attack: str, rate: float | None) -> str:
    """Known clients that were answered."""
    for row in rows:
        if (row["server"], row["attack"], row["asked_per_second"]) == (server, attack, rate):
            return shown(row["known_answered"])
    return ""


def shown(share: float) -> str:
    """Per cent: a whole one is one."""
    return f"{100 * share:.1f}".removesuffix(".0")


def service_table(
    rows: list[dict[str, Any]], servers: Iterable[str], attacks: Iterable[str] | None = None
) -> str:
    """Known clients answered at 0.8 M packets a second, and flat out."""
    names = list(attacks or dict.fromkeys(row["attack"] for row in rows))
    servers = list(servers)
    return table(
        ["attack", *(SERVERS[server] for server in servers)],
        [
            [
                attack,
                *(
                    f"{percent(rows, server, attack, 800_000.0)}, {percent(rows, server, attack, None)}"
                    for server in servers
                ),
            ]
            for attack in names
        ],
    )


def rates(rows: list[dict[str, Any]]) -> str:
    """By the flood's packets a second."""
    asked = (400_000.0, 800_000.0, 1_500_000.0, None)
    return table(
        ["1 M forged sources", "0.4 M/s", "0.8 M/s", "1.5 M/s", "flat out"],
        [
            [SERVERS[server], *(percent(rows, server, "1 M spoofed", rate) for rate in asked)]
            for server in OURS
        ],
    )


def main() -> None:
    """Writes the tables."""
    made = tables(json.loads(RESULT.read_text(encoding="utf-8")))
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
