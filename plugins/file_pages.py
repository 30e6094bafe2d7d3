"""Pages for the buttons on tasks, below ``/evergreen/files``: Data Docs, the days' drift reports, and what is in a Bento.

Read-only, and behind Airflow's own login (a plugin's app has none of its own): whoever may see the DAG that made a page may see
the page. Pages hold values from data, so they are served as if hostile: nothing runs in them, nothing is loaded from elsewhere.

The application is built when it is first asked: every process of Airflow imports plugins, and only the API server serves.
"""

from __future__ import annotations

import html
import io
import json
import re
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from fastapi import FastAPI

PREFIX = "/evergreen/files"
DATA_DOCS = Path("gx", "docs", "gx", "uncommitted", "data_docs", "local_site")
"""Below <var>, where `ml.data.validation` has them built; not asked there, since that module takes seconds to import."""
PLACES = {"docs": ("ingest", DATA_DOCS), "monitoring": ("drift", Path("monitoring"))}
"""Place → the DAG whose readers may see it, and its folder below <var>. No other folder is served."""
TYPES = {
    ".css": "text/css",
    ".gif": "image/gif",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".otf": "font/otf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
RESULTS = Path("gx", "results", "landing")
"""Below <var>: what each landing's validation found, as JSON."""
NEWEST = 100
"""Validations that the index of Data Docs shows."""
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}
table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;overflow-wrap:anywhere}
tr{border-bottom:1px solid #8884}.n{text-align:right}pre{overflow:auto}"""
DOCS_STYLE = (
    STYLE
    + """
footer,nav img,button,.btn-group,.modal{display:none}table table{margin:0}.row{display:block}
.text-success::before{content:"✓";color:#080;font-style:normal}.text-danger::before{content:"✗";color:#c00;font-style:normal}
.text-warning::before{content:"!";color:#b60;font-style:normal}"""
)
"""Data Docs take their looks from servers elsewhere, and their index needs scripts from there: both must do without."""
DIGEST = re.compile(r"[0-9a-f]{64}")
GUARDS = {
    # No script runs, nothing is sent anywhere. The sandbox keeps its origin: else pictures would be asked for without the login.
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}


@cache
def app() -> FastAPI:
    """The application; see the module."""
    from airflow.api_fastapi.core_api.security import requires_access_dag
    from fastapi import Depends, FastAPI, Response

    made = FastAPI(title="Evergreen: files", openapi_url=None)

    def readers_of(dag: str) -> list[Any]:
        return [Depends(requires_access_dag("GET", param_dag_id=dag))]

    def answer(content: bytes, kind: str) -> Any:
        return Response(content, media_type=kind, headers=GUARDS)

    @made.get("/docs/", dependencies=readers_of("ingest"))
    def data_docs(run: str = "") -> Any:
        from ml import shared
        from ml.settings import settings

        shared.add(settings().var / DATA_DOCS, settings().var / RESULTS)
        return answer(docs_page(settings().var, run).encode(), TYPES[".html"])

    def serve_place(place: str, dag: str, folder: Path) -> None:
        @made.get(f"/{place}/{{path:path}}", dependencies=readers_of(dag))
        def file(path: str) -> Any:
            from ml import shared
            from ml.settings import settings

            shared.add(settings().var / folder)
            found = inside(settings().var / folder, path)
            content = found.read_bytes()
            if place == "docs" and found.suffix == ".html":
                content = content.replace(b"</head>", f"<style>{DOCS_STYLE}</style></head>".encode(), 1)
            return answer(content, TYPES[found.suffix])

    for place, (dag, folder) in PLACES.items():
        serve_place(place, dag, folder)

    @made.get("/page/{digest}", dependencies=readers_of("drift"))
    def page(digest: str) -> Any:
        content = stored(digest)
        if not content[:15].lower().startswith(b"<!doctype html"):  # models and data are in the same store
            raise missing(f"object {digest} is no page")
        return answer(content, TYPES[".html"])

    @made.get("/bento/{bundle}", dependencies=readers_of("train"))
    def bento(bundle: str) -> Any:
        return answer(bento_page(bundle).encode(), TYPES[".html"])

    return made


def missing(what: str) -> Exception:
    from fastapi import HTTPException

    return HTTPException(404, what)


def inside(folder: Path, path: str) -> Path:
    """The file at `path` in `folder`; what is no page or part of one, or lies elsewhere (also by a link), is not there."""
    root = folder.resolve()
    try:
        found = (root / path).resolve(strict=True)
    except (OSError, ValueError):  # ValueError: a null byte
        raise missing(f"there is no {path!r}; it may not have been made yet") from None
    hidden = found.is_relative_to(root) and any(part.startswith(".") for part in found.relative_to(root).parts)
    if not found.is_relative_to(root) or hidden or not found.is_file() or found.suffix not in TYPES:
        raise missing(f"there is no {path!r}; it may not have been made yet")
    return found


def stored(digest: str) -> bytes:
    """An object of the store, wherever that is; its digest is verified."""
    from ml import store
    from ml.errors import NotFoundError

    if not DIGEST.fullmatch(digest):
        raise missing(f"{digest!r} is no digest")
    try:
        return store.get(digest)
    except NotFoundError as error:
        raise missing(str(error)) from None


def bento_page(bundle: str) -> str:
    """What is in the Bento of a bundle, where it is, and how to run it, as HTML."""
    from ml import store
    from ml.settings import settings

    if not DIGEST.fullmatch(bundle) or (digest := store.recall(f"bento-{bundle}")) is None:
        raise missing(f"no Bento of a bundle {bundle!r} is in the store")
    where = f"{settings().store}/{digest[:2]}/{digest}"
    with tarfile.open(fileobj=io.BytesIO(stored(digest))) as archive:
        files = sorted((member.name, member.size) for member in archive.getmembers() if member.isfile())
    facts = {"archive": where, "SHA-256": digest, "bundle": bundle, "files": f"{len(files)}, {sum(s for _, s in files):,} bytes"}
    copied = f"cp '{where}' model.bento && bentoml import model.bento && bentoml list"
    return document(
        "Bento",
        table(list(facts.items()))
        + f"<h2>Run it elsewhere</h2><pre>{html.escape(copied)}</pre><h2>Files</h2>"
        + table([(name, f"{size:,}") for name, size in files], ("file", "bytes")),
    )


def docs_page(var: Path, run: str) -> str:
    """What validation found at each landing, the newest first, with links to Data Docs; of one landing, its broken rules too.

    Args:
        run: key of a landing; empty: all.
    """
    pages: dict[str, list[tuple[str, Path]]] = {}
    site = var / DATA_DOCS
    for path in sorted(site.glob("validations/*/*/*/*.html")):
        pages.setdefault(path.parts[-3], []).append((path.stem, path.relative_to(site)))
    rows, broken = [], []
    for path in sorted((var / RESULTS).glob("*.json"), reverse=True)[: None if run else NEWEST]:
        found = json.loads(path.read_text())
        name = found["ref"]["run_name"]
        if run in ("", name):
            counts = ", ".join(f"{count:,} {table}" for table, count in found["ref"]["rows"].items())
            links = ", ".join(f'<a href="{quote(str(to))}">{html.escape(table)}</a>' for table, to in pages.get(name, []))
            rows.append((name, "passed" if found["success"] else "rules were broken", counts, Raw(links or "not built yet")))
            broken += [(b["table"], b["column"] or "", b["rule"], b["severity"], b["detail"]) for b in found["broken"] if run]
    if run and not rows:
        raise missing(f"no validation of a landing {run!r}; it may not have run yet")
    body = table(rows, ("landing", "verdict", "good rows", "Data Docs"))
    if broken:
        body += "<h2>Broken rules</h2>" + table(broken, ("table", "column", "rule", "severity", "how many"))
    return document("Data Docs", body + ('<p><a href="./">All landings</a>' if run else ""))


class Raw(str):
    """HTML that is made here; every other text in a table is escaped."""

    __slots__ = ()


def table(rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    def cell(text: str) -> str:
        return f"<td>{text if isinstance(text, Raw) else html.escape(text)}</td>"

    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows) + "</table>"


def document(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"{body}</html>"
    )


async def serve(scope: Any, receive: Any, send: Any) -> None:
    """The application as Airflow mounts it: built at the first request."""
    await app()(scope, receive, send)


class Files(AirflowPlugin):
    name = "evergreen_files"
    fastapi_apps = [{"app": serve, "url_prefix": PREFIX, "name": "Evergreen: files"}]  # noqa: RUF012 - Airflow reads the class
