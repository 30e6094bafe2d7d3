"""Real Prometheus and Alertmanager over a real service and exporter: alerts reach people, and each panel's query has an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from ops import alert_table, alert_watch, dashboards
from ops.alert_faults import Stage
from ops.alert_watch import Listener

pytestmark = pytest.mark.e2e
EMPTY_WHEN_WELL = {
    "sum by (view) (rate(evergreen_features_filled_total[5m]))",
    "sum by (model_version, reason) (rate(evergreen_model_failures_total[5m]))",
    "flag:evergreen_flags:ratio_rate5m",
    "sum by (dag, kind) (increase(evergreen_alerts_total[1d]))",
}
"""Queries about what went wrong; nothing did."""
SLOW = ("ServingSlow", "ServingBaselineRates")
"""What a machine pages for that runs other tests meanwhile, and rightly: it is slow."""


@pytest.fixture(scope="module")
def watched(own_settings: None) -> Iterator[tuple[Stage, Listener]]:
    if not all(shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")):
        pytest.skip("not installed: `sh ops/install_debian.sh prometheus prometheus-alertmanager`")
    with alert_table.watched() as found:
        yield found


def test_panels__each_query_has_an_answer(watched: tuple[Stage, Listener]) -> None:
    asked = {query for _, _, query in dashboards.queries("service", "quality", "pipeline", "cost")} - EMPTY_WHEN_WELL
    assert not alert_watch.unanswered(watched[1].prometheus, asked)


@pytest.mark.parametrize("fault", ["service down", "drift harm"])
def test_fault__raises_its_alert_and_no_other_page__and_is_resolved(fault: str, watched: tuple[Stage, Listener]) -> None:
    row = alert_table.play(fault, *watched)
    row.pages = [page for page in row.pages if page not in SLOW]
    assert row.well, row


@pytest.mark.parametrize("name", dashboards.ALL)
def test_dashboard__is_the_one_that_is_checked_in(name: str) -> None:
    kept = dashboards.FOLDER / f"{name}.json"
    assert kept.read_text() == dashboards.rendered(name), "run: python -m ops.dashboards"
    panels = json.loads(kept.read_text())["panels"]
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["targets"] and panel["description"] for panel in panels)
