"""Light and dark, narrow and wide, with keys and for screen readers: whatever the window, the pages can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FrameLocator, Page, expect

from tests.browser.conftest import Visitor
from tests.browser.history import House

pytestmark = pytest.mark.e2e

PAGES = ["", "timeline", "versions", "versions/1", "drift", "drift/{feature}", "dates", "ledger", "ledger/1", "dag?dag_id=train",
         "run?dag_id=train&run_id={run}"]  # fmt: skip
WIDTHS = [400, 1280]
AXE = Axe()
RULES = {"resultTypes": ["violations"]}


def _paths(house: House) -> list[str]:
    run = house.runs["train"].run_id.replace("+", "%2B")
    feature = house.ask("[e.evidence['line']['drift']['name'] for e in ledger.entries('retrain')][-1]")
    return [path.format(run=run, feature=feature) for path in PAGES]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages__have_no_serious_violation_and_no_scroll_to_the_side(width: int, theme: str, visit: Visitor, house: House) -> None:
    window, wrong = visit(width=width, theme=theme), []
    for path in _paths(house):
        page = window.open(f"/models/{path}")
        expect(page.get_by_role("main")).to_be_visible()
        assert page.evaluate("document.documentElement.classList.contains('dark')") == (theme == "dark")
        wrong += [f"{path}: {trouble}" for trouble in _violations(page)]
        shown, there = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        wrong += [f"{path}: {shown} px wide in {there}"] if shown > there else []
    assert wrong == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dialog_and_card__have_no_serious_violation(theme: str, visit: Visitor) -> None:
    window = visit(theme=theme)
    page = window.open("/models/")
    page.get_by_role("button", name="Hold retrains").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    wrong = _violations(page)
    page = window.open("/")
    expect(page.get_by_role("region", name="Models")).to_contain_text("v1")
    assert wrong + _violations(page, "section[aria-label=Models]") == []


def test_page_within_airflow__on_a_narrow_window_has_no_scroll_to_the_side(visit: Visitor) -> None:
    window = visit(width=400)
    for path in ("", "ledger", "drift"):
        main = window.models(path).locator("html")
        shown, there = main.evaluate("page => [page.scrollWidth, page.clientWidth]")
        assert shown <= there, path


def test_theme__follows_airflows_switch_at_once(visit: Visitor) -> None:
    window = visit()
    frame = window.models()
    light = _background(frame)
    with _chosen(window.page, "Dark Mode"):
        expect(frame.locator("html")).to_have_class("dark")
        dark = _background(frame)
    with _chosen(window.page, "Light Mode"):
        expect(frame.locator("html")).to_have_class("light")
        assert _background(frame) == light
    assert sum(light) > 3 * 200 > 3 * 80 > sum(dark)


def test_theme__of_the_system_where_nobody_chose(visit: Visitor) -> None:
    window = visit(theme="system", color_scheme="dark")
    assert sum(_background(window.models())) < 3 * 80


def test_dialog__is_opened_filled_and_left_by_keys(visit: Visitor, house: House) -> None:
    written = len(house.ask("[e.id for e in ledger.entries()]"))
    window = visit()
    frame, keys = window.models(), window.page.keyboard
    opener = frame.get_by_role("button", name="Hold retrains")
    opener.focus()
    keys.press("Enter")
    dialog = frame.get_by_role("dialog", name="Hold retrains?")
    expect(dialog).to_be_visible()
    for _ in range(4):
        if dialog.get_by_label("Reason").evaluate("field => field === document.activeElement"):
            break
        keys.press("Tab")
    keys.type("only to see")
    expect(dialog.get_by_label("Reason")).to_have_value("only to see")
    keys.press("Tab")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    keys.press("Enter")
    expect(dialog).to_be_hidden()
    opener.focus()
    keys.press("Enter")
    expect(dialog.get_by_label("Reason")).to_have_value("")
    keys.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    assert len(house.ask("[e.id for e in ledger.entries()]")) == written


def test_keys__first_stop_leads_past_the_navigation(visit: Visitor) -> None:
    page = visit().open("/models/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()


def _violations(page: Page, within: str | None = None) -> list[str]:
    """What axe-core finds that is serious or critical."""
    found: list[dict[str, Any]] = AXE.run(page, context=within, options=RULES).response["violations"]
    return [
        f"{one['impact']} {one['id']}: {node['html'][:150]} {node['failureSummary'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]


def _background(frame: FrameLocator) -> list[int]:
    """Red, green, blue of what lies behind the page."""
    colour = frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    return [int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


@contextmanager
def _chosen(page: Page, mode: str) -> Iterator[None]:
    page.get_by_role("button", name="User").click()
    page.get_by_role("menuitem", name="Appearance").click()
    page.get_by_role("menuitemradio", name=mode).click()
    yield
    page.keyboard.press("Escape")
