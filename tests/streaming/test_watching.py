"""Real Prometheus over a real member of the stream: each panel's query has an answer, and the lag is what waits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from ml import brokers
from ml.features.online import open_store
from ml.settings import settings
from ops import alert_watch, dashboards
from ops.stream_scene import eventually
from tests.sample_bundle import REQUEST, fresh_features
from tests.streaming.conftest import Start, deploy

pytestmark = pytest.mark.e2e


def test_panels__each_query_has_an_answer__and_lag_is_what_waits(kafka: Path, start: Start) -> None:
    if not all(shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")):
        pytest.skip("not installed: `sh ops/install_debian.sh prometheus prometheus-alertmanager`")
    member, producer = start(), brokers.producer()
    with alert_watch.watchers(kafka / "watchers", {"stream": member.port}) as listener:

        def value(query: str) -> float:
            found = httpx.get(f"{listener.prometheus}/api/v1/query", params={"query": query}, timeout=20).json()["data"]["result"]
            return float(found[0]["value"][1]) if found else -1.0

        eventually(lambda: member.metric("evergreen_stream_paused"), "it waits for a model")
        for number in range(7):
            producer.produce(brokers.topics().requests, json.dumps(REQUEST), b"key", number % 2)
        producer.produce(brokers.topics().requests, "{", b"key", 0)
        producer.flush(10)
        eventually(lambda: value("sum(evergreen_stream_lag)") == 8, "eight records wait")
        assert eventually(lambda: value("job:evergreen_stream_behind:seconds") > 0, "their time is told")
        fresh_features(open_store(settings().online))
        deploy()
        eventually(lambda: value("sum(evergreen_stream_lag)") == 0, "none waits")
        asked = {query for _, _, query in dashboards.queries("stream")}
        assert not alert_watch.unanswered(listener.prometheus, asked)
        assert value("sum(evergreen_stream_dead_letters_total)") == 1
        assert value("sum(evergreen_stream_answered_total)") == 7
