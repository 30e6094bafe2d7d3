"""Grafana's dashboards as code: ``python -m ops.dashboards`` writes them to ``monitoring/dashboards/*.json``.

Each panel is a line of the tables below: title, queries with their legends, unit, kind, and what it says. Grafana reads the JSON
from a folder (provisioning) or by import; the data source is chosen there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from ml.settings import ROOT

FOLDER = ROOT / "monitoring" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
HEIGHT, WIDTH, STAT_WIDTH = 8, 12, 6  # of 24 columns


@dataclass(frozen=True)
class Panel:
    """One picture. `queries`: PromQL → legend."""

    title: str
    queries: dict[str, str]
    unit: str
    description: str
    kind: Literal["lines", "number"] = "lines"


def quantile(q: float, by: str = "le") -> str:
    metric = "evergreen_answer_seconds" if "model_version" in by else "evergreen_request_seconds"
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket[5m])))"


SERVICE = [
    Panel("Requests", {"sum by (status) (rate(evergreen_requests_total[5m]))": "{{status}}"}, "reqps", "By HTTP status."),
    Panel("Failed", {"job:evergreen_requests_failed:ratio_rate5m": "5xx"}, "percentunit", "Share of requests; pages from 5 % on."),
    Panel("Time of requests", {quantile(0.5): "p50", quantile(0.99): "p99"}, "s", "From body read to answer built; the budget is 0.1 s."),
    Panel("Time by version, p99", {quantile(0.99, "le, model_version, cohort"): "v{{model_version}} {{cohort}}"}, "s",
          "Beside one another where a canary or an experiment runs."),
    Panel("Rows answered", {"sum by (model_version, cohort) (rate(evergreen_predictions_total[5m]))": "v{{model_version}} {{cohort}}"},
          "rowsps", "By version and cohort."),
    Panel("Mean probability", {"version:evergreen_probability:mean_1h": "v{{model_version}} {{cohort}}"}, "percentunit",
          "Of an hour's answers: versions should not differ much on the same rows."),
    Panel("Probabilities, deciles of the last hour",
          {f"histogram_quantile({q / 10}, sum by (le) (rate(evergreen_probability_bucket[1h])))": f"{q}0 %" for q in (1, 3, 5, 7, 9)},
          "percentunit", "The distribution of what is answered."),
    Panel("Flags", {"flag:evergreen_flags:ratio_rate5m": "{{flag}}"}, "percentunit",
          "Share of rows: fallbacks, features missing or expired."),
    Panel("Features filled in", {"sum by (view) (rate(evergreen_features_filled_total[5m]))": "{{view}}"}, "rowsps",
          "Rows answered as if nothing were known of this view."),
    Panel("Models that did not answer", {"sum by (model_version, reason) (rate(evergreen_model_failures_total[5m]))": "v{{model_version}} {{reason}}"},
          "rowsps", "Each row falls down the ladder."),
    Panel("Prediction log", {"sum(rate(evergreen_predictions_logged_total[5m]))": "logged", "sum(rate(evergreen_predictions_dropped_total[5m]))": "dropped"},
          "rowsps", "Dropped: answered, but not logged."),
    Panel("Swaps and refusals", {"sum(increase(evergreen_swaps_total[1h]))": "taken into service", "sum(increase(evergreen_bundles_refused_total[1h]))": "refused"},
          "short", "Of an hour."),
]  # fmt: skip

QUALITY = [
    Panel("Champion", {'evergreen_model_share{role="champion"}': "v{{version}}"}, "percentunit", "Version, and its share of entities.", "number"),
    Panel("Age", {"evergreen_model_age_seconds": "since trained"}, "s", "Data time.", "number"),
    Panel("Harm", {"evergreen_harm": "shown"}, "bool_yes_no", "By the sequential test, beside a small model fitted daily.", "number"),
    Panel("Policy", {"evergreen_policy_phase == 1": "{{phase}}"}, "short", "The phase of the retrain policy.", "number"),
    Panel("Realised quality", {'evergreen_quality_realised{metric="auc"}': "AUC {{bound}}"}, "none", "Of the last matured days, with its interval."),
    Panel("Loss: realised, estimated, expected",
          {'evergreen_quality_realised{metric="log_loss", bound="value"}': "realised",
           'evergreen_quality_estimated{metric="log_loss", bound="value"}': "estimated, until labels mature",
           "evergreen_quality_expected": "on its own holdout"}, "none", "Log-loss; lower is better."),
    Panel("Excess loss", {"evergreen_harm_excess_loss": "{{bound}}"}, "none",
          "Beyond the yardstick's; harm is shown where the lower bound is above the margin."),
    Panel("Drift of features, PSI", {"topk(10, evergreen_drift_psi)": "{{feature}}"}, "none",
          "The ten that moved farthest from what the champion learned from."),
    Panel("Drift, weighted", {"evergreen_drift_moved_share": "share of importance", "evergreen_drift_prediction_psi": "PSI of answers"}, "none",
          "How much of what the model looks at has moved."),
    Panel("Decisions of the policy", {'sum by (verdict, reason) (increase(evergreen_decisions_total{kind="retrain"}[1w]))': "{{verdict}}: {{reason}}"},
          "short", "Of a week."),
    Panel("Gates", {'sum by (verdict, reason) (increase(evergreen_decisions_total{kind="gate"}[1w]))': "{{verdict}}: {{reason}}"}, "short",
          "Candidates of a week, with the first check that failed."),
    Panel("Labels to learn from", {"evergreen_new_labels": "rows"}, "short", "That the champion did not learn from."),
]  # fmt: skip

PIPELINE = [
    Panel("Data is", {"evergreen_data_age_seconds": "old"}, "s", "Since the end of the newest landed day.", "number"),
    Panel("Broken checks", {"evergreen_data_checks_broken": "checks"}, "short", "That freeze retrains and promotions.", "number"),
    Panel("Disk free", {"place:evergreen_disk_free:ratio": "{{place}}"}, "percentunit", "Where state lies.", "number"),
    Panel("Airflow", {"evergreen_airflow_healthy": "{{component}}"}, "bool_yes_no", "Components, by its own account.", "number"),
    Panel("Runs", {"sum by (dag, state) (increase(evergreen_runs_total[1d]))": "{{dag}} {{state}}"}, "short", "That ended within a day."),
    Panel("Hours since a run ended well", {'(time() - evergreen_run_ended_timestamp_seconds{state="success"}) / 3600': "{{dag}}"}, "h",
          "A ticket from 26 on, for the nightly DAGs."),
    Panel("Rows landed", {"sum by (table) (increase(evergreen_rows_landed_total[1d]))": "{{table}}"}, "short", "Within a day."),
    Panel("Rows in quarantine", {"sum by (table) (increase(evergreen_rows_quarantined_total[1d]))": "{{table}}"}, "short", "Within a day."),
    Panel("Time of runs", {"sum by (dag) (evergreen_run_seconds_total) / sum by (dag) (evergreen_runs_total)": "{{dag}}"},
          "s", "Mean of all."),
    Panel("Data checks", {"evergreen_data_check_passed": "{{check}}"}, "bool_yes_no", "Of the newest day that was watched."),
    Panel("Alerts told by Airflow", {"sum by (dag, kind) (increase(evergreen_alerts_total[1d]))": "{{dag}} {{kind}}"}, "short", "Failed and late runs."),
    Panel("Ledger", {"evergreen_ledger_entries": "entries"}, "short", "It only grows."),
]  # fmt: skip

COST = [
    Panel("Cost of a week", {"sum(increase(evergreen_compute_cost_total[1w]))": "all DAGs"}, "none", "In costs.currency of params.yaml.", "number"),
    Panel("CPU hours of a week", {"sum(increase(evergreen_step_cpu_seconds_total[1w])) / 3600": "all steps"}, "h", "Of steps; Airflow itself apart.", "number"),
    Panel("Cost by DAG", {"sum by (dag) (increase(evergreen_compute_cost_total[1d]))": "{{dag}}"}, "none", "Of a day."),
    Panel("CPU by step", {"topk(10, sum by (dag, step) (increase(evergreen_step_cpu_seconds_total[1d])))": "{{dag}} {{step}}"}, "s", "Of a day, the ten dearest."),
    Panel("Peak memory by step", {"topk(10, evergreen_step_peak_bytes)": "{{dag}} {{step}}"}, "bytes", "Of the newest run: what a worker must have room for."),
    Panel("CPU a training run", {'sum(evergreen_step_cpu_seconds_total{dag="train"}) / sum(evergreen_runs_total{dag="train"})': "mean"},
          "s", "Mean of all."),
]  # fmt: skip

STREAM = [
    Panel("Behind", {"job:evergreen_stream_behind:seconds": "at the pace of answers"}, "s", "A ticket from 5 minutes on.", "number"),
    Panel("Members", {'sum(up{job="stream"})': "that answer Prometheus"}, "short", "No more than partitions are of use.", "number"),
    Panel("Reading is paused", {"evergreen_stream_paused": "{{instance}}"}, "bool_yes_no", "No model, or brokers slower than answers.", "number"),
    Panel("Partitions", {"sum(evergreen_stream_partitions)": "owned"}, "short", "All of the topic, unless members change.", "number"),
    Panel("Lag", {"sum by (partition) (evergreen_stream_lag)": "partition {{partition}}"}, "short", "Records that are not answered."),
    Panel("Records", {"sum(rate(evergreen_stream_answered_total[5m]))": "answered",
                      "sum(rate(evergreen_stream_dead_letters_total[5m]))": "dead letters",
                      "sum(rate(evergreen_stream_repeated_total[5m]))": "found answered at a takeover"}, "reqps", "That need nothing more."),
    Panel("Time in–out", {f"histogram_quantile({q}, sum by (le) (rate(evergreen_stream_seconds_bucket[5m])))": f"p{q * 100:.0f}" for q in (0.5, 0.99)},
          "s", "From a record's timestamp to its answer's acknowledgement."),
    Panel("Dead letters", {"sum by (reason) (increase(evergreen_stream_dead_letters_total[1h]))": "{{reason}}"}, "short", "Of an hour."),
]  # fmt: skip


def mean(timer: str, by: str, window: str = "1h") -> str:
    return f"sum by ({by}) (rate(airflow_{timer}_seconds_sum[{window}])) / sum by ({by}) (rate(airflow_{timer}_seconds_count[{window}]))"


AIRFLOW = [
    Panel("DAGs", {"airflow_dagbag_size": "read"}, "short", "By the DAG processor.", "number"),
    Panel("Import errors", {"airflow_dag_processing_import_errors": "files"}, "short", "DAG files that cannot be read.", "number"),
    Panel("Runs", {"airflow_scheduler_dagruns_running": "running"}, "short", "DAG runs.", "number"),
    Panel("Reading all files", {"airflow_dag_processing_total_parse_time": "took"}, "s", "The DAG processor's last round.", "number"),
    Panel("Heartbeats a minute", {f"60 * rate(airflow_{part}_heartbeat_total[5m])": part.replace("_", " ") for part in ("scheduler", "dag_processor", "triggerer")},
          "short", "None: it hangs, or is gone. Of several, all together."),
    Panel("Scheduler's loop", {mean("scheduler_scheduler_loop_duration", "job", "5m"): "mean"}, "s", "What any task waits for between two others."),
    Panel("Tasks", {f"sum(airflow_ti_{state}) or vector(0)": state for state in ("scheduled", "queued", "running", "deferred")}, "short", "By state."),
    Panel("Pool slots", {f"airflow_pool_{state}_slots": f"{{{{pool}}}} {state}" for state in ("open", "queued", "running")}, "short",
          "None open: tasks wait for others to end."),
    Panel("Executor", {"airflow_executor_open_slots": "{{executor}} open", "airflow_executor_queued_tasks": "{{executor}} queued",
                       "airflow_executor_running_tasks": "{{executor}} running"}, "short", "Of two schedulers, in turn."),
    Panel("Tasks that failed", {'sum by (dag_id, task_id) (increase(airflow_ti_finish_total{state=~"failed|up_for_retry"}[1h]))': "{{dag_id}} {{task_id}}"},
          "short", "Tries, of an hour."),
    Panel("Tasks that were lost", {"sum(increase(airflow_task_instances_without_heartbeats_killed_total[1h])) or vector(0)": "their worker died",
                                   "sum(increase(airflow_scheduler_tasks_killed_externally_total[1h])) or vector(0)": "killed from outside"}, "short", "Of an hour."),
    Panel("Tasks that ended", {"sum by (state) (increase(airflow_ti_finish_total[1h]))": "{{state}}"}, "short", "Of an hour."),
    Panel("Time to be queued", {mean("task_scheduled_duration", "dag_id"): "{{dag_id}}"}, "s", "Mean of an hour: from due to given to the executor."),
    Panel("Time of DAG runs", {mean("dagrun_duration_success", "dag_id", "1d"): "{{dag_id}}"}, "s", "Mean of a day, of those that ended well."),
    Panel("Time to read a file", {mean("dag_processing_last_duration", "file_name"): "{{file_name}}"}, "s", "Mean of an hour."),
    Panel("Lines left out", {"sum by (reason) (increase(evergreen_statsd_dropped_total[1h]))": "{{reason}}"}, "short",
          "Of an hour. untagged: Airflow's variables are not sent as tags; full: too many series."),
]  # fmt: skip

ALL = {
    "service": ("Evergreen: service", SERVICE),
    "quality": ("Evergreen: model quality and drift", QUALITY),
    "pipeline": ("Evergreen: pipeline", PIPELINE),
    "cost": ("Evergreen: cost", COST),
    "stream": ("Evergreen: stream", STREAM),
    "airflow": ("Evergreen: Airflow", AIRFLOW),
}


def rendered(name: str) -> str:
    """The JSON of one dashboard."""
    title, panels = ALL[name]
    board = (
        dashboard.Dashboard(title)
        .uid(f"evergreen-{name}")
        .tags(["evergreen"])
        .refresh("1m")
        .time("now-7d" if name in ("quality", "pipeline", "cost") else "now-3h", "now")
        .timezone("utc")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("source").type("prometheus").label("Prometheus"))
    )
    for panel in panels:
        board = board.with_panel(_built(panel))
    return json.dumps(board.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _built(panel: Panel) -> stat.Panel | timeseries.Panel:
    made = stat.Panel() if panel.kind == "number" else timeseries.Panel()
    made = made.title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE)
    made = made.height(HEIGHT // 2 if panel.kind == "number" else HEIGHT).span(STAT_WIDTH if panel.kind == "number" else WIDTH)
    for letter, (query, legend) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        made = made.with_target(prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend))
    return made


def queries(*names: str) -> Iterator[tuple[str, str, str]]:
    """dashboard, panel, PromQL of every query of these dashboards."""
    for name in names:
        for panel in ALL[name][1]:
            for query in panel.queries:
                yield name, panel.title, query


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ALL:
        (folder / f"{name}.json").write_text(rendered(name))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()
