"""A real browser (Debian's Chromium, headless) before a real Airflow that has a small history."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    FrameLocator,
    Page,
    Request,
    Response,
    expect,
    sync_playwright,
)

from tests.browser import history
from tests.browser.history import USERS, House

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
"""Root has no sandbox; and no name but the loopback address is ever found."""
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)
ROLES = ("admin", "viewer")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: sh ops/install_debian.sh chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def house(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Airflow, MLflow and the prediction service, and what has happened so far; stopped afterwards."""
    place = history.empty_place(tmp_path_factory.mktemp("house"))
    try:
        yield history.make(place)
    finally:
        place.services("down")


@dataclass
class Visit:
    """A page of the browser, and all that went wrong on it."""

    page: Page
    base: str
    troubles: list[str] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    """Statuses of answers that a test provokes."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"script: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)

    def open(self, path: str) -> Page:
        self.page.goto(self.base + path)
        return self.page

    def models(self, path: str = "") -> FrameLocator:
        """One of the Models pages, as Airflow frames it."""
        self.open(f"/plugin/models/models/{path}")
        return self.frame()

    def frame(self) -> FrameLocator:
        """The frame of the plugin on the present page; it has been read when this returns."""
        frame = self.page.frame_locator("iframe")
        frame.locator("main").wait_for()
        return frame

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(f"status of {status} " in message.text for status in self.expected):
            self.troubles.append(f"console: {message.text} ({message.location.get('url')})")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before it had its answer
            self.troubles.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.troubles.append(f"left the machine: {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.troubles.append(f"{response.status}: {response.request.method} {response.url}")


@pytest.fixture(scope="session")
def logged_in(browser: Browser, house: House) -> dict[str, Any]:
    """The browser's storage after each user's login by the form."""
    return {role: _log_in(browser, house.base, role) for role in ROLES}


def _log_in(browser: Browser, base: str, role: str) -> Any:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{base}/")
        fill_in_login(page, role)
        page.get_by_role("link", name="Dags").first.wait_for(timeout=PATIENCE_MS)
        return context.storage_state()


def fill_in_login(page: Page, role: str) -> None:
    page.locator("input[name=username]").fill(role)
    page.locator("input[name=password]").fill(USERS[role])
    page.get_by_role("button", name="Sign in").click()


Visitor = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, house: House, logged_in: dict[str, Any]) -> Iterator[Visitor]:
    """Opens a window for a user. No page may have written an error, got an error for an answer, or asked another machine."""
    opened: list[tuple[BrowserContext, Visit]] = []

    def open_window(role: str = "admin", *, width: int = 1280, theme: str = "light", **more: Any) -> Visit:
        state = logged_in.get(role)  # None for a stranger
        context = browser.new_context(storage_state=state, viewport={"width": width, "height": 900}, **more)
        context.add_init_script(f"localStorage.getItem('theme') ?? localStorage.setItem('theme', '{theme}')")
        opened.append((context, Visit(context.new_page(), house.base)))
        return opened[-1][1]

    yield open_window
    for context, _ in opened:
        context.close()
    assert [trouble for _, window in opened for trouble in window.troubles] == []
