"""The Models pages inside Airflow, as people see them."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import ROLES, Visitor, fill_in_login
from tests.browser.history import House

pytestmark = pytest.mark.e2e

SECTIONS = ["Overview", "Timeline", "Versions", "Drift", "Dates", "Ledger"]


@pytest.mark.parametrize("role", ROLES)
def test_login__by_the_form_leads_to_the_page_that_was_asked_for(role: str, browser: Browser, house: House) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{house.base}/plugin/models")
        fill_in_login(page, role)
        expect(page.frame_locator("iframe").get_by_role("heading", level=1)).to_contain_text("v1 serves", timeout=30_000)


def test_login__with_a_wrong_password_lets_nobody_in(browser: Browser, house: House) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{house.base}/")
        page.locator("input[name=username]").fill("admin")
        page.locator("input[name=password]").fill("a guess")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("Invalid credentials")).to_be_visible(timeout=30_000)
        page.goto(f"{house.base}/plugin/models")
        expect(page.locator("input[name=username]")).to_be_visible(timeout=30_000)


@pytest.mark.parametrize("role", ROLES)
def test_overview__shows_what_serves_and_what_waits_as_the_ledger_has_it(role: str, visit: Visitor, house: House) -> None:
    promoted = house.ask("[[e.subject, f'{e.as_of:%Y-%m-%d %H:%M}'] for e in ledger.entries('promotion')][-1]")
    window = visit(role)
    page = window.open("/")
    page.get_by_role("link", name="Models", exact=True).first.click()
    frame = window.frame()
    expect(frame.get_by_role("heading", level=1)).to_have_text(f"{promoted[0]} serves")
    expect(frame.locator("section.serving")).to_contain_text(f"since {promoted[1]}")
    expect(frame.locator("section.serving")).to_contain_text("Learned from2013-01-")
    expect(frame.locator("section", has=frame.get_by_role("heading", name="Retraining"))).to_contain_text(
        "stale: it learned nothing"
    )
    expect(frame.get_by_role("link", name="Shall the candidate get traffic?")).to_be_visible()
    expect(frame.locator("header .clock")).to_contain_text("2013-01-2"), "data time, not the wall clock"
    age = float(
        frame.locator("dt", has_text="Age of what it learned").locator("xpath=following-sibling::dd").inner_text().split()[0]
    )
    assert 3 < age < 30


@pytest.mark.parametrize("role", ROLES)
def test_navigation__goes_through_all_pages_within_the_frame(role: str, visit: Visitor) -> None:
    window = visit(role)
    frame = window.models()
    for name in SECTIONS:
        frame.locator("header nav").get_by_role("link", name=name).click()
        expect(frame.locator("header nav [aria-current=page]")).to_have_text(name)
        expect(frame.get_by_role("heading", level=1)).not_to_be_empty()
        path = "models/" if name == "Overview" else f"models/{name.lower()}"
        expect(window.page).to_have_url(re.compile(re.escape(f"/plugin/models/{path}") + "$"))


def test_deep_link__opens_the_page_within_airflow_and_back_leads_back(visit: Visitor) -> None:
    window = visit()
    frame = window.models("versions")
    frame.get_by_role("link", name="v1", exact=True).click()
    expect(frame.get_by_role("heading", level=1)).to_contain_text("v1")
    expect(window.page).to_have_url(re.compile(r"/plugin/models/models/versions/1$"))
    address = window.page.url
    window.page.go_back()
    expect(frame.get_by_role("heading", level=1)).to_contain_text("Versions")
    window.open(urlsplit(address).path)
    expect(window.frame().get_by_role("heading", level=1)).to_contain_text("v1")


@pytest.mark.parametrize("role", ROLES)
def test_version__shows_each_check_of_its_gate(role: str, visit: Visitor, house: House) -> None:
    checks = house.ask(
        "[[c['name'] for c in e.evidence['decision']['checks']] for e in ledger.entries('gate') if e.subject == 'v1'][0]"
    )
    frame = visit(role).models("versions/1")
    table = frame.get_by_role("region", name="The gate").get_by_role("table")
    expect(table.locator("tbody tr")).to_have_count(len(checks))
    assert {*table.locator("tbody th").all_inner_texts()} == {*checks}
    data = house.ask("[e.evidence['plan']['snapshot']['digest'] for e in ledger.entries('gate') if e.subject == 'v1'][0]")
    expect(frame.get_by_role("region", name="Lineage")).to_contain_text(data)


def test_version__report_opens_in_mlflow(visit: Visitor, house: House) -> None:
    window = visit()
    frame = window.models("versions/1")
    with window.page.context.expect_page() as opened:
        frame.get_by_role("link", name="Report in MLflow").click()
    assert urlsplit(opened.value.url).port == house.place.settings.mlflow_port
    assert house.versions["1"]["run_id"] in opened.value.url


@pytest.mark.parametrize("role", ROLES)
def test_timeline__draws_the_days_that_were_watched_and_says_them_in_a_table(role: str, visit: Visitor) -> None:
    frame = visit(role).models("timeline")
    expect(frame.locator("figure.chart svg").first).to_be_visible()
    days = frame.get_by_role("region", name="Day by day")
    for day in ("2013-01-21", "2013-01-22", "2013-01-23"):
        expect(days.get_by_role("rowheader", name=day)).to_be_visible()
    expect(frame.get_by_role("region", name="Versions that served").get_by_role("row", name="v1")).to_contain_text("serves")


@pytest.mark.parametrize("role", ROLES)
def test_drift__a_square_opens_the_features_distributions_of_that_day(role: str, visit: Visitor) -> None:
    window = visit(role)
    frame = window.models("drift")
    row = frame.locator("table.heat tbody tr").first
    name = row.get_by_role("rowheader").inner_text()
    row.locator("td[title]").last.click()
    expect(frame.get_by_role("heading", level=1)).to_contain_text(f"{name} on 2013-01-23")
    expect(frame.locator("figure.chart svg").first).to_be_visible()
    expect(frame.get_by_role("region", name="By bin").locator("tbody tr").first).to_contain_text("%")


def test_drift__squares_are_reached_by_keys(visit: Visitor) -> None:
    window = visit()
    frame = window.models("drift")
    frame.locator("table.heat td[tabindex='0']").focus()
    window.page.keyboard.press("ArrowDown")
    window.page.keyboard.press("ArrowLeft")
    name = frame.locator("table.heat tbody tr").nth(1).get_by_role("rowheader").inner_text()
    expect(frame.locator("table.heat td:focus")).to_have_attribute(
        "aria-label", re.compile(f"{re.escape(name)}, 2013-01-22: .*PSI")
    )
    window.page.keyboard.press("Enter")
    expect(frame.get_by_role("heading", level=1)).to_contain_text(f"{name} on 2013-01-22")


@pytest.mark.parametrize("role", ROLES)
def test_dates__say_what_landed_and_what_was_scored(role: str, visit: Visitor) -> None:
    days = visit(role).models("dates").get_by_role("region", name="Days")
    expect(days.locator("tbody tr", has_text="2013-01-22")).to_contain_text("scored")
    expect(days.locator("tbody tr", has_text="2013-01-05")).to_contain_text("landed")
    expect(days.locator("tbody tr")).to_have_count(24)


@pytest.mark.parametrize("role", ROLES)
def test_ledger__is_filtered_by_kind_and_shows_an_entrys_evidence(role: str, visit: Visitor, house: House) -> None:
    window = visit(role)
    frame = window.models("ledger")
    frame.get_by_label("Kind").select_option("gate")
    frame.get_by_role("button", name="Find").click()
    rows = frame.locator("table.decisions tbody tr")
    expect(rows).to_have_count(house.ask("len(ledger.entries('gate'))"))
    expect(rows.last).to_contain_text("manual:admin")
    expect(rows.first).to_contain_text("request")
    rows.last.get_by_role("link").first.click()
    expect(frame.get_by_role("heading", level=1)).to_contain_text("gate")
    digest = house.ask("[e.digest for e in ledger.entries('gate')][0]")
    expect(frame.get_by_role("main")).to_contain_text(digest)


def test_ledger__says_what_was_in_production_at_a_moment(visit: Visitor) -> None:
    frame = visit().models("ledger")
    for moment, said in {"2013-01-22T12:00": "v1, since 2013-01-21 04:00", "2013-01-20": "nothing served"}.items():
        frame.get_by_role("textbox", name="Data time, UTC").fill(moment)
        frame.get_by_role("button", name="Tell").click()
        expect(frame.locator(".answer")).to_contain_text(said)


def test_page__of_what_is_not_there_says_so(visit: Visitor) -> None:
    window = visit()
    window.expected.add(404)
    frame = window.models("versions/99")
    expect(frame.get_by_role("main")).to_contain_text("99")
    expect(frame.get_by_role("main")).not_to_contain_text("Traceback")


@pytest.mark.parametrize("role", ROLES)
def test_run_tab__shows_what_the_run_wrote(role: str, visit: Visitor, house: House) -> None:
    window = visit(role)
    page = window.open(f"/dags/train/runs/{house.runs['train'].run_id}")
    page.get_by_role("link", name="Models", exact=True).last.click()
    frame = window.frame()
    expect(frame.get_by_role("main")).to_contain_text("v1 is not released")
    expect(frame.locator("table.decisions tbody tr", has_text="gate")).to_contain_text("v1")
    frame.get_by_role("link", name="v1", exact=True).first.click()
    expect(frame.get_by_role("heading", level=1)).to_contain_text("v1")


def test_dag_tab__shows_what_its_runs_wrote(visit: Visitor) -> None:
    window = visit()
    page = window.open("/dags/release")
    page.get_by_role("link", name="Models", exact=True).last.click()
    expect(window.frame().locator("table.decisions tbody tr", has_text="promotion")).to_contain_text("v1")


def test_link__out_of_the_frame_opens_airflows_own_page(visit: Visitor, house: House) -> None:
    window = visit()
    window.models().get_by_role("link", name="Shall the candidate get traffic?").click()
    window.page.wait_for_url(lambda url: f"/dags/release/runs/{house.waiting}/tasks/approve/" in unquote(url))
    expect(window.page.get_by_role("button", name="Approve")).to_be_visible()


@pytest.mark.parametrize("role", ROLES)
def test_first_page__has_a_card_that_says_what_serves(role: str, visit: Visitor) -> None:
    page = visit(role).open("/")
    card = page.get_by_role("region", name="Models")
    expect(card).to_contain_text("v1 since 2013-01-21")
    age = re.search(r"learned ([0-9.]+) days ago", card.inner_text())
    assert age
    assert 3 < float(age[1]) < 30
    card.get_by_role("link", name="Models").click()
    expect(page).to_have_url(re.compile("/plugin/models"))


def test_page__by_itself_without_airflow_around_it(visit: Visitor, house: House) -> None:
    window = visit()
    page = window.open("/models/")
    expect(page.get_by_role("heading", level=1)).to_have_text("v1 serves")
    page.get_by_role("link", name="release", exact=False).first.click()
    expect(page).to_have_url(re.compile("/dags/release"))


def test_note__of_a_run_is_shown_with_it(visit: Visitor, house: House) -> None:
    page = visit().open(f"/dags/ingest/runs/{house.runs['ingest'].run_id}")
    expect(page.get_by_text("2013-01-01 until 2013-01-25: ").first).to_be_visible()


def test_note__of_a_failed_run_says_why(visit: Visitor, house: House) -> None:
    page = visit().open(f"/dags/train/runs/{house.failed}")
    expect(page.get_by_text("no as_of was given").first).to_be_visible()
