"""What `deploy/` says about metrics is what the server exports: no renamed counter breaks it."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pintok_server.control.config import parse_document, read_document
from pintok_server.control.http import Health
from tests.server_process import ROOT
from tests.unit.segment import write_segment
from tests.unit.test_metrics import FileSource

DEPLOY = ROOT / "deploy"


@pytest.fixture
def exported(tmp_path: pathlib.Path) -> dict[str, set[str]]:
    """Label names by sample name, as the server exports them."""
    source = FileSource(write_segment(tmp_path / "stats"))
    text = Health(source, draining=lambda: False).answer("/metrics", "")[2].decode()
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def expressions() -> dict[str, str]:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    rules = {rule["alert"]: rule["expr"] for rule in alerts["groups"][0]["rules"]}
    dashboard = json.loads((DEPLOY / "grafana" / "pintok.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            rules[f"{panel['title']} {target['refId']}"] = target["expr"]
    return rules


def test_every_metric_and_label_that_is_used_exists(exported: dict[str, set[str]]) -> None:
    used = 0
    for name, expression in expressions().items():
        metrics = re.findall(r"\bpintok_\w+", expression)
        assert metrics, name
        for metric in metrics:
            assert metric in exported, f"{name}: {metric}"
            used += 1
        known = set().union(*(exported[metric] for metric in metrics)) | {"instance", "job"}
        for group in re.findall(r"by \(([^)]*)\)", expression):
            labels = {label.strip() for label in group.split(",")}
            assert labels <= known, f"{name}: {labels - known}"
        for label in re.findall(r"[{,]\s*(\w+)\s*[!=]~?=?\"", expression):
            assert label in known, f"{name}: {label}"
        assert expression.count("(") == expression.count(")"), name
    assert used > 30


def test_alerts_say_what_and_how_bad() -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for rule in alerts["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "pintok.json").read_text())
    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, panel["title"]
                cells.add((x, y))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_example_configuration_is_accepted() -> None:
    data = (DEPLOY / "pintok.yaml").read_bytes()
    values = parse_document(read_document(data, where="f"), where="f")
    assert values["iface"] == "eth0" and values["models"][0].name == "default"
