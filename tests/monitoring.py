"""`python -m tests.monitoring`: the alert rules and the dashboard of deploy/, held against what they are for.

promtool reads the rules and plays their unit tests; the dashboard is read by its JSON Schema and by Grafana's own
model, which drops what Grafana does not know. Every metric that is named exists, every alert has been seen to fire and
has its section in the runbook. Without promtool (Debian's package `prometheus`) this does not pass.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from jsonschema import Draft202012Validator

from service import metrics
from tests.support.processes import ROOT

DEPLOY: Final = ROOT / "deploy"

register_default_plugins()


def wrong(deploy: Path) -> Iterator[str]:
    """Everything that is wrong with the monitoring in a folder, a line each."""
    rules, tests = deploy / "prometheus" / "alerts.yml", deploy / "prometheus" / "alerts_test.yml"
    alerts = {rule["alert"]: rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]}
    yield from promtool("check", "rules", rules)
    yield from promtool("test", "rules", tests)
    fired = {
        case["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    yield from (f"alerts_test.yml never lets {name} fire" for name in sorted(alerts.keys() - fired))
    sections = {_anchor(line) for line in (deploy / "runbook.md").read_text().splitlines() if line.startswith("## ")}
    for name, rule in alerts.items():
        place = rule["annotations"]["runbook"]
        if not place.startswith("deploy/runbook.md#") or place.partition("#")[2] not in sections:
            yield f"{name} points to {place}, where nothing is"
    dashboard = json.loads((deploy / "grafana" / "dashboard.json").read_text())
    yield from _dashboard(dashboard, json.loads((deploy / "grafana" / "dashboard.schema.json").read_text()))
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    known = {*metrics.GAUGES, *(name for *_, names in metrics.families() for name in names), "up"}
    for expression in (*panels, *(str(rule["expr"]) for rule in alerts.values())):
        named = set(re.findall(r"callsheet_\w+", expression)) | (set(re.findall(r"\bup\b", expression)))
        yield from (f"nobody tells {name}, which {expression} asks for" for name in sorted(named - known))


def promtool(*words: str | Path) -> Iterator[str]:
    program = shutil.which("promtool")
    if program is None:
        yield "promtool is missing: it is in Debian's package prometheus"
        return
    ran = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if ran.returncode:
        yield f"promtool {' '.join(map(str, words))}:\n{ran.stdout}{ran.stderr}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", heading.removeprefix("## ").lower()).replace(" ", "-")


def _dashboard(dashboard: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    Draft202012Validator.check_schema(schema)
    found = list(Draft202012Validator(schema).iter_errors(dashboard))
    yield from (f"dashboard.json {error.json_path}: {error.message[:200]}" for error in found)
    if not found:
        known = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
        yield from (f"dashboard.json {place}: Grafana knows no such thing" for place in _lost(dashboard, known))
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids):
        yield "dashboard.json: two panels have one id"


def _lost(given: Any, known: Any, place: str = "$") -> Iterator[str]:
    """Where Grafana's model says something else than what it was given."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            yield from _lost(value, known.get(name), f"{place}.{name}")
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for number, pair in enumerate(zip(given, known, strict=True)):
            yield from _lost(*pair, f"{place}[{number}]")
    elif given != known:
        yield place


def main() -> int:
    found = list(wrong(DEPLOY))
    print("\n".join(found) or "alerts and dashboard: the rules hold, every alert has fired, every metric exists")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
