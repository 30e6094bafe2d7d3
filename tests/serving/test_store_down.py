"""The online store goes away while requests come in: answers go on, flagged, none invented, and recover by themselves."""

from __future__ import annotations

import signal
import time

import pytest

from ml.features.online import open_store
from tests.conftest import forget
from tests.redis_server import RedisServer
from tests.sample_bundle import REQUEST, fresh_features, sample_bundle, stored
from tests.serving.conftest import Serve, eventually, serves
from tests.serving.test_app import deploy, recorded


def test_redis__killed_in_mid_traffic_and_started_again(
    serve: Serve, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_ONLINE", redis_server.url)
    forget()
    archive = sample_bundle()
    deploy(stored(archive, "1"))
    fresh_features(open_store(redis_server.url))
    down, back, answers = 0.0, 0.0, []
    with serve() as client:
        eventually(lambda: serves(client, "1"))
        held = client.post("/predict", json=REQUEST).json()
        assert held["flags"] == []
        began = time.monotonic()
        while not back or time.monotonic() < back + 3:
            now = time.monotonic()
            if not down and now > began + 0.3:
                redis_server.stop(signal.SIGKILL)
                down = now
            if down and not back and now > down + 0.7:
                redis_server.start()
                back = time.monotonic()
            answer = client.post("/predict", json=REQUEST)
            assert answer.status_code == 200
            answers.append((time.monotonic(), tuple(answer.json()["flags"]), answer.json()["probability"]))
        metadata, metrics = client.get("/metadata").json(), client.get("/metrics").text
    outage = [(flags, y) for at, flags, y in answers if down < at < back and flags]
    assert len(outage) > 10
    assert {(flags, y) for _, flags, y in answers} == {((), held["probability"]), (("features_missing",), recorded(archive))}
    recovered = min(at for at, flags, _ in answers if at > back and not flags)
    assert all(not flags for at, flags, _ in answers if at > recovered)
    assert metadata["feature_store_problem"] is None
    filled = [line for line in metrics.splitlines() if line.startswith('evergreen_features_filled_total{view="plane"}')]
    assert float(filled[0].split()[1]) == sum(bool(flags) for _, flags, _ in answers)
