"""ntpguard replay beside the model, and its own counts beside the program's."""

import ipaddress
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest

from ntpguard import abi
from ntpguard.policy.check import parse_policy
from ntpguard.policy.compile import compile_policy
from ntpguard.policy.model import Policy
from ntpguard.replay import judge
from ntpguard.replay.frame import STATION, datagram
from ntpguard.replay.outcome import verdicts_of
from ntpguard.replay.run import START_NS, replay
from ntpguard.words import Action, Family, Mode, Reason, Verdict
from tests import captures
from tests.bpf.packets import IPV4, SERVER4, SERVER6, ntp
from tests.bpf.test_replay import ABUSER, DAY, PLAIN, files, pytestmark, record
from tests.captures import Record
from tests.model import policy as model_policy
from tests.model.frame import MAPPED, Kind, parse
from tests.model.model import Decision, Model, Shape
from tests.model.model import Packet as Parsed
from tests.model.sequence import some_frame

__all__ = ["files", "pytestmark"]
TAT = abi.GCRA_TAT_SHIFT


def limit_of(words: abi.Limit) -> model_policy.Limit:
    return model_policy.Limit(words.emission_interval >> TAT, words.burst_tolerance >> TAT)


def fine_limit_of(words: abi.Limit) -> model_policy.Limit:
    """Of a shared bound, the bits below a gcra unit count too."""
    return model_policy.Limit(
        Fraction(words.emission_interval, 1 << TAT), Fraction(words.burst_tolerance, 1 << TAT)
    )


def modelled(policy: Policy) -> model_policy.Policy:
    """A policy as the model is told it."""
    words = compile_policy(policy).policy
    bounds = [model_policy.Bound(fine_limit_of(one.limit), one.batch) for one in words.bounds]
    return model_policy.Policy(
        *bounds,
        leak_shard=limit_of(words.leak_shard),
        answers=limit_of(words.answers),
        odd=limit_of(words.odd),
        flags=words.flags,
        kod_interval=words.kod_interval,
        kod_patience=words.kod_patience,
        kod_flood=words.kod_flood,
        established_spacing=words.established_spacing,
        signatures_always=words.signatures_always,
        signatures=tuple(
            model_policy.Signature(
                int.from_bytes(bytes(one.value), "big"),
                int.from_bytes(bytes(one.mask), "big"),
                int.from_bytes(one.source_port.to_bytes(2, "little"), "big"),
                one.flags,
                one.fraction,
            )
            for one in words.signature[: words.signatures]
        ),
        rules=tuple(
            model_policy.Rule(limit_of(one.limit), one.leak, Action(one.action), one.flags)
            for one in words.classes
        ),
    )


class Told(Model):
    """The model, remembering its last decision."""

    def decide(self, packet: Parsed) -> Decision:
        self.last = super().decide(packet)
        return self.last


MODES = (3, 3, 3, 3, 3, 3, 0, 1, 4, 5, 6, 7)
SERVERS = (SERVER4, "198.51.100.2", SERVER6, "2001:db8::2")
RICH = """
ports = [123, 1123]
upstreams = ["203.0.113.40/29"]
[sources]
capacity = 65536
[limit]
rate = "60/minute"
burst = 5
leak = "1/3"
[ceiling]
rate = "30/second"
[answers]
rate = "10/second"
[odd]
rate = "10/second"
[[class]]
name = "campus"
prefixes = ["203.0.113.16/28", "2001:db8:13::/48"]
rate = "10/second"
burst = 10
control = true
[[class]]
name = "banned"
prefixes = ["203.0.113.32/30"]
action = "block"
[[class]]
name = "free"
prefixes = ["203.0.113.36/30"]
action = "exempt"
[[signature]]
name = "always"
source_port = 1337
header = "1b"
when = "always"
[[signature]]
name = "excess"
source_port = 123
"""


def random_traffic(random: Random, count: int) -> list[Record]:
    """Frames of all kinds from few sources, in bursts and pauses."""
    records, now = [], 0
    for _ in range(count):
        now += random.choice((0, 0, 10**6, 10**6, 10**7, 4 * 10**7))
        one = some_frame(random, ntp(mode=random.choice(MODES), version=random.choice((3, 4))))
        host = random.randrange(48)
        source = f"2001:db8:{random.randrange(16) + 16:x}::7" if one.ipv6 else f"203.0.113.{host}"
        one = one.but(source=source, destination_mac=STATION)
        records.append((DAY + now, bytes(one), None))
    return records


def told_model(policy: Policy, seed: int) -> Told:
    """The model, told what replay tells the program: the second copies of everything run."""
    compiled = compile_policy(policy)
    seeds = Random(seed)
    shape = Shape(
        compiled.table.buckets,
        policy.ports,
        mac=STATION,
        seed=(seeds.getrandbits(64), seeds.getrandbits(64)),
        tries=False,
    )
    model = Told(shape)
    model.set_policy(1, modelled(policy))
    prefixes = {}
    for network, value in compiled.prefixes.items():
        family = Family.IPV4 if network.version == 4 else Family.IPV6
        key = model_policy.Prefix(family, network.prefixlen, int(network.network_address))
        upstream = bool(value >> abi.PREFIX_UPSTREAM_SHIFT & 1)
        prefixes[key] = model_policy.Belongs(value & 0xFF, upstream)
    model.set_prefixes(1, prefixes)
    addresses = [ipaddress.ip_address(one) for one in SERVERS]
    model.set_addresses(
        {int(one) | (MAPPED if one.version == 4 else 0): abi.ADDRESS_LOCAL for one in addresses}
    )
    model.set_root(model_policy.Root(Mode.ENFORCE, 1, 1, (False, False), 1))
    return model


