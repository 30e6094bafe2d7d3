"""The forms by which people start runs: typed fields with help, and nonsense refused in words."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Visit, Visitor
from tests.browser.history import House

pytestmark = pytest.mark.e2e


def test_train__asks_as_of_when_and_why(visit: Visitor) -> None:
    form = _form(visit(), "train")
    _open(form, "As of when")
    expect(form.get_by_text("Select date and time")).to_be_visible()
    expect(form).to_contain_text("What was not known then is invisible")
    _open(form, "Why")
    expect(form.locator("[name=element_reason]")).to_be_visible()


def test_ingest__asks_for_days(visit: Visitor) -> None:
    form = _form(visit(), "ingest")
    _open(form, "Which days")
    for name in ("start", "end"):
        expect(form.locator(f"input[name=element_{name}]")).to_have_attribute("type", "date")
    expect(form).to_contain_text("The day after the last one to land")


def test_ingest__a_start_without_an_end_is_refused_and_nothing_runs(visit: Visitor, house: House) -> None:
    window, before = visit(), house.airflow.run_ids("ingest")
    window.expected.add(400)
    form = _form(window, "ingest")
    _open(form, "Which days")
    form.locator("input[name=element_start]").fill("2013-01-05")
    form.get_by_role("button", name="Trigger").click()
    expect(form).to_contain_text("only one of the two was given")
    assert house.airflow.run_ids("ingest") == before


def test_release__a_word_for_a_version_is_refused_with_the_schemas_message(visit: Visitor, house: House) -> None:
    window, before = visit(), house.airflow.run_ids("release")
    window.expected.add(400)
    form = _form(window, "release")
    _open(form, "Emergency")
    form.locator("[name=element_skip_canary]").fill("hurry")
    form.get_by_role("button", name="Trigger").click()
    expect(form).to_contain_text("'hurry' is too short")
    assert house.airflow.run_ids("release") == before


def test_release__cannot_be_backfilled(visit: Visitor) -> None:
    expect(_form(visit(), "release").get_by_role("radio", name="Backfill")).to_be_disabled()


def test_viewer__cannot_trigger(visit: Visitor) -> None:
    window = visit("viewer")
    window.expected.add(403)
    page = window.open("/dags/ingest")
    page.get_by_role("button", name=re.compile("^Trigger")).first.click()
    form = page.get_by_role("dialog")
    form.get_by_role("button", name="Trigger").click()
    expect(form).to_contain_text("Forbidden")


def _form(window: Visit, dag: str) -> Locator:
    page: Page = window.open(f"/dags/{dag}")
    page.get_by_role("button", name=re.compile("^Trigger")).first.click()
    form = page.get_by_role("dialog")
    expect(form.get_by_role("button", name="Advanced Options")).to_be_visible()
    return form


def _open(form: Locator, section: str) -> None:
    button = form.get_by_role("button", name=section, exact=True)
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
