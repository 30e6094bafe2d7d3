"""The Models pages in a browser's place: who may read them, what they carry, and that nothing hostile gets through."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import httpx
import pytest
from fastapi import Request

from ml.settings import ROOT
from ops.bench_pages import PAGES
from ops.pages_server import Server
from plugins.models.render import render

HTML = [path for path in PAGES.values() if "/data/" not in path]
FILES = [f"/models/static/{path.name}" for path in sorted((ROOT / "plugins" / "models" / "static").iterdir())]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def viewer(server: Server) -> httpx.Client:
    return server.client("viewer")


@pytest.mark.parametrize("path", [*PAGES.values(), *FILES])
def test_every_address__answers_a_viewer_with_its_headers(viewer: httpx.Client, path: str) -> None:
    answer = viewer.get(path)
    assert answer.status_code == 200, answer.text[:500]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"].startswith("private")


@pytest.mark.parametrize("path", HTML)
def test_pages__send_a_stranger_to_the_login_and_back(server: Server, path: str) -> None:
    answer = server.client().get(path)
    assert answer.status_code == 303
    assert "/auth/login?next=" in answer.headers["location"]
    assert httpx.URL(answer.headers["location"]).params["next"] == server.base + path
    assert answer.text == ""


@pytest.mark.parametrize("path", ["/models/data/summary", *FILES])
def test_data_and_files__refuse_a_stranger(server: Server, path: str) -> None:
    assert server.client().get(path).status_code == 401


def test_pages__refuse_a_stranger_that_is_no_browser(server: Server) -> None:
    assert httpx.get(f"{server.base}/models/", headers={"accept": "*/*"}).status_code == 401


@pytest.mark.parametrize("path", [*HTML, "/models/data/summary", *FILES])
def test_every_address__refuses_a_user_who_may_not_read_runs(server: Server, path: str) -> None:
    assert server.client("stranger").get(path).status_code == 403


def test_token__as_a_bearer_is_as_good_as_the_cookie(server: Server) -> None:
    headers = {"authorization": f"Bearer {server.token('viewer')}"}
    assert httpx.get(f"{server.base}/models/data/summary", headers=headers).json()["version"]


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
def test_token__that_is_none_is_refused(server: Server, token: str) -> None:
    client = server.client()
    client.cookies.set("_token", token)
    assert client.get("/models/data/summary").status_code in (401, 403)


@pytest.mark.parametrize(
    "path", ["/models/static/..%2fapp.py", "/models/static/app.py", "/models/static/", "/models/docs", "/models/openapi.json"]
)
def test_other_files__are_not_there(viewer: httpx.Client, path: str) -> None:
    assert viewer.get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/versions/99", 404),
        ("/models/versions/..%2f", 404),
        ("/models/ledger/0", 404),
        ("/models/ledger/x", 422),
        ("/models/drift/no_such", 404),
        ("/models/drift?until=2013-02-31", 400),
        ("/models/drift?days=0", 422),
        ("/models/ledger?since=yesterday", 400),
        ("/models/ledger?before=0", 422),
        ("/models/run?dag_id=drift", 422),
        ("/models/run?dag_id=no_such&run_id=x", 200),
    ],
)  # fmt: skip
def test_wrong_addresses__are_told_apart_from_faults(viewer: httpx.Client, path: str, status: int) -> None:
    assert viewer.get(path).status_code == status


class Tags(HTMLParser):
    """Tags with their attributes, and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", HTML)
