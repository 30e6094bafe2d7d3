"""The stream's benchmark, short: two kills of members under load; lost and duplicate effects are counted, and there are none."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ml.features.online import open_store
from ml.settings import settings
from ops import bench_stream
from tests.sample_bundle import REQUEST, fresh_features
from tests.streaming.conftest import cluster, deploy, kafka  # noqa: F401  # fixtures

pytestmark = pytest.mark.e2e


def test_kills__two_of_two_members__each_message_has_one_effect(kafka: Path) -> None:  # noqa: F811
    fresh_features(open_store(settings().online))
    deploy()
    bodies = [json.dumps(REQUEST).encode(), b"broken"]
    effects = bench_stream.kills(kafka, bodies, 100, 2, random.Random(1))
    assert (effects.lost, effects.duplicate) == (0, 0)
    assert effects.sent > 100
