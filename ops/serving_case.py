"""What ``make bench-serving`` measures: the model, the rows, and the contenders as processes that are pinned to one core."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from ml.config import ROOT, load_params, settings
from ml.refs import Recipe, Window
from ops import serving_peers
from ops.bench_features import landed, say
from ops.load import post

ROUNDS, DEPTH = 150, 7
FLIGHTS = 600
ZIPF = 1.1
ORDER = 100_003
"""Requests that are drawn before they repeat."""
READY_SECONDS = 120
TOLERANCE = 1e-5
CORES = os.sched_getaffinity(0)
Row = dict[str, Any]


class ContenderError(Exception):
    """It does not start, answers wrongly, or breaks off."""


@dataclass(frozen=True)
class Case:
    """One model in `folder` and as a deployed bundle; rows as they come, and the same rows as features."""

    folder: Path
    bundle: bytes
    raw: list[Row]
    given: list[Row]
    """Features with 0 for a missing number, which not every protocol can say."""
    of_raw: np.ndarray
    """The right probabilities, shape (n,)."""
    of_given: np.ndarray
    numeric: list[str]
    text: list[str]
    name: str


def make(first: date, end: date) -> Case:
    """Learns a model from the landed days, deploys it, and writes a tick of the online store."""
    from ml import store
    from ml.features import days, history, inputs, stored
    from ml.features.assembly import Assembler
    from ml.features.definitions import load_module
    from ml.features.online import open_store
    from ml.packaging.bundle import Bundle, Example, build
    from ml.packaging.graph import export
    from ml.serving import manifest
    from ml.training.fit import fit_model

    began, params = time.monotonic(), load_params()
    module = load_module(params)
    root, version = landed(end)
    window = Window(start=first + timedelta(days=3), end=end - timedelta(days=3))
    known = datetime.combine(end, datetime.min.time()) + timedelta(days=3)
    rows = stored.read(stored.build(root, version, window, known))
    recipe = Recipe(family="xgboost", params={"max_depth": DEPTH, "learning_rate": 0.05, "min_child_weight": 5})
    fitted = fit_model(rows, window, module.learned, params, recipe, ROUNDS)
    model = export(fitted)
    tick = datetime.combine(end - timedelta(days=2), datetime.min.time()) + timedelta(hours=12)
    found = days.histories(params, inputs.landed(root, version.last_day), tick, tick)
    online = open_store(settings().online)
    online.write(tick, {view.name: history.last_values(view, found[view.name], tick) for view in module.views})
    raw = flights(root, tick, known)
    folder = settings().var / "bench"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    threshold, numeric, text = params.serving.threshold, fitted.encoding.numeric, fitted.encoding.text
    (folder / "columns.json").write_text(json.dumps({"numeric": numeric, "text": text, "threshold": threshold}))
    serving_peers.save_for_mlflow(model, folder, list(numeric), list(text))
    os.environ[serving_peers.HOME] = str(folder)
    assembled = Assembler(params).assemble(online, raw)
    if flagged := sum(map(bool, assembled.flags)):
        raise ContenderError(f"{flagged} of {len(raw)} rows have flags, {assembled.flags[0]}: the store does not suit the rows")
    peer = serving_peers.Model()
    features = [{name: row[name] for name in numeric + text} for row in assembled.features]
    given = [{n: (0.0 if v is None else v) for n, v in row.items()} for row in features]
    of_raw, of_given = (np.array([peer.answer(row).probability for row in some]) for some in (features, given))
    spec = params.tables[params.problem.table]
    raw = [plain(row) for row in raw]
    bundle = build(
        name=params.problem.name, model=model, task=params.problem.task, numeric=numeric, text=text, threshold=threshold,
        request={c: t for c, t in spec.columns.items() if c not in spec.outcomes},
        params=params.model_dump(mode="json", include={"problem", "tables", "features", "serving"}),
        climatology=fitted.climatology, lineage={"made": "by make bench-serving"}, profile=b"{}",
        examples=[Example(request=raw[0], features=features[0], probability=float(of_raw[0]))],
    )  # fmt: skip
    deployed = manifest.Deployed(version="1", bundle=store.put(bundle), model=Bundle.from_bytes(bundle).card.model_digest)
    manifest.promote(deployed, tick, "bench-serving", "to be measured", "bench-serving")
    say(f"model: {ROUNDS} trees of depth {DEPTH} on {fitted.learned.rows:,} rows, {len(numeric) + len(text)} features, graph of "
        f"{len(model) / 1e6:.1f} MB; {len(raw)} rows to ask; {time.monotonic() - began:.0f} s")  # fmt: skip
    return Case(folder, bundle, raw, given, of_raw, of_given, list(numeric), list(text), params.problem.name)


def flights(root: Path, tick: datetime, known: datetime) -> list[Row]:
    """Real rows of the days around the tick, moved to the hour that the tick is made for, so that no answer is flagged."""
    from ml.data import rows

    params = load_params()
    spec = params.tables[params.problem.table]
    hour = tick + timedelta(hours=params.problem.lead_hours)
    near = rows.problem_rows(root, tick - timedelta(hours=36), tick + timedelta(hours=36), known)
    columns = [c for c in spec.columns if c not in spec.outcomes]
    distinct = {tuple(row[c] for c in params.problem.id): row for row in near.select(columns).to_pylist()}
    drawn = np.random.default_rng(0).permutation(len(distinct))[:FLIGHTS]
    every = list(distinct.values())
    return [every[i] | {"time_hour": hour} for i in drawn]


def plain(row: Row) -> Row:
    """The row as JSON can say it."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


