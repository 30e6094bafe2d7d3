"""A small but real history: a month of flights landed, two models trained, one released, some days scored and watched."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from ml.settings import ROOT, Settings
from ops.airflow_api import Airflow, Run, RunFailedError
from ops.ports import free_port
from tests.e2e.conftest import SMALL, Place

DAYS = {"start": "2013-01-01", "end": "2013-01-25"}
FIRST = datetime(2013, 1, 21, 3)
WATCHED = [date(2013, 1, 21), date(2013, 1, 22), date(2013, 1, 23)]
RELEASED, ASKED = datetime(2013, 1, 21, 4), datetime(2013, 1, 24, 6)
DAGS = {"ingest", "features", "train", "release", "drift", "score", "online"}
USERS = {"admin": "a-word-of-the-admin", "viewer": "a-word-of-the-viewer"}
"""Passwords by user; the user's name is his role."""
APPROVAL = {"approval": True, "approval_hours": 2}


@dataclass
class House:
    """A place whose services run, and what has happened in it."""

    place: Place
    airflow: Airflow
    base: str
    runs: dict[str, Run] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: str = ""
    """Id of the run of `train` that failed."""
    waiting: str = ""
    """Id of the run of `release` that waits for a person."""

    def ask(self, code: str) -> Any:
        """What Python, with this place's settings, says about the ledger and the manifest; `code` is an expression."""
        names = "from ml import ledger; from ml.serving import manifest; import json; "
        return json.loads(self.place.python(f"{names}print(json.dumps({code}))"))

    def release(self, version: str, hour: int) -> str:
        """Starts a release on 24 January at `hour`, and returns the run's id."""
        return self.airflow.trigger("release", conf={"version": self.versions[version], "as_of": f"2013-01-24T{hour:02}:00:00"})

    def set_release(self, **changes: Any) -> None:
        """Changes the section `release` of the place's parameters; `Airflow` has to parse the DAG again."""
        path = self.place.settings.params
        params = yaml.safe_load(path.read_text())
        params["release"] |= changes
        path.write_text(yaml.safe_dump(params))


def empty_place(folder: Path) -> Place:
    """Settings and environment of a place in `folder`, with small parameters and two users; nothing runs yet."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section] |= values
    params["release"] |= APPROVAL
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    passwords = folder / "var" / "airflow" / "passwords.json"
    passwords.parent.mkdir(parents=True)
    passwords.write_text(json.dumps(USERS))
    ports = {"airflow_port": free_port(), "mlflow_port": free_port(), "serving_port": free_port()}
    paths: dict[str, Path] = {"var": folder / "var", "data": folder / "data", "params": folder / "params.yaml"}
    given = {f"EVERGREEN_{name.upper()}": str(value) for name, value in {**ports, **paths}.items()}
    given["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = ",".join(f"{user}:{user}" for user in USERS)
    return Place(Settings(**ports, **paths), {**os.environ, **given})


def make(place: Place, say: Any = lambda _: None) -> House:
    """Starts the services and runs the loop."""
    started = place.services("up")
    assert started.returncode == 0, started.stdout + started.stderr
    airflow = Airflow(say, place.settings)
    airflow.wait_for_dags(DAGS)
    house = House(place, airflow, f"http://127.0.0.1:{place.settings.airflow_port}")
    house.runs["ingest"] = airflow.run("ingest", conf=DAYS)
    with suppress(RunFailedError):  # nobody said as of when, and the source ended: the run fails at once
        airflow.follow("train", failed := airflow.trigger("train"))
    house.failed = failed
    house.runs["train"] = airflow.run("train", conf={"as_of": FIRST.isoformat(), "reason": "the first model"})
    house.versions["1"] = _version(house, "1")
    house.runs["release"] = _release(house)
    before = airflow.run_ids("train")
    _watch(house)
    house.runs["requested"] = airflow.follow_new("train", before)  # by then the first model is too old for the policy
    house.versions["2"] = _version(house, "2")
    house.waiting = house.release("2", ASKED.hour)
    return house


def _version(house: House, number: str) -> dict[str, Any]:
    """A registered version as if its gate had promoted it: so small a model may not pass."""
    found = house.place.python(f"from ml import tracking; print(tracking.version_ref({number!r}).model_dump_json())")
    return {**json.loads(found), "verdict": "promote"}


def _release(house: House) -> Run:
    """The first model goes out, with a person's yes."""
    run_id = house.airflow.trigger("release", conf={"version": house.versions["1"], "as_of": RELEASED.isoformat()})
    answer_when_asked(house.airflow, run_id, "approve", "Approve")
    return house.airflow.follow("release", run_id)


def _watch(house: House) -> None:
    end = WATCHED[-1] + timedelta(days=1)
    house.runs["score"] = house.airflow.run("score", conf={"start": WATCHED[0].isoformat(), "end": end.isoformat()})
    for day in WATCHED:
        as_of = f"{day + timedelta(days=1)}T05:00:00"
        house.runs["drift"] = house.airflow.run("drift", conf={"as_of": as_of})


def answer_when_asked(airflow: Airflow, run_id: str, task: str, option: str) -> None:
    """Answers a question of `release` as a person does, who has read it: not within the moment in which it is asked."""
    wait_for_question(airflow, run_id, task)
    body = {"chosen_options": [option], "params_input": {}}
    airflow.http.patch(f"/dags/release/dagRuns/{run_id}/taskInstances/{task}/-1/hitlDetails", json=body).raise_for_status()


def wait_for_question(airflow: Airflow, run_id: str, task: str, seconds: float = 120) -> None:
    """Until a run of `release` asks a person, and Airflow has booked that it does."""
    path = f"/dags/release/dagRuns/{run_id}/taskInstances/{task}"
    deadline = time.monotonic() + seconds
    while (state := airflow.http.get(path).json().get("state")) != "awaiting_input":
        assert time.monotonic() < deadline, f"{task} did not ask within {seconds} s: {state}"
        time.sleep(0.2)
    time.sleep(1.5)  # an answer within milliseconds resumes the task before Airflow has booked that it paused


def parse_again(airflow: Airflow, dag: str, seconds: float = 120) -> None:
    """Has a DAG file parsed with the present parameters, as the button *reparse* does."""
    seen = _parsed_at(airflow, dag)
    airflow.http.put(f"/parseDagFile/{airflow.http.get(f'/dags/{dag}').json()['file_token']}").raise_for_status()
    deadline = time.monotonic() + seconds
    while _parsed_at(airflow, dag) == seen:
        assert time.monotonic() < deadline, f"{dag} was not parsed again within {seconds} s"
        time.sleep(0.3)


def _parsed_at(airflow: Airflow, dag: str) -> str:
    return str(airflow.http.get(f"/dags/{dag}").json()["last_parsed_time"])
