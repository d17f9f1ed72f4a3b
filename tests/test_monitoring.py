"""The check of alerts and dashboard finds what is wrong with them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests import monitoring
from tests.support.processes import ROOT

#: File, what stands there, what is put in its place, and what is said of it.
FAULTS: Final = {
    "a rule that cannot be read": (
        "prometheus/alerts.yml",
        "callsheet_processes == 0",
        "callsheet_processes ==",
        "promtool check",
    ),
    "a rule that never fires": (
        "prometheus/alerts.yml",
        "callsheet_processes == 0",
        "callsheet_processes < 0",
        "promtool test",
    ),
    "an alert on a good day": (
        "prometheus/alerts.yml",
        "deadlines_overdue > 0",
        "deadlines_overdue >= 0",
        "promtool test",
    ),
    "an alert without a test": (
        "prometheus/alerts_test.yml",
        "alertname: CallsheetVendorUnwell",
        "alertname: CallsheetErrors",
        "never lets CallsheetVendorUnwell fire",
    ),
    "an alert without a section": ("runbook.md", "## Deadlines", "## Dead lines", "deploy/runbook.md#deadlines"),
    "a metric that is none": (
        "grafana/dashboard.json",
        "callsheet_polls_due",
        "callsheet_polls_do",
        "callsheet_polls_do",
    ),
    "a word of no panel's": (
        "grafana/dashboard.json",
        '"fillOpacity"',
        '"fillOpacitee"',
        "Grafana knows no such thing",
    ),
    "a number that is none": ("grafana/dashboard.json", '"x": 12', '"x": "12"', "is not of type 'integer'"),
    "two panels with one id": ("grafana/dashboard.json", '"id": 3,', '"id": 2,', "two panels"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_is_wrong_is_found(fault: str, tmp_path: Path) -> None:
    name, there, instead, said = FAULTS[fault]
    deploy = tmp_path / "deploy"
    shutil.copytree(monitoring.DEPLOY, deploy)
    text = (deploy / name).read_text()
    assert there in text
    (deploy / name).write_text(text.replace(there, instead))
    found = "\n".join(monitoring.wrong(deploy))
    assert said in found, found


def test_as_it_is_nothing_is_wrong() -> None:
    assert list(monitoring.wrong(monitoring.DEPLOY)) == []


def test_prometheus_reads_what_the_documents_tell_it(tmp_path: Path) -> None:
    [told] = re.findall(r"```yaml\n(scrape_configs:.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    shutil.copy(monitoring.DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    (tmp_path / "callsheet.key").touch()
    (tmp_path / "prometheus.yml").write_text(told.replace("/etc/prometheus/", ""))
    assert list(monitoring.promtool("check", "config", tmp_path / "prometheus.yml")) == []


def test_nothing_passes_where_promtool_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "promtool is missing: it is in Debian's package prometheus" in list(monitoring.wrong(monitoring.DEPLOY))
