"""What a machine of `make test-kernels` said, judged."""

import json

from tests.kernels.__main__ import Outcome, outcome

STEPS = "release: 6.1.0\nprocessed 84581 insns (limit\nverify: ok\njudge: ok\noperate: ok\n"
CODES = "lab: exit code 0\ntests: exit code 0\n"
REFUSAL = "ntpguard: Linux 5.10 is too old: 5.15 or later is needed"


def judged(report: str, *told: tuple[str, str, str]) -> Outcome:
    lines = [json.dumps({"test": test, "outcome": what, "why": why}) for test, what, why in told]
    return outcome(report, "\n".join(lines), "clang 14.0.6", ["tests/bpf"], 60.4)


def test_a_kernel_that_does_everything_is_right_and_each_test_is_counted() -> None:
    one = judged(
        STEPS + CODES,
        ("tests/lab/test_lab.py::a", "passed", ""),
        ("tests/bpf/test_page.py::a", "passed", ""),
        ("tests/bpf/test_page.py::b", "skipped", "no time left"),
        ("tests/bpf/test_page.py::c", "skipped", "no time left"),
    )
    assert one.right
    assert (one.kernel, one.instructions, one.seconds) == ("6.1.0", 84581, 60)
    assert (one.passed, one.lab_passed, one.failed) == (1, 1, {})
    assert one.left_out == {"no time left": 2}


def test_a_test_that_failed_a_step_that_is_missing_and_a_machine_that_hung_are_not_right() -> None:
    failed = judged(STEPS + "lab: exit code 0\ntests: exit code 1\n", ("a", "failed", "because"))
    assert not failed.right and failed.failed == {"a": "because"}
    assert not judged((STEPS + CODES).replace("judge: ok", "judge: failed")).right
    assert not judged(STEPS + "lab: exit code 0\n").right
    assert not judged(STEPS + "lab: exit code 1\ntests: exit code 0\n").right
    assert not judged("").right


def test_a_test_counts_as_it_ended_last_and_a_machine_without_any_is_not_right() -> None:
    left = STEPS + "lab: exit code 5\ntests: exit code 0\n"
    one = judged(left, ("a", "passed", ""), ("b", "failed", "because"), ("b", "passed", ""))
    assert (one.right, one.passed, one.failed) == (True, 2, {})
    assert not judged(left, ("a", "passed", ""), ("a", "failed", "its end")).right
    assert not judged(left.replace("code 0", "code 5")).right


def test_a_kernel_below_the_floor_has_to_refuse_in_words_that_name_it() -> None:
    old = "release: 5.10.0-32\nverify: failed\njudge: failed\n"
    one = judged(f"{old}{REFUSAL}\noperate: failed\n")
    assert one.right and one.refused == REFUSAL
    assert not judged(f"{old}operate: failed\n").right
    assert not judged(f"{old}{REFUSAL}\noperate: ok\n").right
