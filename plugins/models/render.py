"""Templates to pages: everything that is filled in is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plugins.models import actions

NAVIGATION = {
    "": "Overview", "timeline": "Timeline", "versions": "Versions", "drift": "Drift", "dates": "Dates", "ledger": "Ledger",
}  # fmt: skip
"""Name of each page by its path."""
LABELS = {"log_loss": "log-loss", "auc": "AUC", "f1": "F1", "average_precision": "average precision"}


def _environment() -> Environment:
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(number=number, moment=moment, label=label, part=lambda text: quote(str(text), safe=""), query=urlencode)
    return made


def number(value: float | None, digits: int = 4) -> str:
    """A figure with about so many digits; – for None.

    >>> [number(v) for v in (0.71234, 12795, 14.0, 2, 1e-7, None, True)]
    ['0.7123', '12,795', '14', '2', '1e-07', '–', 'yes']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def moment(value: datetime | str | None) -> str:
    """To the minute, UTC; – for None."""
    if not value:
        return "–"
    return f"{datetime.fromisoformat(value) if isinstance(value, str) else value:%Y-%m-%d %H:%M}"


def label(metric: str) -> str:
    """A metric's name in words."""
    return LABELS.get(metric, metric.replace("_", " "))


def inside(scope: Mapping[str, Any]) -> str:
    """The path below the pages' own address, whether a proxy before Airflow has cut off the path that Airflow lies under or not.

    >>> inside({"path": "/airflow/models/drift/x", "root_path": "/airflow/models", "app_root_path": "/airflow"})
    'drift/x'
    >>> inside({"path": "/models/drift/x", "root_path": "/airflow/models", "app_root_path": "/airflow"})
    'drift/x'
    """
    mount = str(scope.get("root_path", "")).removeprefix(str(scope.get("app_root_path", "")))
    return str(scope["path"]).partition(mount)[2].strip("/") if mount else str(scope["path"]).strip("/")


TEMPLATES = _environment()


def render(request: Request, template: str, status: int = 200, *, user: Any, **context: Any) -> HTMLResponse:
    """The page.

    Args:
        user: who reads it, None for a page that says why there is none; actions are for those who may act.
        context: what the template shows; ``tab``: it stands on a DAG's or run's page, without navigation of its own.
    """
    about = {
        "base": str(request.scope.get("root_path", "")).rstrip("/"),
        "airflow_base": str(request.scope.get("app_root_path", "")).rstrip("/"),
        "navigation": NAVIGATION,
        "here": inside(request.scope).partition("/")[0],
        "tab": False,
        "user": user.get_name() if user else "",
        "can_act": (acts := user is not None and actions.can_act(user)),
        "token": actions.action_token(user) if acts else "",
    }
    return HTMLResponse(TEMPLATES.get_template(template).render(**about | context), status)
