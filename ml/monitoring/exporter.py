"""``evergreen exporter``: the loop's metrics for Prometheus, of ledger and monitoring store, so that they survive restarts.

Nothing is counted here: a scrape reads the ledger's new entries (`ml.monitoring.tally`) and the newest day's document. What
cannot be read makes the scrape fail, which Prometheus shows as ``up == 0``: a figure that is out of date would be worse.

Times are Unix seconds. Names with ``data`` or ``model`` are data time, in which a source that has ended stands still; all others
are the wall clock's. Absent means that nothing is known yet: no metric is ever made up.
"""

from __future__ import annotations

import json
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ml import ledger, store
from ml.config import Params, load_params
from ml.ledger import Entry
from ml.monitoring import drift, page, statsd
from ml.monitoring.policy import Phase, next_allowed
from ml.monitoring.tally import Labels, Tally
from ml.settings import settings

PHASES = get_args(Phase)
DAY = timedelta(days=1)
AIRFLOW_SECONDS = 2.0
"""For Airflow to answer in; well below Prometheus' own limit."""
LEVELS = get_args(drift.Verdict)


class Loop(Collector):
    """The loop's metrics; one instance reads each ledger entry once."""

    def __init__(self) -> None:
        self._tally, self._reading = Tally(), threading.Lock()
        self._document: tuple[str, dict[str, Any]] = ("", {})

    def collect(self) -> Iterator[Metric]:
        """One scrape's families.

        Raises:
            EvergreenError, sqlalchemy.exc.SQLAlchemyError: ledger or store does not answer.
        """
        with self._reading:  # two scrapes at once would fold an entry twice
            params = load_params()
            try:
                self._tally.fold(ledger.after(self._tally.last), params.problem.name)
            except Exception:
                self._tally = Tally()  # what was folded in part would be counted twice
                raise
            families = [*counts(self._tally, params), *states(self._tally, params, ledger.data_now()), *room(), airflow()]
            if self._tally.look is not None:
                families += list(day(self._read(self._tally.look)))
        yield from families

    def _read(self, look: Entry) -> dict[str, Any]:
        """The document of the day that the policy looked at last."""
        digest = look.evidence.get("report", "")
        if digest and digest != self._document[0]:
            self._document = (digest, json.loads(store.get(digest)))
        return self._document[1]


def serve(host: str, port: int, statsd_port: int = 0) -> Callable[[], None]:
    """Answers scrapes at ``/metrics`` from a thread of its own; returns what stops it.

    Args:
        statsd_port: UDP port where Airflow's own metrics are heard; 0: none.

    Raises:
        ConfigError: `statsd_port` is taken.
    """
    registry, deaf = CollectorRegistry(), lambda: None
    registry.register(Loop())
    if statsd_port:
        heard = statsd.Heard()
        registry.register(heard)
        deaf = statsd.listen(heard, host, statsd_port)
    server, thread = start_http_server(port, host, registry)

    def stop() -> None:
        deaf()
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


# ---- families


def counts(tally: Tally, params: Params) -> Iterator[Metric]:
    """What only grows."""
    yield _counter("runs", "DAG runs that ended", ("dag", "state", "trigger"), tally.runs)
    yield _counter("run_seconds", "wall time of DAG runs that ended", ("dag",), tally.run_seconds)
    yield _counter("step_seconds", "wall time of steps", ("dag", "step"), tally.step_seconds)
    yield _counter("step_cpu_seconds", "CPU time of steps", ("dag", "step"), tally.cpu_seconds)
    yield _counter("rows_landed", "rows that were published, again when they are landed again", ("table",), tally.landed)
    yield _counter("rows_quarantined", "rows that broke a rule and were not published", ("table",), tally.quarantined)
    named = ("kind", "verdict", "reason")
    yield _counter(
        "decisions", "decisions; reason is the check or cause that made it, none where there is none", named, tally.decisions
    )
    yield _counter("alerts", "alerts about DAG runs that people were told", ("dag", "kind"), tally.alerts)
    price = params.costs.cpu_hour / 3600
    by_dag: dict[Labels, float] = {}
    for (dag, _), seconds in tally.cpu_seconds.items():
        by_dag[(dag,)] = by_dag.get((dag,), 0.0) + seconds * price
    text = f"CPU hours of steps at costs.cpu_hour, {params.costs.currency}"
    yield _counter("compute_cost", text, ("dag",), by_dag)


