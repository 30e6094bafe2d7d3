"""Where a failed or late run becomes an alert, and the channels that Airflow's connections describe.

`failed` is the DAGs' `on_failure_callback` (in the DAG processor), `late` the callback of their deadline (in the triggerer).
Connections: ``evergreen_smtp`` and ``evergreen_slack``; see docs/alerts.md. One that does not exist is no fault.
"""

from __future__ import annotations

import asyncio
import html
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from ml.alerts import Alert

SMTP, SLACK = "evergreen_smtp", "evergreen_slack"
"""Airflow's connections."""
SLACK_SECONDS = 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mail:
    """Mail by Airflow's SMTP provider; the connection's extra has ``from_email`` and ``to`` (addresses, separated by commas)."""

    name: str = SMTP

    async def send(self, alert: Alert) -> None:
        from airflow.providers.smtp.hooks.smtp import SmtpHook

        addresses = _addresses(await _connection(SMTP))
        async with SmtpHook(SMTP) as hook:
            await hook.asend_email_smtp(to=addresses, subject=alert.subject, html_content=f"<pre>{html.escape(alert.text)}</pre>")


@dataclass(frozen=True)
class Slack:
    """An incoming webhook; its whole URL is the connection's password."""

    name: str = SLACK

    async def send(self, alert: Alert) -> None:
        import httpx

        url = (await _connection(SLACK)).password
        if not url:
            raise ValueError(f"connection {SLACK} has no password: put the webhook's URL there")
        text = f"*{alert.subject}*\n{alert.text}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        async with httpx.AsyncClient(timeout=SLACK_SECONDS) as client:
            answer = await client.post(url, json={"text": text})
        if answer.status_code != 200:  # an error that httpx raises would name the URL, which is a secret
            raise ConnectionError(f"the webhook answered {answer.status_code}: {answer.text[:200]}")


def _addresses(connection: Any) -> list[str]:
    """Whom the SMTP connection's extra names.

    Raises:
        ValueError: nobody.
    """
    addresses = [address.strip() for address in connection.extra_dejson.get("to", "").split(",") if address.strip()]
    if not addresses:
        raise ValueError(f'connection {SMTP} names nobody: add "to": "oncall@example.org" to its extra')
    return addresses


async def _connection(name: str) -> Any:
    from airflow.sdk.bases.hook import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    from ml.alerts import NotSetUpError

    try:
        return await BaseHook.aget_connection(name)
    except AirflowNotFoundException:
        raise NotSetUpError(name) from None


def failed(context: Any) -> None:
    """Tells that a run failed; Airflow calls it with the context of the task that failed last, if there is one."""
    from ml import alerts, ledger, runs

    run, dag = context.get("dag_run"), context["dag"].dag_id
    what = f"run {context['run_id']} failed ({context.get('reason') or 'no reason given'})" + _blamed(context)
    alert = alerts.alert(
        "failed", dag, context["run_id"], what, link(dag, context["run_id"]), getattr(run, "clear_number", 0) or 0
    )
    with ledger.acting(runs.actor(run.run_type, run.triggering_user_name) if run else ledger.NOBODY):
        asyncio.run(alerts.tell(alert, [Mail(), Slack()]))


async def late(context: dict[str, Any]) -> str:
    """Tells that a run is late. Of a backfill nobody waits for a day at its time, and a failed run was told as such.

    Returns:
        What it did, for Airflow's record of the callback.
    """
    from ml import alerts, ledger, runs

    run = context["dag_run"]
    due = datetime.fromisoformat(str(context["deadline"]["deadline_time"])).astimezone(UTC)
    dag, run_id = run["dag_id"], run["dag_run_id"]
    if run["run_type"] == "backfill" or run["state"] == "failed":
        return f"not told: {run['run_type']} run in state {run['state']}"
    what = f"run {run_id} was due to have ended by {due:%Y-%m-%d %H:%M} UTC and is {run['state']}"
    alert = alerts.alert("late", dag, run_id, what, link(dag, run_id))
    with ledger.acting(runs.actor(run["run_type"], run["triggering_user_name"])):
        outcomes = await alerts.tell(alert, [Mail(), Slack()])
    return "told before" if outcomes is None else str(outcomes)


async def mail_page(key: str, subject: str, page: bytes) -> str:
    """Mails a page to whom connection ``evergreen_smtp`` names, unless the ledger has it as mailed; returns what became of it.

    It is noted after it was sent: a crash in between sends it again, which is better than not at all.
    """
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    from ml import ledger
    from ml.alerts import DELIVERED, DELIVERY, NOT_SET_UP, NotSetUpError

    if ledger.has(key):
        return "mailed before"
    try:
        addresses = _addresses(await _connection(SMTP))
    except NotSetUpError:
        return NOT_SET_UP
    async with SmtpHook(SMTP) as hook:
        await hook.asend_email_smtp(to=addresses, subject=subject, html_content=page.decode())
    ledger.record(DELIVERY, key, ledger.data_now(), subject, DELIVERED, f"mailed to {len(addresses)}", {"to": addresses})
    return f"mailed to {', '.join(addresses)}"


def link(dag: str, run_id: str) -> str:
    """The run's page in Airflow."""
    from airflow.configuration import conf

    base = conf.get("api", "base_url", fallback="") or "http://localhost:8080"
    return f"{base.rstrip('/')}/dags/{quote(dag, safe='')}/runs/{quote(run_id, safe='')}"


def _blamed(context: Any) -> str:
    """The task that failed last, and what it said."""
    task = context.get("ti")
    if task is None:
        return ""
    index = task.map_index if task.map_index is not None else -1
    try:
        said = task.xcom_pull(task_ids=task.task_id, key="why", map_indexes=index)
    except Exception as error:  # the alert matters more than its best wording
        log.warning("cannot read why %s failed: %s", task.task_id, error)
        said = None
    return f": task {task.task_id}: {said}" if said else f": task {task.task_id}"
