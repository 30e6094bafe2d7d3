"""The log: one JSON object a line, where EVERGREEN_LOGS asks for it; of the service and the stream always.

Airflow writes the logs of its tasks itself, as JSON, into a file for each try; steps that it calls are in there.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from ml.settings import settings

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}  # the last: uvicorn's, for terminals
_CONTEXT = {
    "dag": "AIRFLOW_CTX_DAG_ID",
    "run_id": "AIRFLOW_CTX_DAG_RUN_ID",
    "task": "AIRFLOW_CTX_TASK_ID",
    "try": "AIRFLOW_CTX_TRY_NUMBER",
}
"""What Airflow tells the commands that a task starts."""

logger = logging.getLogger("evergreen")


class JsonFormatter(logging.Formatter):
    """time (UTC), level, logger, message; what a line says in ``extra=``, as ``request_id``; `dag`, `run_id`, `task` and `try` in
    what a task of Airflow started; and `error`, the traceback, when there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._context = {name: os.environ[variable] for name, variable in _CONTEXT.items() if os.environ.get(variable)}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= self._context | {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: int = logging.INFO) -> None:
    """Sends the log of this process to standard error, as JSON.

    Args:
        level: of other people's libraries; ours always tell from INFO on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("ml", "evergreen"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: logger.critical("%s", error, exc_info=(kind, error, trace))


def begin() -> None:
    """The log of a command: JSON where it is asked for, otherwise Python's own.

    Raises:
        ConfigError: a setting cannot be used.
    """
    if settings().logs != "text":
        configure(logging.WARNING)


def say(text: str, level: int = logging.INFO) -> None:
    """Tells the person, or the log, what a command did: a line on standard error."""
    if logging.root.handlers and isinstance(logging.root.handlers[0].formatter, JsonFormatter):
        logger.log(level, "%s", text)
    else:
        print(text, file=sys.stderr)