def states(tally: Tally, params: Params, now: datetime) -> Iterator[Metric]:
    """How things stand; `now`: the present in data time."""
    ended = {labels: _unix(moment) for labels, moment in tally.ended.items()}
    yield _gauge("run_ended_timestamp_seconds", "end of the newest run that is no backfill", ("dag", "state"), ended)
    yield _gauge("step_peak_bytes", "most memory of the newest run's step", ("dag", "step"), tally.peak_bytes)
    yield _gauge("schedule_active", "1: nightly runs are due; 0: the source has ended (schedule.end)", (), {(): _due(params)})
    yield _gauge("ledger_entries", "entries of the ledger", (), {(): tally.entries})
    if tally.snapshot is not None:
        known = datetime.combine(tally.snapshot.last_day, datetime.min.time()) + DAY
        yield _gauge("data_until_timestamp_seconds", "end of the last day in the newest data version", (), {(): _unix(known)})
        yield _gauge("data_age_seconds", "data time since then", (), {(): (now - known).total_seconds()})
    yield from _champion(tally, now)
    if tally.look is not None:
        phases = {(phase,): float(tally.state.phase == phase) for phase in PHASES}
        yield _gauge("policy_phase", "1 for the phase that the retrain policy is in", ("phase",), phases)
        yield _gauge("policy_requests_week", "retrain requests of the last week", (), {(): len(tally.state.requests)})
        yield _gauge("policy_rejected_in_a_row", "retrains in a row that brought no champion", (), {(): tally.state.rejected})
        look = {(): _unix(tally.look.recorded_at)}
        yield _gauge("policy_look_timestamp_seconds", "when the policy last looked at a day", (), look)
        allowed = next_allowed(tally.state, tally.look.as_of, params.policy)
        if allowed is not None:
            text = "data time from which on time forbids no retrain; absent while a freeze or a retrain in flight does"
            yield _gauge("policy_next_allowed_data_timestamp_seconds", text, (), {(): _unix(allowed)})
    limit = params.policy.stale_days * DAY.total_seconds()
    yield _gauge("model_stale_seconds", "age from which a retrain is due (policy.stale_days)", (), {(): limit})
    held = tally.order is not None and tally.order.kind == "hold"
    yield _gauge("policy_held", "1: a person holds retrains", (), {(): held})


def _champion(tally: Tally, now: datetime) -> Iterator[Metric]:
    document = tally.manifest
    if document is None or document.champion is None:
        return
    serving = {"champion": (document.champion, 1.0 - document.canary_share)}
    if document.canary is not None:
        serving["canary"] = (document.canary, document.canary_share)
    shares = {(role, deployed.version): share for role, (deployed, share) in serving.items()}
    yield _gauge("model_share", "share of entities that a version answers, experiments apart", ("role", "version"), shares)
    if tally.champion_since is not None:
        since = {(): _unix(tally.champion_since)}
        yield _gauge("champion_since_timestamp_seconds", "since when the champion serves without a break", (), since)
    trained = tally.trained.get(document.champion.version)
    if trained is not None:
        yield _gauge("model_trained_data_timestamp_seconds", "as of when the champion was trained", (), {(): _unix(trained)})
        yield _gauge("model_age_seconds", "data time since then", (), {(): (now - trained).total_seconds()})


