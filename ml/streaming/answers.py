"""From a record to its answer: the same code, and so the same answer, as that of ``POST /predict``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pydantic_core

from ml.serving.schema import RequestError
from ml.serving.service import NotReadyError, Service
from ml.streaming.records import BadRecordError, Record

ATTEMPTS = 3
"""How often a record is tried on which the service fails without a word."""
AGAIN_SECONDS = 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes to the predictions' topic: the body that ``POST /predict`` would send."""

    message_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that has no answer.

    Args:
        reason: ``no-value``, ``message-id``, ``invalid`` (the service would refuse it), ``failed`` or ``too-large``.
    """

    reason: str
    problem: str


Outcome = Answer | DeadLetter | None
"""None: the stream is to stop, and there was no model to ask."""


async def answers(service: Service, records: Sequence[Record], stopping: Callable[[], bool]) -> list[Outcome]:
    """One outcome for each record, in their order."""
    return list(await asyncio.gather(*(_answer(service, record, stopping) for record in records)))


async def _answer(service: Service, record: Record, stopping: Callable[[], bool]) -> Outcome:
    try:
        message_id = record.message_id()
        if record.value is None:
            raise BadRecordError("no-value", "a record without a value (a tombstone) asks nothing")
        return await _asked(service, message_id, record.value, stopping)
    except BadRecordError as error:
        return DeadLetter(error.reason, error.problem)


async def _asked(service: Service, message_id: str, body: bytes, stopping: Callable[[], bool]) -> Outcome:
    failures = 0
    while True:
        try:
            return Answer(message_id, pydantic_core.to_json(await service.predict(None, body, message_id)))
        except RequestError as error:
            if error.status < 500:
                raise BadRecordError("invalid", _text(error.detail)) from None
        except NotReadyError:  # the follower says why
            if stopping():
                return None
        except Exception as error:
            failures += 1
            logger.exception("record %s, attempt %d of %d", message_id, failures, ATTEMPTS)
            if failures == ATTEMPTS:
                raise BadRecordError("failed", f"{type(error).__name__}: {error}"[:1000]) from error
        await asyncio.sleep(AGAIN_SECONDS)


def _text(detail: object) -> str:
    return detail if isinstance(detail, str) else pydantic_core.to_json(detail).decode()
