"""The smoke test: boots the real Bento as its users do and compares it with the recorded answers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from ml.packaging.bento import BentoError, archive_of, boot
from ml.packaging.bundle import Bundle
from ml.refs import Check, Decision, VersionRef
from ml.serving.predictor import PROBE_TOLERANCE
from ml.settings import settings

SANDBOX = {"EVERGREEN_SANDBOX": "1"}
TRIES, AGAIN_SECONDS = 3, 2.0
"""How often, and how long after one another, a recorded request is asked that the model did not answer."""


def smoke(version: VersionRef) -> Decision:
    """Smoke test of a registered version: its Bento from the store, or built again where that is gone.

    Raises:
        NotFoundError, IntegrityError: its bundle is not in the store, or damaged.
    """
    return smoke_bento(archive_of(version.bundle), Bundle.load(version.bundle))


def smoke_bento(archive: bytes, bundle: Bundle) -> Decision:
    """Boots a Bento in a sandbox and asks it the recorded examples.

    Online features have moved since the examples were recorded, so parity is asked on the recorded feature values (``/parity``),
    and the recorded requests (``/predict``) must be answered, by the model, with a probability.

    Args:
        archive: the exported ``.bento``.
        bundle: the bundle that must be in it.

    Returns:
        Decision "smoke", verdict "pass" or "fail": boots, bundle, parity, answers, refuses.
    """
    environment = SANDBOX | {"EVERGREEN_ONLINE": str(settings().online)}
    started = time.perf_counter()
    try:
        with boot(archive, environment) as base_url:
            seconds = time.perf_counter() - started
            checks = [
                Check(name="boots", passed=True, value=round(seconds, 2), threshold=None, n=1, detail="seconds until ready")
            ]
            checks += _asked(base_url, bundle)
    except BentoError as error:
        checks = [Check(name="boots", passed=False, value=None, threshold=None, n=1, detail=str(error))]
    failed = [check for check in checks if not check.passed]
    reason = (
        f"{failed[0].name}: {failed[0].detail}" if failed else f"the Bento answers {len(bundle.examples)} examples as recorded"
    )
    return Decision(kind="smoke", verdict="fail" if failed else "pass", reason=reason, checks=checks)


def _asked(base_url: str, bundle: Bundle) -> Iterator[Check]:
    n = len(bundle.examples)
    _, about = _call(f"{base_url}/metadata")
    found = about.get("bundle") if isinstance(about, dict) else None
    yield Check(name="bundle", passed=found == bundle.digest, value=None, threshold=None, n=1, detail=f"serves {found}")

    _, parity = _call(f"{base_url}/parity", [example.features for example in bundle.examples])
    answered = parity.get("probabilities", []) if isinstance(parity, dict) else []
    differences = [abs(got - example.probability) for got, example in zip(answered, bundle.examples, strict=False)]
    worst = max(differences) if n and len(differences) == n else None
    detail = "largest difference to the recorded probabilities" if worst is not None else f"{len(differences)} of {n} answered"
    passed = worst is not None and worst <= PROBE_TOLERANCE
    yield Check(name="parity", passed=passed, value=worst, threshold=PROBE_TOLERANCE, n=n, detail=detail)

    answers = [_answer(f"{base_url}/predict", example.request) for example in bundle.examples]
    good = sum(_is_answer(status, answer) for status, answer in answers)
    bad = next((f"{status} {answer}" for status, answer in answers if not _is_answer(status, answer)), "")
    detail = f"{good} of {n} requests answered by the model" + (f"; else {bad[:200]}" if bad else "")
    yield Check(name="answers", passed=0 < n == good, value=good / n if n else None, threshold=1.0, n=n, detail=detail)

    status, _ = _call(f"{base_url}/predict", {"no_such_field": 1})
    yield Check(
        name="refuses", passed=status == 422, value=float(status), threshold=422.0, n=1, detail="status of a wrong request"
    )


def _answer(url: str, request: Any) -> tuple[int, Any]:
    """Status and body of an answer; asked again when it was not the model's: on a busy machine the time budget may run out, and
    a package that cannot answer a row cannot do so later either.
    """
    for _ in range(TRIES - 1):
        status, answer = _call(url, request)
        if _is_answer(status, answer):
            return status, answer
        time.sleep(AGAIN_SECONDS)
    return _call(url, request)


def _is_answer(status: int, answer: Any) -> bool:
    if status != 200 or not isinstance(answer, dict) or "fallback_baseline" in answer.get("flags", []):
        return False
    probability = answer.get("probability")
    return isinstance(probability, float) and 0 <= probability <= 1


def _call(url: str, document: Any = None) -> tuple[int, Any]:
    """Status and JSON body; status 0 when there was no answer."""
    body = None if document is None else json.dumps(document).encode()
    token = settings().token.get_secret_value()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(error)
