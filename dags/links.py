"""Buttons on finished tasks: where a person sees what the task made.

They run in the worker, after the task; what they return is what the browser opens. Without an outcome (the task failed) a button leads
to the first page of its place.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

FILES = "/evergreen/files"
"""Where ``plugins/file_pages.py`` serves pages that are files or objects of the store."""


def file_url(path: str) -> str:
    """Address of a page that the files plugin serves."""
    from airflow.sdk.configuration import conf

    return conf.get("api", "base_url", fallback="").rstrip("/") + f"{FILES}/{path}"


def _outcome(ti_key: Any) -> dict[str, Any]:
    """What the task returned; of a canary, the state of the release."""
    from airflow.sdk.execution_time.xcom import XCom

    return XCom.get_value(ti_key=ti_key, key="return_value") or {}


def _run_id(ti_key: Any) -> str | None:
    """The MLflow run of the version that a task names."""
    from ml import tracking

    outcome = _outcome(ti_key)
    if "run_id" in outcome or "version" not in outcome:
        return outcome.get("run_id")
    return tracking.version_ref(outcome["version"]).run_id


class RunLink(BaseOperatorLink):
    """The MLflow run of a version: parameters, metrics, tags, artifacts."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from ml import tracking

        return tracking.page(_run_id(ti_key))


class ReportLink(BaseOperatorLink):
    """The candidate's evaluation report."""

    name = "Evaluation report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from ml import tracking

        return tracking.page(_run_id(ti_key), "report.html")


class BentoLink(BaseOperatorLink):
    """What is in the version's Bento, and where it is."""

    name = "Bento"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from ml import tracking

        outcome = _outcome(ti_key)
        if "version" not in outcome:
            return tracking.page(None)
        bundle = outcome.get("bundle") or tracking.version_ref(outcome["version"]).bundle
        return file_url(f"bento/{bundle}")


class DriftReportLink(BaseOperatorLink):
    """The day's page, as this run wrote it."""

    name = "Drift report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        page = _outcome(ti_key).get("page")
        return file_url(f"page/{page}" if page else "monitoring/index.html")


class SummaryLink(BaseOperatorLink):
    """The week's page."""

    name = "Weekly summary"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        page = _outcome(ti_key).get("page")
        return file_url(f"page/{page}" if page else "monitoring/index.html")


class DataDocsLink(BaseOperatorLink):
    """What validation found in what was landed, rule by rule."""

    name = "Data Docs"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from airflow.sdk.execution_time.xcom import XCom

        landing = XCom.get_one(dag_id=ti_key.dag_id, run_id=ti_key.run_id, task_id="land", key="return_value")
        return file_url(f"docs/?run={quote(landing['key'])}" if landing else "docs/")


VERSION_LINKS = (RunLink(), ReportLink(), BentoLink())
"""For tasks whose outcome names a version."""
