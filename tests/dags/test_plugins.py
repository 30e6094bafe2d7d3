"""The pages behind the buttons and the check of forms: asked over a real socket, with Airflow's own login and permissions."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ml import store
from ml.settings import ROOT
from tests.conftest import forget

BROKEN = {"table": "flights", "column": None, "rule": "<script>", "severity": "critical", "detail": "3 of 845 rows"}
SERVER = """
import sys
sys.path.insert(0, {plugins!r})
import uvicorn
from fastapi import FastAPI, Request
import file_pages, form_check
from airflow.api_fastapi.app import init_auth_manager
root = FastAPI()
import airflow.models
from airflow import settings
from airflow.models.base import Base
airflow.models.import_all_models()
Base.metadata.create_all(settings.engine)
init_auth_manager(root)
root.mount("/evergreen/files", file_pages.serve)

@root.post("/api/v2/dags/{{dag_id}}/dagRuns")
async def run(dag_id: str, request: Request) -> dict:
    return {{"reached": dag_id, "body": (await request.body()).decode()}}

root.add_middleware(form_check.FormCheck)
uvicorn.run(root, host="127.0.0.1", port={port}, log_level="warning")
"""


@dataclass(frozen=True)
class Site:
    """The served pages, and the folders that they come from."""

    url: str
    var: Path
    cookies: dict[str, str]

    def get(self, path: str, login: bool = True) -> httpx.Response:
        """Asks for exactly this path: nothing in it is tidied up first."""
        with socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), timeout=30) as connection:
            cookie = f"Cookie: _token={self.cookies['_token']}\r\n" if login else ""
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{cookie}Connection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines[1:])]
        return httpx.Response(int(lines[0].split()[1]), headers=[h for h in headers if h[0] != "transfer-encoding"], content=body)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, airflow_home: Path) -> Iterator[Site]:
    """The two plugins behind Airflow's SimpleAuthManager."""
    folder = tmp_path_factory.mktemp("site")
    var = folder / "var"
    (var / "monitoring").mkdir(parents=True)
    (var / "monitoring" / "2013-04-18.html").write_text("<!doctype html><p>the day")
    (var / "monitoring" / ".index-1").write_text("half written")
    (var / "monitoring" / ".hidden.html").write_text("half written")
    (var / "monitoring" / "notes.txt").write_text("no page")
    (var / "ledger.html").write_text("secret")
    (var / "monitoring" / "out.html").symlink_to(var / "ledger.html")
    (var / "monitoring" / "in.html").symlink_to(var / "monitoring" / "2013-04-18.html")
    docs = var / "gx" / "docs" / "gx" / "uncommitted" / "data_docs" / "local_site"
    (docs / "static").mkdir(parents=True)
    (docs / "index.html").write_text("<!DOCTYPE html><head></head><p>Data Docs")
    results = var / "gx" / "results" / "landing"
    results.mkdir(parents=True)
    for name, broken in (("night-1", []), ("night-2", [BROKEN])):
        (docs / "validations" / "flights" / name / "now").mkdir(parents=True)
        (docs / "validations" / "flights" / name / "now" / "flights.html").write_text(f"<!doctype html>{name}")
        found = {"ref": {"run_name": name, "rows": {"flights": 842}}, "success": not broken, "broken": broken}
        (results / f"{name}.json").write_text(json.dumps(found))
    (docs / "static" / "look.css").write_text("p{color:red}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "passwords.json").write_text(json.dumps({"ada": "ada", "eve": "eve"}))
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "EVERGREEN_VAR": str(var),
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__API_AUTH__JWT_SECRET": "0" * 64,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ada:viewer,eve:",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "false",
    }
    code = SERVER.format(plugins=str(ROOT / "plugins"), port=port)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
        while True:
            try:
                httpx.get(url, timeout=5)
                break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        made = subprocess.run([sys.executable, "-c", TOKEN], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
        yield Site(url, var, {"_token": made.stdout.splitlines()[-1]})
    finally:
        process.kill()
        process.wait()


TOKEN = """
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
auth = init_auth_manager()
print(auth.generate_jwt(SimpleAuthManagerUser(username="ada", role="viewer")))
"""


def test_page__of_a_day_and_its_parts_are_served_with_guards(site: Site) -> None:
    page = site.get("/evergreen/files/monitoring/2013-04-18.html")
    assert (page.status_code, page.text) == (200, "<!doctype html><p>the day")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script" not in page.headers["content-security-policy"]
    assert "sandbox" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert site.get("/evergreen/files/monitoring/in.html").status_code == 200
    assert site.get("/evergreen/files/docs/index.html").text.endswith("</style></head><p>Data Docs")
    assert site.get("/evergreen/files/docs/static/look.css").headers["content-type"].startswith("text/css")


def test_data_docs__are_listed_and_a_landing_shows_its_broken_rules(site: Site) -> None:
    every = site.get("/evergreen/files/docs/")
    assert every.status_code == 200
    assert every.text.index("night-2") < every.text.index("night-1"), "the newest first"
    one = site.get("/evergreen/files/docs/?run=night-2").text
    assert "night-1" not in one
    assert "rules were broken" in one
    assert "842 flights" in one
    assert "&lt;script&gt;" in one
    assert "<script>" not in one
    (link,) = [part for part in one.split('"') if part.startswith("validations/")]
    assert site.get(f"/evergreen/files/docs/{link}").text == "<!doctype html>night-2"
    assert site.get("/evergreen/files/docs/?run=night-3").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/evergreen/files/monitoring/2013-04-18.html",
        "/evergreen/files/docs/index.html",
        "/evergreen/files/docs/",
        f"/evergreen/files/page/{'0' * 64}",
        f"/evergreen/files/bento/{'0' * 64}",
    ],
    ids=["day", "docs", "docs-list", "page", "bento"],
)
def test_page__without_a_login_is_refused(path: str, site: Site) -> None:
    assert site.get(path, login=False).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "monitoring/../ledger.html",
        "monitoring/%2e%2e/ledger.html",
        "monitoring/..%2fledger.html",
        "docs/../../../../../../ledger.html",
        "docs/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/ledger.html",
        "monitoring//etc/passwd",
        "monitoring/%2fetc%2fpasswd",
        "monitoring/out.html",
        "monitoring/.index-1",
        "monitoring/.hidden.html",
        "monitoring/notes.txt",
        "monitoring/",
        "monitoring/%00.html",
        "monitoring/2013-04-19.html",
        "page/..%2f..%2fledger.html",
        "page/" + "0" * 64,
        "page/" + "g" * 64,
        "bento/" + "0" * 64,
        "ledger.html",
        "",
    ],
)
def test_page__that_is_none_of_ours_is_not_there(path: str, site: Site) -> None:
    answer = site.get(f"/evergreen/files/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text
    assert "half written" not in answer.text


def test_page__from_the_store_is_served_by_digest_and_other_objects_are_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        member = tarfile.TarInfo("src/<b>service.py")
        member.size = 4
        file.addfile(member, io.BytesIO(b"pass"))
    with monkeypatch.context() as patch:
        patch.setenv("EVERGREEN_VAR", str(site.var))
        forget()
        page, model, bundle = store.put(b"<!doctype html><p>stored"), store.put(b"\x08\x0aonnx"), store.put(b"bundle")
        store.remember(f"bento-{bundle}", store.put(archive.getvalue()))
    forget()
    assert site.get(f"/evergreen/files/page/{page}").text == "<!doctype html><p>stored"
    assert site.get(f"/evergreen/files/page/{model}").status_code == 404
    bento = site.get(f"/evergreen/files/bento/{bundle}")
    assert bento.status_code == 200
    assert bundle in bento.text
    assert "src/&lt;b&gt;service.py" in bento.text


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"start": "2013-01-01"}, "only one of the two was given"),
        ({"start": "2013-01-02", "end": "2013-01-01"}, "start=2013-01-02 is not before end=2013-01-01"),
        ({"as_of": "2013-02-30T03:00:00"}, "day is out of range for month"),
    ],
    ids=["half", "backwards", "no-such-day"],
)
def test_form__that_does_not_fit_together_is_refused(conf: dict[str, str], said: str, site: Site) -> None:
    answer = httpx.post(f"{site.url}/api/v2/dags/ingest/dagRuns", json={"logical_date": None, "conf": conf})
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("dag", "content"),
    [
        ("ingest", b'{"conf": {"start": "2013-01-01", "end": "2013-01-02"}}'),
        ("ingest", b'{"conf": null}'),
        ("ingest", b"no json"),
        ("ingest", b"[1]"),
        ("ingest", b'{"conf": {"reason": "' + b"x" * 300_000 + b'"}}'),
        ("somebody_elses", b'{"conf": {"start": "2013-01-01"}}'),
    ],
    ids=["fits", "empty", "no-json", "no-object", "long", "other-dag"],
)
def test_form__passes_what_is_for_airflow_to_judge_unchanged(dag: str, content: bytes, site: Site) -> None:
    answer = httpx.post(f"{site.url}/api/v2/dags/{dag}/dagRuns", content=content)
    assert answer.json() == {"reached": dag, "body": content.decode()}


def test_plugins__are_light_and_know_the_dags_and_the_site(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, "plugins")
import airflow.plugins_manager
before = set(sys.modules)
import file_pages, form_check
heavy = [n for n in ("pandas", "mlflow", "great_expectations", "fastapi", "airflow.api_fastapi") if n in set(sys.modules) - before]
from pathlib import Path
from ml.data.validation import _docs_index
from ml.settings import settings
print(heavy, _docs_index().parent == settings().var / file_pages.DATA_DOCS)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] True"
    from plugins.form_check import ASKS

    names = {path.stem for path in (ROOT / "dags" / "docs").glob("*.md")}
    assert {name for name in names if ASKS.search(f"/api/v2/dags/{name}/dagRuns")} == names