def test_signatures_match_as_the_model_says() -> None:
    random = Random(3)
    text = "".join(
        f'[[signature]]\nname = "s{i}"\nheader = "{header}"\nfraction = "{fraction}"\n'
        for i, (header, fraction) in enumerate(
            (header, fraction)
            for header in ("23", "2? 00", "e3 .. 06")
            for fraction in ("microseconds", "nanoseconds")
        )
    )
    policy = parse_policy(text + '[[signature]]\nname = "p"\nsource_port = 123\n')
    shapes = modelled(policy).signatures
    matched = 0
    for _ in range(20_000):
        micro = random.randrange(10**6)
        fraction = random.choice((random.getrandbits(32), (micro << 32) // 10**6))
        transmit = bytes(4) + fraction.to_bytes(4, "big")
        header = ntp(transmit=transmit, leap=random.choice((0, 3)), poll=6)
        port = random.choice((123, 40000))
        for one, shape in zip(policy.signatures, shapes, strict=True):
            expected = shape.matches(int.from_bytes(header, "big"), port)
            assert judge.has_shape(one, header, port) == expected
            matched += expected
    assert 20_000 < matched < 100_000


@pytest.mark.parametrize("seed", range(3))
def test_a_few_thousand_random_packets_meet_what_the_model_says(seed: int) -> None:
    policy = judge.enforced(parse_policy(RICH))
    random, model = Random(seed), told_model(policy, seed)
    servers = [ipaddress.ip_address(one) for one in SERVERS]
    expected: dict[int, Counter[str]] = {}
    others = 0
    with judge.judging(policy, servers, seed) as real:
        for time_ns, frame, _ in random_traffic(random, 4000):
            one, packet = datagram(frame, True), parse(frame, STATION, policy.ports)
            clock_ns, chance = START_NS + time_ns - DAY, random.getrandbits(32)
            judged = one is not None and real.judge(one, frame, clock_ns, chance)
            assert judged == (packet.kind != Kind.OTHER)
            if not judged:
                continue
            model.judge(frame, clock_ns, chance)
            assert one
            mode = frame[one.payload_at] & 7 if len(frame) > one.payload_at else 0
            if packet.kind == Kind.ODD or mode in (2, 4, 5):
                others += 1
                continue
            verdict, reason = model.last
            met = expected.setdefault(model.source_key(packet), Counter())
            met[verdict.word] += 1
            met["leak"] += reason == Reason.LEAK
        found = {
            one.key: Counter(pass_=one.passed, kod=one.kissed, drop=one.dropped, leak=one.leaked)
            for one in real.sources.values()
        }
        cells = real.counts().happened
    for met in expected.values():
        met["pass_"] = met.pop("pass", 0)
    assert found == expected
    assert {
        (c.class_index, c.family, c.verdict, c.reason): c.packets for c in cells
    } == model.packets
    assert (real.judged, real.uncharged) == (sum(model.packets.values()), others)
    assert real.judged > 2000 and others > 100
    reasons = {reason for _, _, _, reason in model.packets}
    assert reasons >= set(Reason) - {Reason.UNTRACKED, Reason.OFF, Reason.OBSERVED, Reason.ENTRY}


def test_sources_and_the_programs_counters_agree(files: Path) -> None:
    policy = parse_policy(PLAIN)
    random = Random(5)
    few = [IPV4.but(source=f"203.0.113.{i}") for i in range(50)]
    records = [record(i / 100, random.choice(few)) for i in range(5000)]
    Path("random.pcap").write_bytes(captures.pcap(records))
    outcome = replay(Path("random.pcap"), [policy], top=1000).outcome
    assert len(outcome.sources) == 50
    sums = [
        sum(getattr(o, what) for o in outcome.sources) for what in ("passed", "kissed", "dropped")
    ]
    assert sums == list(verdicts_of(outcome).values()) and all(sums)
    assert sum(sums) == outcome.requests == outcome.judged == 5000


def test_the_same_seed_gives_the_same_result_and_another_seed_another(files: Path) -> None:
    policy = parse_policy(PLAIN.replace("1/1024", "1/3"))
    records = [record(i / 100, IPV4) for i in range(2000)]
    Path("flood.pcap").write_bytes(captures.pcap(records))
    first, again, other = (replay(Path("flood.pcap"), [policy], seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.outcome.verdicts != other.outcome.verdicts
    leaked = first.outcome.verdicts[Verdict.PASS, Reason.LEAK]
    conform = first.outcome.verdicts[Verdict.PASS, Reason.CONFORM]
    (source,) = first.outcome.sources
    assert (source.passed, source.excess) == (leaked + conform, 2000 - conform)
    assert leaked > 400


def test_what_had_to_be_forgotten_is_told_and_the_worst_are_kept(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "MOST_SOURCES", 20)
    forged = [record(i / 10, IPV4.but(source=f"203.0.113.{i}")) for i in range(200)]
    abuse = [record(i / 10, IPV4.but(source=ABUSER)) for i in range(200)]
    records = sorted(forged + abuse)
    Path("forged.pcap").write_bytes(captures.pcap(records))
    outcome = replay(Path("forged.pcap"), [parse_policy(PLAIN)]).outcome
    assert outcome.sources_seen == 201 and outcome.sources_forgotten > 150
    assert [(one.source, one.requests) for one in outcome.sources] == [(ABUSER, 200)]
    assert sum(outcome.verdicts.values()) == 400
