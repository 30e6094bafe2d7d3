"""The transports that docs/lineage.md names, as it writes them: a real HTTP server, a real Kafka protocol, one file for several processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState

from ml.settings import ROOT, Settings
from ops import environment, kafka_mock
from tests.lineage_events import check, read

EVENT = RunEvent(
    eventType=RunState.START,
    eventTime="2013-01-01T00:00:00Z",
    run=Run("013c5b0c-5380-7a4d-8837-b509249aeadf"),
    job=Job("evergreen", "train.plan"),
    producer="urn:evergreen",
)
WRITE = """
import json, sys
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
client = OpenLineageClient(config={"transport": json.loads(sys.argv[1])})
print("ready", flush=True)
sys.stdin.readline()
for i in range(300):
    job = Job("evergreen", sys.argv[2] * (10_000 + 100 * i))
    run = Run("013c5b0c-5380-7a4d-8837-b509249aeadf")
    client.emit(RunEvent(eventTime="2013-01-01T00:00:00Z", producer="p", run=run, job=job, eventType=RunState.START))
"""


def _documented(kind: str) -> dict[str, Any]:
    found = re.findall(r"TRANSPORT='(\{.*?\})'", (ROOT / "docs" / "lineage.md").read_text(), flags=re.DOTALL)
    return next(transport for text in found if (transport := json.loads(text))["type"] == kind)


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """An address, and what was posted to it: path and body."""
    posted: list[tuple[str, dict[str, Any]]] = []

    class Catalogue(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, json.loads(body)))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *said: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Catalogue) as listening:
        threading.Thread(target=listening.serve_forever).start()
        yield f"http://127.0.0.1:{listening.server_port}", posted
        listening.shutdown()


def test_http__posts_each_event(server: tuple[str, list[tuple[str, dict[str, Any]]]]) -> None:
    address, posted = server
    transport = _documented("http") | {"url": address}
    OpenLineageClient(config={"transport": transport}).emit(EVENT)
    ((path, event),) = posted
    assert path == "/api/v1/lineage"
    check(event)


def test_kafka__gets_each_event(tmp_path: Path) -> None:
    with kafka_mock.running(tmp_path) as variables:
        address = {"bootstrap.servers": variables["EVERGREEN_KAFKA"]}
        transport = _documented("kafka") | {"config": address}
        OpenLineageClient(config={"transport": transport}).emit(EVENT)
        consumer = Consumer({**kafka_mock.PROPERTIES, **address, "group.id": "test", "auto.offset.reset": "earliest"})
        consumer.subscribe([transport["topic"]])
        message = consumer.poll(60)
        consumer.close()
    assert message is not None
    check(json.loads(message.value()))


def test_file__that_several_processes_write_to__keeps_lines_whole(tmp_path: Path) -> None:
    """What `make up` and `docker-compose.yml` rely on, of events longer than any buffer."""
    made = environment.airflow(Settings(var=tmp_path / "var"))["AIRFLOW__OPENLINEAGE__TRANSPORT"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, made, letter], **pipes) for letter in "abcd"]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 4  # they begin together
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0, 0]
    names = [event["job"]["name"] for event in read(Path(json.loads(made)["log_file_path"]))]
    assert sorted(names) == sorted(letter * (10_000 + 100 * i) for letter in "abcd" for i in range(300))
