"""The contenders of ``make bench-serving``: how each is started, asked and read, as processes that are pinned to one core."""

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
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from ml.settings import ROOT
from ops.load import post
from ops.serving_case import Case, ContenderError

ZIPF = 1.1
ORDER = 100_003
"""Requests that are drawn before they repeat."""
READY_SECONDS = 120
TOLERANCE = 1e-5


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
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; that shows as failed requests
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            server += sum(process.cpu_times()[:2])
    whole = psutil.cpu_times()._asdict()
    busy = sum(seconds for kind, seconds in whole.items() if kind not in ("idle", "iowait", "guest", "guest_nice"))
    return Cpu(server, busy - server - sum(psutil.Process().cpu_times()[:2]))