def test_pages__load_nothing_from_elsewhere_and_hold_no_inline_code(viewer: httpx.Client, path: str) -> None:
    parser = Tags()
    parser.feed(viewer.get(path).text)
    for tag, attributes in parser.found:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name == "src" or (tag == "link" and name == "href"):
                assert value is not None
                assert value.startswith("/models/static/"), value
    assert [attributes.get("src") for tag, attributes in parser.found if tag == "script"] == ["/models/static/models.js"]
    ids = [attributes["id"] for _, attributes in parser.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert sum(tag == "h1" for tag, _ in parser.found) == (0 if "_id=" in path else 1)


@pytest.mark.parametrize("path", HTML)
def test_links__lead_to_pages_that_are_there(viewer: httpx.Client, path: str) -> None:
    parser = Tags()
    parser.feed(viewer.get(path).text)
    inner = {a["href"] for tag, a in parser.found if tag == "a" and a.get("href") and "data-out" not in a}
    base = path.partition("?")[0]
    for href in sorted(h for h in inner if h and not h.startswith("#"))[:25]:
        answer = viewer.get(base + href if href.startswith("?") else href)
        assert answer.status_code == 200, href


def test_hostile_text__is_shown_as_text_everywhere(server: Server, viewer: httpx.Client) -> None:
    code = f"""
from datetime import datetime
from ml import ledger
from ml.monitoring import requests
hostile = {HOSTILE!r}
at = datetime(2013, 1, 11, 6)
requests.give("hold", hostile, hostile, at)
with ledger.acting(hostile):
    ledger.record("gate", "gate-x", at, "v77", hostile[:40], hostile, {{"plan": {{"reason": hostile, "trigger": hostile, "train": {{"start": hostile, "end": hostile}}}},
        "decision": {{"checks": [{{"name": hostile, "passed": False, "value": 1, "threshold": None, "n": 1, "detail": hostile}}]}}, "metrics": {{"candidate_" + hostile: 1.0}}, "run_id": hostile}})
    ledger.record("canary", "canary-x", at, hostile, "running", hostile, {{hostile: hostile}})
print(ledger.query(limit=1)[0].id)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=server.env, capture_output=True, text=True, check=True)
    pages = ["/models/", "/models/timeline?days=0", "/models/versions", "/models/versions/77", "/models/ledger",
             f"/models/ledger/{done.stdout.strip()}", "/models/dag?dag_id=release", f"/models/ledger?subject={HOSTILE}",
             f"/models/drift/{HOSTILE}", f"/models/run?dag_id={HOSTILE}&run_id={HOSTILE}", f"/models/ledger?since={HOSTILE}"]  # fmt: skip
    shown = 0
    for page in pages:
        text = viewer.get(page).text
        assert "<script>alert" not in text, page
        assert "<img" not in text, page
        assert ">49<" not in text, page
        shown += "&lt;script&gt;alert" in text
    assert shown >= 8


def test_overview__shows_an_open_question_and_where_to_answer_it(server: Server, viewer: httpx.Client) -> None:
    code = """
import uuid
from airflow.models.dag import DagModel
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
import sqlalchemy as sa
asked, ended = uuid.uuid4(), uuid.uuid4()
with create_session() as session:
    for ti, run, over in ((asked, "scheduled__2013-01-02T00:00:00+00:00", False), (ended, "scheduled__2013-01-03T00:00:00+00:00", True)):
        row = dict(id=ti, task_id="ask", dag_id="release", run_id=run, map_index=-1, pool="default_pool", pool_slots=1, queue="default",
                   unixname="", state="success" if over else "deferred", try_number=1, max_tries=0, operator="HITLOperator",
                   custom_operator_name="", executor_config={}, priority_weight=1)
        row["end_date"] = sa.func.current_timestamp() if over else None
        session.execute(sa.insert(TaskInstance.__table__).values(**row))
        session.flush()
        session.add(HITLDetail(ti_id=ti, options=["promote", "roll back"], subject=f"Promote {run[11:21]}?", params={}))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=server.env, capture_output=True, text=True, check=True)
    text = viewer.get("/models/").text
    assert "Promote 2013-01-02?" in text
    assert "/dags/release/runs/scheduled__2013-01-02T00%3A00%3A00%2B00%3A00/tasks/ask/required_actions" in text
    assert "Promote 2013-01-03?" not in text  # its task has ended: nobody is waited for
    assert viewer.get("/models/data/summary").json()["waiting"][0] == "Promote 2013-01-02?"
    answering = re.search(r'data-act="answer"[^>]*', server.client("admin").get("/models/").text)
    assert answering and "promote" in answering[0] and "scheduled__2013-01-02" in answering[0]


def test_overview__shows_the_last_runs_of_each_dag(viewer: httpx.Client) -> None:
    text = viewer.get("/models/").text
    for dag in ("ingest", "train", "release", "drift", "score", "online"):
        assert f'href="/dags/{dag}/runs/scheduled__2013-01-10' in text  # the tenth of ten days
    assert text.count('class="bead success"') == 60


def test_light__both_themes_and_contrast_are_in_the_style_sheet() -> None:
    css = (ROOT / "plugins" / "models" / "static" / "models.css").read_text()
    pairs = dict(re.findall(r"--([a-z0-9-]+): light-dark\((#[0-9a-f]{6}), #[0-9a-f]{6}\)", css))
    dark = dict(re.findall(r"--([a-z0-9-]+): light-dark\(#[0-9a-f]{6}, (#[0-9a-f]{6})\)", css))
    for theme in (pairs, dark):
        for ink, grounds in {"ink": ("page", "sheet", "raised"), "soft": ("page", "sheet", "none-tint"), "link": ("page", "sheet"),
                             "good": ("sheet", "good-tint"), "warn": ("sheet", "warn-tint"), "bad": ("sheet", "bad-tint")}.items():  # fmt: skip
            for ground in grounds:
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground, theme[ink], theme[ground])  # WCAG 2.1 AA


def contrast(one: str, other: str) -> float:
    """WCAG 2.1, 1.4.3: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_plugin__loads_nothing_heavy_at_import_and_airflow_accepts_it(server: Server) -> None:
    code = """
import sys
from airflow import plugins_manager
info = {plugin["name"]: plugin for plugin in plugins_manager.get_plugin_info()}
assert not plugins_manager.get_import_errors(), plugins_manager.get_import_errors()
found = info["evergreen_models"]
print(*[view["url_route"] for view in found["external_views"] + found["react_apps"]])
print(*sys.modules)
"""
    env = server.env | {"AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    routes, loaded = done.stdout.strip().splitlines()[-2:]
    assert set(routes.split()) == {"models", "models-run", "models-dag", "models-card"}
    assert not {"pandas", "mlflow", "xgboost", "plugins.models.app", "ml.ledger", "ml.pages"} & set(loaded.split())


@pytest.mark.parametrize("path", ["/airflow/models/drift/x", "/models/drift/x"], ids=["whole", "cut by a proxy"])
def test_addresses__below_a_path_of_airflow(path: str) -> None:
    scope = {"path": path, "root_path": "/airflow/models", "app_root_path": "/airflow", "type": "http", "headers": []}
    page = render(Request(scope), "error.html.j2", user=None, what="nothing", cure="none").body.decode()
    assert 'href="/airflow/models/drift" aria-current="page"' in page
    assert 'src="/airflow/models/static/models.js"' in page
