"""What honest sources get under attack, in short; tests/attack/run.py is the long version."""

import json
from dataclasses import replace

import pytest

from tests.attack import prefixes, shape
from tests.attack.peers import Chrony, Ntpd, Ntpsec
from tests.attack.run import PAGE, RESULT, tables
from tests.attack.scenes import Crowd, attacks, run, shuffled, slotted, stated_share
from tests.attack.victim import Forger, by_peer, by_program
from tests.pages import filled

SHORT = {attack.name: attack for attack in attacks(0.05)}
CROWD = Crowd(established=1500, newcomers_per_second=200, victims=2)
FLOODS = [
    "1 M within-burst forged sources",
    "1 M within-burst forged sources, ceiling 20,000/s",
    "mode-4 flood",
    "options flood, one source",
    "options flood, 1 M sources",
    "fragment flood",
]


@pytest.mark.parametrize("name", FLOODS)
def test_under_a_flood_established_sources_are_answered_and_newcomers_get_their_share(
    name: str,
) -> None:
    attack = replace(SHORT[name], crowd=CROWD, before=0.25)
    outcome = run(attack)
    assert outcome.offered_per_second > 90_000
    assert outcome.established >= 99
    assert outcome.first >= 100 * stated_share(attack) - 8


def test_forged_sources_over_their_limit_take_nothing_from_the_established() -> None:
    outcome = run(
        replace(
            SHORT["over-limit forged sources, ceiling 10,000/s"],
            source=shuffled(1024),
            warm=slotted(1024),
            before=0.5,  # 32 packets of each
            crowd=CROWD,
        )
    )
    assert outcome.established >= 99
    assert outcome.first >= 50
    assert outcome.passed_per_second <= 10_000 + 1_000 / 0.5  # and one burst of the ceiling


@pytest.mark.parametrize("forger", [Forger.KNOWING, Forger.UNKNOWING])
def test_a_spoofed_victim_gets_no_less_than_chronys_gets(forger: Forger) -> None:
    for per_second, count in ((0.2, 64), (2.0, 192), (20.0, 192)):
        ours = by_program(forger, per_second, count, victims=16).answered
        assert ours >= by_peer(Chrony(), per_second, 960).answered - 8


def test_a_leak_shard_that_is_wide_enough_gives_a_quarter_to_200_spoofed_packets_a_second() -> None:
    assert by_program(Forger.KNOWING, 200.0, 320, victims=4, leak_max=16_000).answered >= 20


def test_a_forger_who_does_not_know_its_victims_look_leaves_it_nine_of_ten_answers() -> None:
    assert by_program(Forger.UNKNOWING, 200.0, 320, victims=32).answered >= 88


def test_the_peers_are_as_protocol_md_found_them() -> None:
    chrony = [by_peer(Chrony(), rate, 2000).answered for rate in (0.2, 2.0, 20.0)]
    assert chrony == pytest.approx([46, 27, 25], abs=5)
    kissing = by_peer(Chrony(kod=2), 20.0, 2000)
    assert kissing.answered == pytest.approx(25, abs=5)
    assert kissing.kissed == pytest.approx(20, abs=5)
    assert by_peer(Ntpsec(), 0.2, 500).answered == 100
    assert by_peer(Ntpsec(), 2.0, 500).answered < 1
    ntpd = by_peer(Ntpd(), 0.2, 2000)
    assert ntpd.answered < 1
    assert 10 < ntpd.kissed < 30


def test_chrony_answers_most_of_those_who_come_faster_without_answers() -> None:
    chrony = Chrony()
    now, gap, answered = 0.0, 2.0, 0
    for _ in range(400):  # asks again at once when it is not answered
        fate = chrony.answer(now, 1)
        answered += fate == "answered"
        gap = 4.0 if fate == "answered" else 0.25
        now += gap
    assert answered > 200


def test_a_preference_never_gives_an_abuser_more_than_the_leak_and_an_eighth() -> None:
    variant = shape.Variant(shape.Preference.MINORITY, 4, 0, 1)
    for shapes in (1, 2, 3, 0):
        assert shape.abuser_share(variant, shapes, 100, 62.5) <= 0.25 * 9 / 8 + 0.01


def test_wider_prefixes_would_silence_a_whole_network() -> None:
    assert prefixes.honest_share({}, 100, 20, 300) == 100
    assert prefixes.honest_share(prefixes.KNOT, 100, 20, 300) < 50


def test_the_page_has_the_numbers_of_the_result() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page, tables(json.loads(RESULT.read_text(encoding="utf-8"))))
