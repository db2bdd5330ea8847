"""A real Prometheus scrapes a guard through an attack: alerts and dashboard."""

import json
import re
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import NTPGUARD
from tests.lab.generator import Load
from tests.lab.lab import ROOT, SERVER, Lab, inside, run
from tests.lab.test_lab import pytestmark, up

__all__ = ["pytestmark"]
RULES = ROOT / "deploy/prometheus/ntpguard.rules.yml"
DASHBOARD = json.loads((ROOT / "deploy/grafana/ntpguard.json").read_text(encoding="utf-8"))
WINDOW = "10s"  # of rates, instead of minutes
SECONDS = 60.0  # others may be using the processors
CONFIGURATION = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs:
  - job_name: ntpguard
    static_configs: [{targets: ["127.0.0.1:9721"]}]
"""
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


@pytest.fixture
def lab(lab: Lab) -> Lab:
    lab.server()
    return lab


@contextmanager
def prometheus(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """An exporter, given, and a Prometheus that scrapes it, on the server."""
    rules = RULES.read_text(encoding="utf-8")
    rules = re.sub(r"\[\d+m\]", f"[{WINDOW}]", re.sub(r"for: \d+[md]", "for: 2s", rules))
    (lab.directory / "rules.yml").write_text(rules)
    (lab.directory / "prometheus.yml").write_text(CONFIGURATION)
    commands = [
        [NTPGUARD, "export"],
        [
            "prometheus",
            f"--config.file={lab.directory}/prometheus.yml",
            f"--storage.tsdb.path={lab.directory}/data",
            "--web.listen-address=127.0.0.1:9090",
            "--log.level=warn",
        ],
    ]
    processes = [subprocess.Popen(inside(SERVER, *command)) for command in commands]
    try:
        yield processes[0]
    finally:
        for one in reversed(processes):
            one.terminate()
            one.wait(SECONDS)


def ask(path: str) -> Any:
    """Prometheus' answer; None while it does not listen yet."""
    shown = run(*inside(SERVER, "curl", "-s", f"http://127.0.0.1:9090/api/v1/{path}"), check=False)
    return json.loads(shown.stdout)["data"] if shown.returncode == 0 else None


def query(expression: str) -> list[Any]:
    found = ask(f"query?query={urllib.parse.quote(expression)}")
    return found["result"] if found else []


def firing() -> set[str]:
    found = ask("alerts")
    alerts = found["alerts"] if found else []
    return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


def until(what: str, done: Any) -> None:
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def test_an_attack_and_an_end_raise_their_alerts_and_no_other_and_every_panel_is_filled(
    lab: Lab,
) -> None:
    up(lab)
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            Load(
                lab,
                1.0,
                {"polite": 50, "hasty": 50, "abuser": 40_000},
                {"polite": 50, "hasty": 5},
            ).run()

    attacker = threading.Thread(target=attack)
    before = STATISTICS.read_text()
    STATISTICS.write_text("1")
    try:
        with prometheus(lab) as exporter:
            until("it scrapes", lambda: query("ntpguard_up == 1"))
            time.sleep(3)
            assert firing() == set()
            attacker.start()
            until("the alert", lambda: "NtpguardFlood" in firing())
            assert firing() == {"NtpguardFlood"}
            empty = [
                (panel["title"], target["expr"])
                for panel in DASHBOARD["panels"]
                for target in panel.get("targets", ())
                if not query(filled(target["expr"]))
            ]
            assert empty == []
            for name, expression in (("job", "up"), ("instance", 'up{job=~".+"}')):
                assert query(f"count by ({name}) (ntpguard_{expression})")
            stop.set()
            attacker.join()
            until("its end", lambda: firing() == set())
            exporter.terminate()
            until("the exporter is missed", lambda: firing() == {"NtpguardUnreachable"})
    finally:
        stop.set()
        STATISTICS.write_text(before)


def filled(expression: str) -> str:
    """A panel's query, as Grafana sends it with everything chosen."""
    for variable, value in (("$job", ".+"), ("$instance", ".+"), ("$__rate_interval", WINDOW)):
        expression = expression.replace(variable, value)
    return expression
