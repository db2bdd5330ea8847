"""The Grafana dashboard, by the rules of grafana/dashboard-linter that apply to one of Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/ntpguard.json"
BOARD = json.loads(DASHBOARD.read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = {one["name"]: one for one in BOARD["templating"]["list"]}
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
UNITS = {"short", "pps", "Bps", "reqps", "ops", "ns", "bytes", "s"}  # of Grafana's list
SELECTOR = re.compile(r"(ntpguard_\w+)\{(.*?)\}")


def ids(pairs: list[tuple[str, Any]]) -> list[str]:
    return [f"{title}, {target['refId']}" for title, target in pairs]


def test_it_cannot_be_edited_in_place_and_names_no_host() -> None:  # uneditable-dashboard
    assert BOARD["editable"] is False
    assert 'instance="' not in DASHBOARD.read_text(encoding="utf-8")


def test_the_data_source_is_a_variable() -> None:  # template-datasource
    source = VARIABLES["datasource"]
    assert (source["type"], source["query"], source["label"]) == (
        "datasource",
        "prometheus",
        "Data source",
    )


@pytest.mark.parametrize("name", ["job", "instance"])
def test_job_and_instance_are_variables(name: str) -> None:
    # template-job, template-instance, template-label-promql, template-on-time-change-reload
    variable = VARIABLES[name]
    assert variable["type"] == "query" and variable["label"] == name.capitalize()
    assert variable["datasource"]["uid"] == "$datasource"
    assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"
    assert variable["refresh"] == 2
    assert re.fullmatch(
        r"label_values\(ntpguard_up(\{job=~\"\$job\"\})?, \w+\)", variable["definition"]
    )


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    # panel-datasource, panel-title-description, panel-units, panel-no-targets
    assert panel["datasource"] == {"type": "prometheus", "uid": "$datasource"}
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]


def test_panels_have_names_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(taken)) == len(taken) and max(x for x, _ in taken) == 23


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=ids(TARGETS))
def test_a_query_is_of_the_chosen_hosts_and_counts_by_time(
    title: str, target: dict[str, Any]
) -> None:
    # target-job, target-instance, target-rate-interval, target-counter-agg
    expression = target["expr"]
    found = SELECTOR.findall(expression)
    assert found and len(found) == expression.count("ntpguard_")
    for name, labels in found:
        assert 'job=~"$job", instance=~"$instance"' in labels
        over_time = re.search(rf"rate\({name}\{{[^}}]*\}}\[\$__rate_interval\]\)", expression)
        assert bool(over_time) == name.endswith("_total")
    assert target["datasource"] == {"type": "prometheus", "uid": "$datasource"}