def day(document: Mapping[str, Any]) -> Iterator[Metric]:
    """The newest day that was watched; see `ml.monitoring.page.Day`."""
    known = page.measured(document)  # NaN and null are absent
    if not known:
        return
    watched = datetime.combine(date.fromisoformat(known["day"]), datetime.min.time())
    yield _gauge("watched_day_data_timestamp_seconds", "the last day that was watched", (), {(): _unix(watched)})
    failed = {check["name"]: float(check["passed"]) for check in known.get("health", [])}
    yield _gauge("data_check_passed", "data health: 1 passed, 0 failed", ("check",), {(name,): ok for name, ok in failed.items()})
    yield _gauge(
        "data_checks_broken", "failed checks that freeze retrains and promotions", (), {(): len(known.get("broken", []))}
    )
    for name, text in (("psi", "population stability index"), ("importance", "share of the model's importance")):
        values = {(one["name"],): one[name] for one in known.get("drifts", []) if name in one}
        yield _gauge(f"drift_{name}", f"{text}, by feature, against what the champion learned from", ("feature",), values)
    levels = {(one["name"],): LEVELS.index(one["verdict"]) for one in known.get("drifts", []) if one.get("verdict") in LEVELS}
    yield _gauge("drift_level", "by feature: 0 none, 1 small, 2 moderate, 3 large", ("feature",), levels)
    if "moved" in known:
        yield _gauge("drift_moved_share", "share of importance in features that drifted", (), {(): known["moved"]})
    if "psi" in known.get("prediction", {}):
        text = "population stability index of the model's answers"
        yield _gauge("drift_prediction_psi", text, (), {(): known["prediction"]["psi"]})
    yield from _quality(known)
    if "new_labels" in known:
        yield _gauge("new_labels", "rows with a label that the champion did not learn from", (), {(): known["new_labels"]})


def _quality(known: Mapping[str, Any]) -> Iterator[Metric]:
    estimate = known.get("estimate", {})
    for kind, figures in (("realised", known.get("overall", {})), ("estimated", estimate.get("metrics", {}))):
        values = {
            (metric, bound): figure[bound]
            for metric, figure in figures.items()
            for bound in ("value", "low", "high")
            if bound in figure
        }
        text = f"{kind} quality of the champion's answers, with its interval"
        yield _gauge(f"quality_{kind}", text, ("metric", "bound"), values)
    if "expected" in known:
        yield _gauge("quality_expected", "the champion's loss on its own holdout", (), {(): known["expected"]})
    if "valid" in estimate:
        yield _gauge(
            "quality_estimate_valid", "0: the estimate says itself that it cannot be trusted", (), {(): estimate["valid"]}
        )
    harm = known.get("harm", {})
    yield _gauge("harm", "1: the sequential test shows harm", (), {(): harm.get("verdict") == "harmed"})
    bounds = {(bound,): harm[name] for bound, name in (("value", "excess"), ("low", "low"), ("high", "high")) if name in harm}
    yield _gauge("harm_excess_loss", "loss beyond the yardstick's", ("bound",), bounds)


def room() -> Iterator[Metric]:
    """Disk that state lies on."""
    where = settings()
    used = {name: shutil.disk_usage(path) for name, path in (("var", where.var), ("data", where.data)) if path.exists()}
    yield _gauge(
        "disk_free_bytes", "free where EVERGREEN_VAR and EVERGREEN_DATA are", ("place",), {(n,): u.free for n, u in used.items()}
    )
    yield _gauge("disk_size_bytes", "and in all", ("place",), {(name,): usage.total for name, usage in used.items()})


def airflow() -> Metric:
    """Whether Airflow's components are well, by its API server's own account; that one is down if it does not answer."""
    well = {("api_server",): 0.0}
    url = f"{settings().airflow_url}/api/v2/monitor/health"
    try:
        with urllib.request.urlopen(url, timeout=AIRFLOW_SECONDS) as answer:
            told = json.load(answer)
    except (OSError, ValueError):
        pass  # that it does not answer is what is told
    else:
        well = {("api_server",): 1.0} | {
            (component,): float(state["status"] == "healthy") for component, state in told.items() if state.get("status")
        }
    return _gauge("airflow_healthy", "1: the component of Airflow is well", ("component",), well)


def _due(params: Params) -> bool:
    return params.schedule.end is None or datetime.now(UTC).date() <= params.schedule.end


def _unix(moment: datetime) -> float:
    return moment.replace(tzinfo=UTC).timestamp()


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    return _filled(CounterMetricFamily(f"evergreen_{name}", text, labels=labels), values)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    return _filled(GaugeMetricFamily(f"evergreen_{name}", text, labels=labels), values)


def _filled(family: Any, values: Mapping[Any, float]) -> Metric:
    for labels, value in sorted(values.items()):
        family.add_metric(labels, float(value))
    made: Metric = family
    return made
