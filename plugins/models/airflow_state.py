"""What the pages ask of Airflow's own database: last runs, questions to people, assets. Only of DAGs that the reader may read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from airflow.api_fastapi.app import get_auth_manager
from airflow.models.asset import AssetModel
from airflow.models.dag import DagTag
from airflow.models.dagrun import DagRun, DagRunNote
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session

TAG = "evergreen"
"""Of the DAGs that the pages tell about."""
RECENT = 12
"""Runs of each DAG that are shown."""
ASSETS = ("raw_data", "retrain_request", "candidate", "champion")


@dataclass(frozen=True)
class Run:
    """A run of a DAG, newest first among its like."""

    dag_id: str
    run_id: str
    state: str
    start_date: datetime | None
    end_date: datetime | None
    logical_date: datetime | None
    note: str | None


@dataclass(frozen=True)
class Question:
    """A question that nobody has answered yet."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    subject: str
    since: datetime
    options: list[str]


def now(user: Any) -> dict[str, Any]:
    """runs (by DAG, newest first), questions (oldest first), assets (id by name). Four queries, whatever there is."""
    readable = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return {"runs": _runs(readable), "questions": _questions(readable), "assets": _assets()}


def questions(user: Any) -> list[Question]:
    """Those of DAGs that the reader may read, oldest first. Two queries."""
    return _questions(get_auth_manager().get_authorized_dag_ids(user=user, method="GET"))


def run(dag_id: str, run_id: str) -> Run | None:
    """One run; None where there is none. One query."""
    with create_session() as session:
        row = session.execute(_COLUMNS.where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)).first()
    return Run(*row) if row else None


_COLUMNS = sa.select(
    DagRun.dag_id, DagRun.run_id, DagRun.state, DagRun.start_date, DagRun.end_date, DagRun.logical_date, DagRunNote.content
).join(DagRunNote, DagRunNote.dag_run_id == DagRun.id, isouter=True)  # fmt: skip


def _runs(readable: set[str]) -> dict[str, list[Run]]:
    ours = sa.select(DagTag.dag_id).where(DagTag.name == TAG)
    place = sa.func.row_number().over(partition_by=DagRun.dag_id, order_by=DagRun.id.desc()).label("place")
    newest = sa.select(DagRun.id, place).where(DagRun.dag_id.in_(ours), DagRun.dag_id.in_(readable)).subquery()
    chosen = _COLUMNS.join(newest, newest.c.id == DagRun.id).where(newest.c.place <= RECENT)
    chosen = chosen.order_by(DagRun.dag_id, DagRun.id.desc())
    found: dict[str, list[Run]] = {}
    with create_session() as session:
        for row in session.execute(chosen):
            found.setdefault(row.dag_id, []).append(Run(*row))
    return found


def _questions(readable: set[str]) -> list[Question]:
    task = TaskInstance
    chosen = (
        sa.select(
            task.dag_id, task.run_id, task.task_id, task.map_index, HITLDetail.subject, HITLDetail.created_at, HITLDetail.options
        )
        .select_from(HITLDetail)
        .join(task, task.id == HITLDetail.ti_id)
        .where(HITLDetail.responded_at.is_(None), task.dag_id.in_(readable), task.end_date.is_(None))
        .order_by(HITLDetail.created_at)
    )
    with create_session() as session:
        return [Question(*row) for row in session.execute(chosen)]


def _assets() -> dict[str, int]:
    with create_session() as session:
        return dict(session.execute(sa.select(AssetModel.name, AssetModel.id).where(AssetModel.name.in_(ASSETS))).tuples().all())
