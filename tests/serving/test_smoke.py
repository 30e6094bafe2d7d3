"""What a smoke test makes of a service's answers; that it boots the real Bento is tested with the Bento."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ml.packaging.bundle import Bundle
from ml.serving import smoke
from tests.sample_bundle import sample_bundle


class Service(ThreadingHTTPServer):
    """Answers like a service of the bundle, but falls back the first `slow` times that it is asked for each row."""

    def __init__(self, bundle: Bundle, slow: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bundle, self.slow, self.asked = bundle, slow, dict[str, int]()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/metadata":
            return 200, {"bundle": self.bundle.digest}
        if path == "/parity":
            return 200, {"probabilities": [example.probability for example in self.bundle.examples]}
        if "no_such_field" in body:
            return 422, {}
        row = json.dumps(body)
        self.asked[row] = self.asked.get(row, 0) + 1
        return 200, {"probability": 0.25, "flags": ["fallback_baseline"] * (self.asked[row] <= self.slow)}


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        status, answer = self.server.answer(self.path, json.loads(self.rfile.read(length)) if length else None)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Tests say what matters."""


@pytest.fixture
def bundle(workspace: None, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(smoke, "AGAIN_SECONDS", 0.01)
    return Bundle.from_bytes(sample_bundle())


@pytest.mark.parametrize(("slow", "failed"), [(0, []), (2, []), (3, ["answers"])])
def test_asked__model_falls_back_for_a_while__is_asked_again_but_not_for_ever(
    slow: int, failed: list[str], bundle: Bundle
) -> None:
    with Service(bundle, slow) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        checks = list(smoke._asked(f"http://127.0.0.1:{service.server_port}", bundle))
        service.shutdown()
    assert [check.name for check in checks] == ["bundle", "parity", "answers", "refuses"]
    assert [check.name for check in checks if not check.passed] == failed