# ---- contenders


@dataclass(frozen=True)
class Contender:
    """A server to be measured.

    `command`: of case and port. `body`: of case and row number. `probability`: from the answer's JSON; None: it has none.
    `raw`: it is asked with raw rows.
    """

    name: str
    about: str
    command: Callable[[Case, int], list[str]]
    path: str
    """``{name}`` in it stands for the model's name."""
    body: Callable[[Case, int], Any]
    probability: Callable[[Any], float] | None
    raw: bool = False
    environment: Callable[[int], dict[str, str]] = field(default=lambda port: {})


def _uvicorn(factory: str) -> Callable[[Case, int], list[str]]:
    fixed = ["--factory", "--host", "127.0.0.1", "--no-access-log", "--log-level", "warning"]
    return lambda case, port: _python("uvicorn", f"ops.serving_peers:{factory}", *fixed, "--port", str(port))


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _bentoml(case: Case, port: int) -> list[str]:
    return _python("bentoml", "serve", "ops.serving_bento:Plain", "--host", "127.0.0.1", "--port", str(port))


def _mlflow(kind: str) -> Callable[[Case, int], list[str]]:
    fixed = ["--env-manager", "local", "--workers", "1", "--host", "127.0.0.1"]
    return lambda case, port: _python("mlflow", "models", "serve", "-m", str(case.folder / kind), *fixed, "--port", str(port))


def _evergreen(case: Case, port: int) -> list[str]:
    return [sys.executable, "-c", "from ml.cli import main; main()", "serve"]


def _tensors(case: Case, i: int) -> tuple[list[Any], list[Any]]:
    return [case.given[i][n] for n in case.numeric], [case.given[i][n] for n in case.text]


def _infer_body(case: Case, i: int) -> Any:
    numeric, text = _tensors(case, i)
    return {
        "inputs": [
            {"name": "numeric", "shape": [1, len(numeric)], "datatype": "FP32", "data": numeric},
            {"name": "text", "shape": [1, len(text)], "datatype": "BYTES", "data": text},
        ]
    }


def _tensors_body(case: Case, i: int) -> Any:
    numeric, text = _tensors(case, i)
    return {"inputs": {"numeric": [numeric], "text": [text]}}


def _columns_body(case: Case, i: int) -> Any:
    return {"dataframe_split": {"columns": list(case.given[i]), "data": [list(case.given[i].values())]}}


def _raw_body(case: Case, i: int) -> Any:
    return case.raw[i]


def _given_body(case: Case, i: int) -> Any:
    return case.given[i]


def _probability(answer: Any) -> float:
    return float(answer["probability"])


def _port(port: int) -> dict[str, str]:
    return {"EVERGREEN_HOST": "127.0.0.1", "EVERGREEN_SERVING_PORT": str(port)}


CONTENDERS = (
    Contender("echo", "bare ASGI echo (floor)", _uvicorn("echo"), "/predict", _given_body, None),
    Contender("predict", "Evergreen `/predict`: raw row", _evergreen, "/predict", _raw_body, _probability, True, _port),
    Contender("infer", "Evergreen v2 `infer`: features given", _evergreen, "/v2/models/{name}/infer", _infer_body,
              lambda answer: float(answer["outputs"][0]["data"][0]), environment=_port),
    Contender("fastapi", "FastAPI + ONNX Runtime: features given", _uvicorn("plain"), "/predict", _given_body, _probability),
    Contender("fastapi-raw", "FastAPI + ONNX Runtime + our features: raw row", _uvicorn("plain_raw"), "/predict", _raw_body,
              _probability, True),
    Contender("bentoml", "stock BentoML service: features given", _bentoml, "/predict",
              lambda case, i: {"row": case.given[i]}, _probability),
    Contender("mlflow", "`mlflow models serve`: features given, named columns", _mlflow("columns"), "/invocations",
              _columns_body, lambda answer: float(answer["predictions"][0])),
    Contender("mlflow-tensors", "`mlflow models serve`, ONNX flavour: features given, two tensors", _mlflow("tensors"),
              "/invocations", _tensors_body, lambda answer: float(answer["predictions"]["probability"][0][0])),
)  # fmt: skip


