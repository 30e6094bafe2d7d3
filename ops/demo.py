"""``make demo``: from raw flights to a served champion, some days of life and a retrain, driven through Airflow.

Data time is 2013. Exit codes: 0 the loop was shown; 1 something failed, or nothing asked for a retrain; 2 it cannot start here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any

import httpx
import yaml

from ml import ledger
from ml.config import load_params
from ml.errors import EvergreenError
from ml.settings import ROOT, settings
from ops import demo_report, services
from ops.airflow_api import Airflow, Run

DAGS = {"ingest", "train", "release", "score", "drift", "online"}
HISTORY = (date(2013, 1, 1), date(2013, 4, 1))
QUIET_DAYS = (date(2013, 4, 1), date(2013, 4, 18))
LIVE_DAYS = (date(2013, 4, 18), date(2013, 4, 23))
RELEASE = {"steps": [0.5], "min_answers": 100, "max_score_shift": 0.12}
"""The demo's canary has one step, which pairs every row of the day. Its champion is three weeks old by then: a model that
learned from these weeks may answer further from it than the weekly refresh that the limit in params.yaml is for.
"""
TRAVELLERS = 8
"""So many ask about the same row, each with a request of their own, while a canary is judged."""
HOUR = timedelta(hours=1)
WHY = "the policy saw no harm in these days, and the demo shows a retrain"


@dataclass
class Chapter:
    """A part of the story: its wall time, and the Airflow runs in it."""

    title: str
    seconds: float = 0.0
    runs: list[Run] = field(default_factory=list)


class Story:
    """Tells the story, keeping time."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.chapters: list[Chapter] = []
        self.answers = 0
        self.requests: list[str] = []
        self.airflow: Airflow

    def tell(self) -> None:
        with self.chapter("start Airflow, MLflow and the prediction service"):
            services.up()
            self.airflow = Airflow(say)
            self.airflow.wait_for_dags(DAGS)
        with self.chapter(f"land, validate and snapshot {_span(HISTORY)}") as part:
            part.runs += [self.airflow.run("ingest", conf=_days(HISTORY))]
        with self.chapter("train the first model as of 1 April and release it") as part:
            first = datetime.combine(HISTORY[1], datetime.min.time()) + 3 * HOUR
            part.runs += self._train_and_release(
                lambda: self.airflow.run("train", first, {"reason": "the first model"}), first, must_release=True
            )[0]
        with self.chapter("ask it over HTTP"):
            self._hour(first + 9 * HOUR, show=2)
        with self.chapter(f"land {_span(QUIET_DAYS)} and score them") as part:
            part.runs += [self.airflow.run(dag, conf=_days(QUIET_DAYS)) for dag in ("ingest", "score")]
        self._live()
        if not self.requests:
            raise EvergreenError("a person's order was not followed", "look at `evergreen policy status`")

    def _live(self) -> None:
        """Hour by hour, in data time: online features and requests; at 02:00 yesterday is landed, at 05:00 it is watched.

        Where the policy finds no reason to retrain in these days, a person orders one on the last of them.
        """
        now = datetime.combine(LIVE_DAYS[0], datetime.min.time()) + 2 * HOUR
        for day in _each(LIVE_DAYS):
            with self.chapter(f"live {day:%-d %B}") as part:
                tomorrow = datetime.combine(day + timedelta(days=1), datetime.min.time())
                now = self._hours(now, tomorrow + 2 * HOUR)
                part.runs.append(self.airflow.run("ingest", now))
                now = self._hours(now, tomorrow + 5 * HOUR)
                if day == list(_each(LIVE_DAYS))[-1] and not self.requests:
                    self._order()
                runs, now = self._drift(now)
                part.runs += runs

    def _order(self) -> None:
        """Asks for a retrain as people do."""
        main = [sys.executable, "-c", "from ml.cli import main; main()"]
        order = ["policy", "force", "--by", "demo", "--reason", WHY]
        done = subprocess.run([*main, *order], capture_output=True, text=True, check=True, cwd=ROOT)
        say(f"    evergreen policy force: {done.stdout.strip()}")

    def _drift(self, now: datetime) -> tuple[list[Run], datetime]:
        """Judges drift, and trains and releases if it asks for that; returns the runs, and what time it is after them."""
        before = self.airflow.run_ids("train")
        drift = self.airflow.run("drift", now)
        decision = demo_report.latest("retrain", now)
        say(f"    drift says {decision.verdict}: {decision.reason}")
        say(f"    its note: {self.airflow.note(drift)}")
        if drift.states["request_retrain"] != "success":
            return [drift], now
        self.requests.append(f"{now:%-d %B}: {decision.reason}")
        runs, now = self._train_and_release(lambda: self.airflow.follow_new("train", before), now)
        return [drift, *runs], now

    def _train_and_release(self, train: Any, now: datetime, must_release: bool = False) -> tuple[list[Run], datetime]:
        before = self.airflow.run_ids("release")
        trained: Run = train()
        gate = demo_report.latest("gate")
        say(f"    the gate says {gate.verdict} for {gate.subject}: {gate.reason}")
        if trained.states["announce"] != "success":
            if must_release:
                raise EvergreenError(
                    f"the first model was not promoted: {gate.reason}", "a cold start that fails its gates serves nothing"
                )
            return [trained], now
        if must_release:  # nobody can ask yet
            released = self.airflow.follow_new("release", before)
        else:
            released, now = self._release_among_travellers(before, now)
        if released.states["promote"] == "success":
            self._wait_until_served(gate.subject.removeprefix("v"))
        return [trained, released], now

    def _release_among_travellers(self, before: set[str], now: datetime) -> tuple[Run, datetime]:
        """Follows the release. Life goes on meanwhile, hour by hour until 02:00, when the next day is due to be landed; a canary
        is judged by the answers that it gives.
        """
        told, asked = len(ledger.entries("canary")), 0
        due = datetime.combine(now.date() + timedelta(days=1), datetime.min.time()) + 2 * HOUR
        following = _aside(lambda: self.airflow.follow_new("release", before))
        while not following.done():
            asked += len(self._hour(min(now, due - HOUR), each_by=TRAVELLERS))
            now = min(now + HOUR, due)
            told = _tell_canary(told)
            time.sleep(0.05)  # at night nobody asks
        _tell_canary(told)
        say(f"    meanwhile {asked:,} predictions over HTTP, until {now:%-d %b %H:%M}")
        return following.result(), now

    def _wait_until_served(self, version: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while (about := _ask("GET", "/metadata").json()).get("model_version") != version:
            if time.monotonic() > deadline:
                raise EvergreenError(
                    f"the service has version {about.get('model_version')} {seconds:.0f} s after version {version} was promoted",
                    f"read {settings().var / 'logs' / 'serving.log'}",
                )
            time.sleep(0.1)
        say(f"    the service answers with version {version}")

    def _hours(self, now: datetime, until: datetime) -> datetime:
        began, asked, flagged = now, 0, 0
        while now < until:
            answers = self._hour(now)
            asked, flagged = asked + len(answers), flagged + sum(bool(a["flags"]) for a in answers)
            now += HOUR
            if asked and (now == until or now.hour % 6 == 0):
                say(
                    f"    {began:%-d %b %H:%M} – {now:%H:%M}  {asked:4} predictions over HTTP"
                    + (f", {flagged} flagged" if flagged else "")
                )
                began, asked, flagged = now, 0, 0
        return now

    def _hour(self, now: datetime, show: int = 0, each_by: int = 0) -> list[dict[str, Any]]:
        """Brings the online features up to `now`, and sends the rows whose prediction time lies in the hour that begins: in
        batches, or each row `each_by` times by itself.
        """
        from ml import steps

        rows = requests_of(now, now + HOUR)
        if rows:  # the store holds the values at one tick: an hour in which nobody asks can be left out
            steps.materialise(now)
        answers: list[dict[str, Any]] = []
        size = load_params().serving.max_batch
        batches = [[row] for row in rows] * each_by or [rows[start : start + size] for start in range(0, len(rows), size)]
        for batch in batches:
            answers += _ask("POST", "/predict", batch).json()
        for row, answer in zip(rows[:show], answers[:show], strict=True):
            say(f"    POST /predict {json.dumps(row)[:100]}…\n      → {json.dumps(answer)}")
        self.answers += len(answers)
        return answers

    @contextmanager
    def chapter(self, title: str) -> Iterator[Chapter]:
        part = Chapter(title)
        began = time.monotonic()
        say(f"\n[{began - self.began:5.0f} s] {title}")
        yield part
        part.seconds = time.monotonic() - began
        self.chapters.append(part)


def _aside(work: Callable[[], Run]) -> Future[Run]:
    """Does `work` on a thread that ends with the process: when the story breaks off, nobody waits for it."""
    future: Future[Run] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def requests_of(start: datetime, end: datetime) -> list[dict[str, Any]]:
    """The raw request fields of the rows whose prediction time lies in [start, end), as a caller would have them."""
    from ml.data import rows

    params = load_params()
    spec, lead = params.tables[params.problem.table], timedelta(hours=params.problem.lead_hours)
    live = rows.live_rows(params.problem.table, start + lead, end + lead, start)
    names = [column for column in spec.columns if column not in spec.outcomes]
    return [{name: _plain(value) for name, value in row.items()} for row in live.select(names).to_pylist()]


def _tell_canary(told: int) -> int:
    """Shows what the ledger has of canaries beyond the first `told` entries; returns how many there are now."""
    entries = ledger.entries("canary")
    for line in demo_report.canary_lines(entries[told:]):
        say(f"    {line}")
    return len(entries)


def own_parameters() -> None:
    """Has this process, and the services that it starts, use params.yaml with the canary of `RELEASE`."""
    params = yaml.safe_load(settings().params.read_text())
    params["release"] |= RELEASE
    path = settings().var / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    os.environ["EVERGREEN_PARAMS"] = str(path)
    settings.cache_clear()
    load_params.cache_clear()


def start_clean() -> None:
    """Removes what an earlier demo left; refuses to touch anything else.

    Raises:
        NotADemoError: ``var`` or ``data`` hold state that no demo made.
    """
    where = settings()
    marker = where.var / "demo"
    services.down(quiet=True)
    foreign = [path for path in (where.var / "ledger.db", where.data / "raw") if path.exists()]
    if foreign and not marker.exists():
        raise NotADemoError(
            f"{foreign[0]} was not made by a demo, and a demo starts clean",
            "move it away, or give the demo a place of its own: EVERGREEN_VAR=var-demo EVERGREEN_DATA=data-demo make demo",
        )
    for folder in (where.var, where.data):
        shutil.rmtree(folder, ignore_errors=True)
    where.var.mkdir(parents=True)
    marker.write_text("`make demo` made this folder and the data folder, and removes both when it starts again.\n")


class NotADemoError(EvergreenError):
    """There is somebody's work where the demo would start clean."""


def say(line: str) -> None:
    print(line, flush=True)


@cache
def _client() -> httpx.Client:
    where = settings()
    return httpx.Client(base_url=f"http://{where.host}:{where.serving_port}", timeout=30)


def _ask(method: str, path: str, body: Any = None) -> httpx.Response:
    answer = _client().request(method, path, json=body)
    if answer.is_error:
        raise EvergreenError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}", "read the serving log")
    return answer


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return None if value != value else value


def _days(span: tuple[date, date]) -> dict[str, str]:
    return {"start": span[0].isoformat(), "end": span[1].isoformat()}


def _span(span: tuple[date, date]) -> str:
    return f"{span[0]:%-d %B} – {span[1] - timedelta(days=1):%-d %B}"


def _each(span: tuple[date, date]) -> Iterator[date]:
    for offset in range((span[1] - span[0]).days):
        yield span[0] + timedelta(days=offset)


def main() -> int:
    story = Story()
    try:
        start_clean()
        own_parameters()
        story.tell()
    except EvergreenError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        if not isinstance(error, services.PortInUseError | NotADemoError):
            print("the services are still up, so that you can look; stop them with: make down", file=sys.stderr)
            return 1
        return 2
    say(demo_report.screen(story))
    return 0


if __name__ == "__main__":
    sys.exit(main())
