"""Pictures of the running services, for the docs: `make demo`, then `make screenshots`.

Headless Chromium looks at Airflow as its admin does, light and dark, and writes small PNG files. Nothing is changed.
Exit codes: 0 all that can be shown was; 1 something should be there and is not; 2 it cannot start here.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from ml.errors import EvergreenError
from ml.settings import ROOT, settings
from ops.airflow_api import Airflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "docs" / "screenshots"
SIZE = {"width": 1440, "height": 900}
THEMES = ("light", "dark")
COLOURS = 128
LARGEST_KB = 250
PATIENCE_MS = 60_000


class NothingToShowError(EvergreenError):
    """What a picture shows does not exist in these services."""


class NotReadyError(EvergreenError):
    """The pictures cannot be taken here."""


@dataclass(frozen=True)
class Scene:
    """What is shown, and how to get there from a page that is logged in."""

    name: str
    go: Callable[[Page, Airflow], None]
    themes: tuple[str, ...] = THEMES


def _models(path: str = "") -> Callable[[Page, Airflow], None]:
    def go(page: Page, airflow: Airflow) -> None:
        page.goto(f"{airflow.base}/plugin/models/models/{path}")
        page.frame_locator("iframe").locator("main").wait_for()

    return go


def _first(page: Page, airflow: Airflow) -> None:
    page.goto(f"{airflow.base}/")
    page.get_by_role("region", name="Models").get_by_text("Serves").wait_for()


def _candidate(page: Page, airflow: Airflow) -> None:
    from ml.serving import manifest

    now = manifest.current()
    if now is None or now.champion is None:
        raise NothingToShowError("nothing serves", "run `make demo` first")
    _models(f"versions/{now.champion.version}")(page, airflow)


def _feature(page: Page, airflow: Airflow) -> None:
    """The feature that drifted most, on the newest day."""
    _models("drift")(page, airflow)
    frame = page.frame_locator("iframe")
    frame.locator("table.heat tbody tr").first.locator("td[title]").last.click()
    frame.locator("figure.chart").first.wait_for()


def _dag(dag: str, button: str) -> Callable[[Page, Airflow], None]:
    def go(page: Page, airflow: Airflow) -> None:
        page.goto(f"{airflow.base}/dags/{dag}")
        page.get_by_role("button", name=button).click()
        expand = page.get_by_role("button", name="Expand all task groups")
        expand.wait_for()
        if expand.is_enabled():  # Airflow remembers what was expanded
            expand.click()

    return go


def _form(page: Page, airflow: Airflow) -> None:
    page.goto(f"{airflow.base}/dags/train")
    page.get_by_role("button", name="Trigger").first.click()
    page.get_by_role("dialog").get_by_role("button", name="As of when").click()


def _run(page: Page, airflow: Airflow) -> None:
    """The newest run of `drift`, with its note."""
    page.goto(f"{airflow.base}/dags/drift/runs/{quote(_newest(airflow, 'drift'))}")
    page.get_by_role("button", name="Show Grid").click()  # leaves the note more room than the graph
    page.get_by_role("button", name="Edit note").wait_for()


def _question(page: Page, airflow: Airflow) -> None:
    asked = airflow.http.get("/dags/~/dagRuns/~/hitlDetails", params={"response_received": False, "state": "awaiting_input"})
    waiting = asked.raise_for_status().json()["hitl_details"]
    if not waiting:
        raise NothingToShowError("no question waits for a person", "take this picture while a release asks")
    task = waiting[0]["task_instance"]
    path = f"dags/{task['dag_id']}/runs/{quote(task['dag_run_id'])}/tasks/{task['task_id']}/required_actions"
    page.goto(f"{airflow.base}/{path}")
    page.get_by_role("button", name=waiting[0]["options"][0]).wait_for()


def _button(dag: str, task: str, name: str) -> Callable[[Page, Airflow], None]:
    """The page that a button of the newest run's task opens."""

    def go(page: Page, airflow: Airflow) -> None:
        run = _newest(airflow, dag)
        links = airflow.http.get(f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/links").raise_for_status().json()
        page.goto(links["extra_links"][name])

    return go


def _newest(airflow: Airflow, dag: str) -> str:
    found = airflow.http.get(f"/dags/{dag}/dagRuns", params={"limit": 1, "order_by": "-run_after", "state": "success"})
    runs: list[dict[str, Any]] = found.raise_for_status().json()["dag_runs"]
    if not runs:
        raise NothingToShowError(f"no run of {dag} has succeeded", "run `make demo` first")
    return str(runs[0]["dag_run_id"])


def _report(page: Page, airflow: Airflow) -> None:
    """The newest candidate's report, as a file: MLflow's own frame around it shows where this machine keeps its files."""
    run = _newest(airflow, "train")
    links = airflow.http.get(f"/dags/train/dagRuns/{run}/taskInstances/register/links").raise_for_status().json()
    run_uuid = links["extra_links"]["MLflow run"].rpartition("/")[2]
    mlflow = f"http://{airflow.where.host}:{airflow.where.mlflow_port}"
    report = httpx.get(f"{mlflow}/get-artifact", params={"path": "report.html", "run_uuid": run_uuid}, timeout=60)
    page.set_content(report.raise_for_status().text)


SCENES = [
    Scene("home", _first),
    Scene("overview", _models()),
    Scene("timeline", _models("timeline")),
    Scene("candidate", _candidate),
    Scene("drift", _models("drift")),
    Scene("feature", _feature),
    Scene("dates", _models("dates")),
    Scene("ledger", _models("ledger")),
    Scene("dag-grid", _dag("train", "Show Grid")),
    Scene("dag-graph", _dag("train", "Show Graph")),
    Scene("trigger-form", _form),
    Scene("run-note", _run),
    Scene("required-action", _question),
    Scene("day", _button("drift", "decide", "Drift report")),
    Scene("report", _report),
]


@contextmanager
def browser_page(theme: str, airflow: Airflow) -> Iterator[Page]:
    """A window of an admin who is logged in.

    Raises:
        NotReadyError: there is no Chromium, or Playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise NotReadyError("Playwright is not installed", "make setup") from None
    chromium = shutil.which("chromium")
    if chromium is None:
        raise NotReadyError("there is no Chromium", "sh ops/install_debian.sh chromium")
    token = str(airflow.http.headers["Authorization"]).removeprefix("Bearer ")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        context = started.new_context(viewport=SIZE, color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]  # theme is "light" or "dark"
        context.add_cookies([{"name": "_token", "value": token, "url": airflow.base}])
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        context.set_default_timeout(PATIENCE_MS)
        yield context.new_page()
        started.close()


def small(picture: bytes) -> bytes:
    """A PNG with fewer colours, which a page of text and lines does not miss."""
    from PIL import Image

    reduced = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    written = io.BytesIO()
    reduced.save(written, "PNG", optimize=True)
    return written.getvalue()


def take(folder: Path, only: list[str]) -> list[str]:
    """Takes the pictures, and prints a line for each; returns what went wrong.

    Raises:
        NotReadyError: no Airflow answers, or no browser is here.
    """
    where, wrong = settings(), list[str]()
    try:
        airflow = Airflow()
    except httpx.TransportError as error:
        raise NotReadyError(f"Airflow does not answer at {where.host}:{where.airflow_port}: {error}", "make demo") from error
    folder.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        with browser_page(theme, airflow) as page:
            for scene in SCENES:
                if theme in scene.themes and (not only or scene.name in only):
                    wrong += _take(scene, theme, folder, page, airflow)
    return wrong


def _take(scene: Scene, theme: str, folder: Path, page: Page, airflow: Airflow) -> list[str]:
    from playwright.sync_api import Error

    path = folder / f"{scene.name}-{theme}.png"
    try:
        scene.go(page, airflow)
        _settle(page)
        path.write_bytes(small(page.screenshot()))
    except NothingToShowError as nothing:
        print(f"  {path.name:28} left out: {nothing.what}", flush=True)
        return []
    except (Error, EvergreenError, httpx.HTTPError) as error:
        print(f"  {path.name:28} FAILED: {str(error).splitlines()[0]}", flush=True)
        return [path.name]
    size = path.stat().st_size / 1024
    print(f"  {path.name:28} {size:4.0f} kB" + (f"  larger than {LARGEST_KB} kB" if size > LARGEST_KB else ""), flush=True)
    return [path.name] if size > LARGEST_KB else []


def _settle(page: Page) -> None:
    """Until nothing is loaded any more and graphs and charts are drawn; some pages never stop asking for news."""
    from playwright.sync_api import TimeoutError as StillLoadingError

    try:
        page.wait_for_load_state("networkidle", timeout=8000)
    except StillLoadingError:
        pass
    page.wait_for_timeout(800)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make screenshots", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = ", ".join(scene.name for scene in SCENES)
    parser.add_argument("scenes", nargs="*", help=f"which; all when none is named: {names}")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures are written")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.scenes) - {scene.name for scene in SCENES}:
        parser.error(f"no such scene: {', '.join(sorted(unknown))}; there are {names}")
    try:
        wrong = take(asked.folder, asked.scenes)
    except NotReadyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n  {'all taken' if not wrong else 'not taken: ' + ', '.join(wrong)}; they are in {asked.folder}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