def path_of(contender: Contender, case: Case) -> str:
    return contender.path.format(name=case.name)


@dataclass(frozen=True)
class Server:
    """A running contender. `requests`: in the order in which they are sent."""

    contender: Contender
    case: Case
    port: int
    pid: int
    requests: list[bytes]

    @property
    def path(self) -> str:
        return path_of(self.contender, self.case)

    def check(self) -> float:
        """Asks some rows and compares with the right answers; gives the largest difference.

        Raises:
            ContenderError: an answer is missing or wrong.
        """
        right = self.case.of_raw if self.contender.raw else self.case.of_given
        worst = 0.0
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10) as client:
            for i in range(0, len(right), 20):
                answer = client.post(self.path, json=self.contender.body(self.case, i))
                if answer.status_code != 200 or self.contender.probability is None:
                    raise ContenderError(f"HTTP {answer.status_code}: {answer.text[:200]}")
                worst = max(worst, abs(self.contender.probability(answer.json()) - right[i]))
        if worst > TOLERANCE:
            raise ContenderError(f"its probabilities differ from the model's by up to {worst:.2g}")
        return worst


@contextlib.contextmanager
def started(contender: Contender, case: Case, core: int) -> Iterator[Server]:
    """Runs a contender and its children on `core`, waits for its first answer, and ends it.

    Raises:
        ContenderError: there is no answer within `READY_SECONDS`, or the process ends.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = case.folder / f"{contender.name}.log"
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    mine, environment = os.sched_getaffinity(0), os.environ | paths | contender.environment(port)
    with log.open("wb") as out:
        os.sched_setaffinity(0, {core})  # children inherit it
        try:
            process = subprocess.Popen(contender.command(case, port), env=environment, stdout=out, stderr=out, cwd=ROOT)
        finally:
            os.sched_setaffinity(0, mine)
    try:
        _wait(process, contender, case, port, log)
        bodies = [json.dumps(contender.body(case, i), separators=(",", ":")).encode() for i in range(len(case.raw))]
        share = np.arange(1, len(bodies) + 1) ** -ZIPF
        order = np.random.default_rng(1).choice(len(bodies), ORDER, p=share / share.sum())
        wires = [post(path_of(contender, case), body) for body in bodies]
        yield Server(contender, case, port, process.pid, [wires[i] for i in order])
        if process.poll() is not None:
            raise ContenderError(f"it ended with {process.returncode}: {_tail(log)}")
    except OSError as error:
        raise ContenderError(f"{error}: {_tail(log)}") from error
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], contender: Contender, case: Case, port: int, log: Path) -> None:
    deadline, last = time.monotonic() + READY_SECONDS, "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ContenderError(f"it ended with {process.returncode}: {_tail(log)}")
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}{path_of(contender, case)}", json=contender.body(case, 0), timeout=5)
            if answer.status_code == 200:
                return
            last = f"HTTP {answer.status_code}: {answer.text[:200]}"
            if answer.status_code in (404, 405, 422):
                raise ContenderError(last)
        except httpx.TransportError as error:
            last = str(error)
        time.sleep(0.2)
    raise ContenderError(f"not ready after {READY_SECONDS} s ({last}): {_tail(log)}")


def _tail(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").splitlines()[-4:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=15)
        for each in alive:
            each.kill()
    process.wait()


@dataclass(frozen=True)
class Cpu:
    """CPU seconds: of the server and its children, and of all processes but these and this one (other guests included)."""

    server: float
    others: float

    def __sub__(self, before: Cpu) -> Cpu:
        return Cpu(self.server - before.server, self.others - before.others)


def cpu_seconds(pid: int) -> Cpu:
    """CPU used so far."""
    server = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            server += sum(process.cpu_times()[:2])
    whole = psutil.cpu_times()._asdict()
    busy = sum(seconds for kind, seconds in whole.items() if kind not in ("idle", "iowait", "guest", "guest_nice"))
    return Cpu(server, busy - server - sum(psutil.Process().cpu_times()[:2]))
