"""The alert rules: each is raised by what it is for, and by nothing else."""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/ntpguard.rules.yml"
RUNBOOKS = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
HOST = {"job": "ntp", "instance": "ntp1"}
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
LONG = "x3000"  # minutes


def series(name: str, **labels: str) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in {**HOST, **labels}.items())
    return f"ntpguard_{name}{{{inside}}}"


UP = 'up{job="ntp",instance="ntp1"}'  # Prometheus' own
ETH0 = {"interface": "eth0", "family": "ipv4"}
# values by minute, in promtool's words: first value + growth
HEALTHY = {
    UP: "1+0",
    # another exporter, that is no guard and does not answer
    'up{job="node",instance="ntp1"}': "0+0",
    series("up"): "1+0",
    series("degraded"): "0+0",
    series("mode", mode="enforce"): "1+0",
    series("packets_total", **ETH0, verdict="pass"): "0+60000",
    series("packets_total", **ETH0, verdict="drop"): "0+6000",
    series("observed_packets_total", **ETH0, verdict="drop"): "0+0",
    series("untracked_requests_total", cause="gated"): "0+60",
    series("drops_total", reason="ceiling"): "0+60",
    series("drops_total", reason="answer"): "0+6000",
    series("daemon_socket_drops_total", family="ipv4"): "0+6",
    series("driver_xdp_total", interface="eth0", counter="xdp_tx_errors"): "0+6",
    series("driver_xdp_total", interface="eth0", counter="xdp_tx"): "0+6000",
    series("policy_last_apply_successful"): "1+0",
    series("policy_differs_from_file"): "0+0",
    series("policy_info", hash="a"): "1+0",
    series("collector_errors_total", collector="driver"): "3+0",
}


@dataclass(frozen=True)
class Case:
    """What raises an alert: the series that differ from a healthy host's, and when it is not yet and
    when it is raised (minutes).
    """

    alert: str
    changed: dict[str, str]
    before: int
    after: int
    value: str = ""  # that its text tells
    labels: dict[str, str] = field(default_factory=lambda: HOST)


CASES = [
    Case("NtpguardDown", {series("up"): "0+0"}, 1, 3),
    Case("NtpguardUnreachable", {UP: "0+0", series("up"): "1 _"}, 4, 6),
    Case("NtpguardDegraded", {series("degraded"): "1+0"}, 4, 6),
    Case(
        "NtpguardNotEnforcing",
        {series("mode", mode="enforce"): "0+0"},
        23 * 60,
        25 * 60,
        labels={**HOST, "mode": "enforce"},
    ),
    Case(
        "NtpguardFlood",
        {series("packets_total", **ETH0, verdict="drop"): "0+1200000"},
        5,
        15,
        "20000",
    ),
    Case(
        "NtpguardFlood",
        {series("observed_packets_total", **ETH0, verdict="drop"): "0+1194000"},
        5,
        15,
        "20000",
    ),
    Case(
        "NtpguardNewcomersUntracked",
        {series("untracked_requests_total", cause="gated"): "0+12000"},
        9,
        20,
        "200",
    ),
    Case(
        "NtpguardCeilingReached", {series("drops_total", reason="ceiling"): "0+1200"}, 9, 20, "20"
    ),
    Case(
        "NtpguardDaemonLosesRequests",
        {series("daemon_socket_drops_total", family="ipv4"): "0+120"},
        4,
        15,
        "2",
    ),
    Case(
        "NtpguardAnswersFlood", {series("drops_total", reason="answer"): "0+120000"}, 4, 15, "2000"
    ),
    Case(
        "NtpguardKodsLost",
        {series("driver_xdp_total", interface="eth0", counter="xdp_tx_errors"): "0+120"},
        9,
        20,
        "2",
    ),
    Case("NtpguardPolicyRefused", {series("policy_last_apply_successful"): "0+0"}, 0, 2),
    Case("NtpguardPolicyDiffers", {series("policy_differs_from_file"): "1+0"}, 23 * 60, 25 * 60),
    Case(
        "NtpguardPoliciesDiffer",
        {series("policy_info", instance="ntp2", hash="b"): "1+0"},
        29,
        31,
        "2",
        {"job": "ntp"},
    ),
    Case(
        "NtpguardReadingFails",
        {series("collector_errors_total", collector="driver"): "0+1"},
        14,
        40,
        "driver",
        {**HOST, "collector": "driver"},
    ),
]


def rules() -> dict[str, dict[str, Any]]:
    """Every alert, as Prometheus' own parser has it."""
    done = subprocess.run(
        ["ruby", "-ryaml", "-rjson", "-e", "puts JSON.dump(YAML.load(ARGF.read))", str(RULES)],
        capture_output=True,
        text=True,
        check=True,
    )
    groups = json.loads(done.stdout)["groups"]
    return {one["alert"]: one for group in groups for one in group["rules"] if "alert" in one}


def expected(case: Case, rule: dict[str, Any]) -> dict[str, Any]:
    """The alert that promtool is to find: its texts with the labels and the value filled in."""
    values = {f"$labels.{name}": text for name, text in case.labels.items()}
    values |= {"$value": case.value, '$value | printf "%.0f"': case.value}

    def filled(text: str) -> str:
        return re.sub(r"{{ (.*?) }}", lambda match: values[match[1]], text)

    return {
        "exp_labels": {**case.labels, **rule["labels"]},
        "exp_annotations": {name: filled(text) for name, text in rule["annotations"].items()},
    }


def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_each_alert_is_raised_by_what_it_is_for_and_by_nothing_else(tmp_path: Path) -> None:
    found = rules()
    assert {case.alert for case in CASES} == set(ALERTS) == set(found)

    def check(minute: int, alert: str, *raised: dict[str, Any]) -> dict[str, Any]:
        return {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": list(raised)}

    def test(name: str, changed: dict[str, str], *checks: dict[str, Any]) -> dict[str, Any]:
        values = {**HEALTHY, **changed}
        return {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": k, "values": v + LONG} for k, v in values.items()],
            "alert_rule_test": list(checks),
        }

    tests = [
        test(
            case.alert,
            case.changed,
            check(case.before, case.alert),
            check(case.after, case.alert, expected(case, found[case.alert])),
            *(check(case.after, other) for other in ALERTS if other != case.alert),
        )
        for case in CASES
    ]
    tests.append(test("a healthy host", {}, *(check(1500, alert) for alert in ALERTS)))
    file = tmp_path / "test.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_its_section_in_the_runbooks(alert: str) -> None:
    rule = rules()[alert]
    assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{alert.lower()}"
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert f"\n## {alert}\n" in RUNBOOKS


def test_each_section_of_the_runbooks_is_of_an_alert() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.M) == ALERTS
