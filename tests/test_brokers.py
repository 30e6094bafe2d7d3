"""How settings become clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml import brokers
from ml.errors import ConfigError
from tests.conftest import forget


def test_producer__no_address__names_the_variable(workspace: Path) -> None:
    with pytest.raises(ConfigError, match="EVERGREEN_KAFKA is not set"):
        brokers.producer()


def test_topics__two_alike__refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_KAFKA_PREDICTIONS", "evergreen-requests")
    forget()
    with pytest.raises(ConfigError, match="not three topics"):
        brokers.topics()


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "No such file"), ("# well\n\nsecurity.protocol", "line 3 is not name=value")],
    ids=["absent", "odd"],
)
def test_properties__cannot_be_read__the_file_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, problem: str
) -> None:
    path = workspace / "kafka.properties"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("EVERGREEN_KAFKA", "127.0.0.1:1")
    monkeypatch.setenv("EVERGREEN_KAFKA_PROPERTIES", str(path))
    forget()
    with pytest.raises(ConfigError, match=problem):
        brokers.producer()
