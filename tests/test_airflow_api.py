"""The client of Airflow's REST API, against a server that is busy at first."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest

from ops.airflow_api import Patient


class Busy(BaseHTTPRequestHandler):
    """Answers 500, then 503, then 200; and notes what it was asked."""

    asked: list[tuple[str, bytes]]

    def do_GET(self) -> None:
        self.asked.append((self.command, self.rfile.read(int(self.headers.get("content-length", 0)))))
        self.send_response([500, 503, 200][min(len(self.asked) - 1, 2)])
        self.send_header("content-length", "0")
        self.end_headers()

    do_PATCH = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[str]:
    Busy.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_patient__asks_again_with_the_same_body(method: str, busy: str) -> None:
    with httpx.Client(transport=Patient()) as client:
        assert client.request(method, busy, content=b"body").status_code == 200
    assert Busy.asked == [(method, b"body")] * 3


def test_patient__does_not_post_twice(busy: str) -> None:
    with httpx.Client(transport=Patient()) as client:
        assert client.post(busy, content=b"body").status_code == 500
    assert Busy.asked == [("POST", b"body")]
