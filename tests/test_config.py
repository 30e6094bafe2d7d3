"""Parameters and settings: a mistake is named, with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml import revision
from ml.config import load_params
from ml.errors import ConfigError
from ml.pages.models import mlflow_run
from ml.settings import ROOT, settings
from tests.conftest import forget

SHIPPED = (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("found", "put", "message"),
    [
        ("window_days: 90", "windw_days: 90", r"unknown key train\.windw_days = 90.*\n.*did you mean 'window_days'"),
        (" trials: 24", " trials: 0", r"tune\.trials = 0: .*greater than or equal to 1"),
        ("tick_minutes: 60", "tick_minutes: often", r"features\.tick_minutes = 'often'"),
        ("table: flights", "table: trains", r"problem\.table 'trains' is not among tables: flights, weather, planes"),
        ("key: [tailnum]", "key: [tail]", r"column 'tail' is not among columns: tailnum"),
        ("confirm_days: 2", "confirm_days: 9", r"confirm_days ≤ window_days must hold, but got \(9, 5\)"),
        ("holdout_days: 14", "holdout_days: 80", r"holdout_days \+ folds × fold_days must be below window_days, but 108 ≥ 90"),
        ("high: 8,", "high: 4,", r"low ≤ default ≤ high must hold, but got \(3\.0, 5\.0, 4\.0\)"),
        ("task: binary", "task: multiclass", r"task multiclass with 0 classes: multiclass needs three or more, others none"),
        ("task: binary", "task: regression", r"gates\.fairness compares error rates of 0/1 decisions"),
        ("second: null", "second: catboost", r"tune\.second = 'catboost'"),
        ("mode: enforce", "mode: warn", r"gates\.mode = 'warn': .*'enforce' or 'report'"),
        ("wait_for_labels: 0", "wait_for_labels: -1", r"release\.wait_for_labels = -1: .*greater than or equal to 0"),
        ("wait_for_labels: 0", "wait_for_labels: 100", r"must be 0 or at least min_labels \(500\), .* but got 100"),
        ("wait_for_labels: 0", "wait_for_labels: 500\n  steps: []", r"without release\.steps nothing waits"),
        ("wait_for_labels: 0", "wait_for_labels: 500\n  max_hours: 8", r"lasts 24 h .* mature after train\.embargo_hours \(24\)"),
        ("problem:", "problem: [", r"is not YAML"),
    ],
    ids=[
        "unknown",
        "too small",
        "no number",
        "no table",
        "no column",
        "impossible",
        "too long",
        "default outside",
        "no classes",
        "fairness of numbers",
        "no such family",
        "no such mode",
        "no number of labels",
        "labels that do not bind",
        "nothing waits",
        "labels come too late",
        "no yaml",
    ],
)
def test_params__a_mistake_is_named(workspace: Path, found: str, put: str, message: str) -> None:
    assert found in SHIPPED
    path = workspace / "params.yaml"
    path.write_text(SHIPPED.replace(found, put, 1))
    with pytest.raises(ConfigError, match=message):
        load_params(path)


def test_params__missing_file_says_what_to_do(workspace: Path) -> None:
    with pytest.raises(ConfigError, match="set EVERGREEN_PARAMS"):
        load_params(workspace / "nothing.yaml")


def test_settings__a_wrong_port_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_SERVING_PORT", "three thousand")
    with pytest.raises(ConfigError, match=r"EVERGREEN_SERVING_PORT='three thousand'"):
        settings()


def test_settings__defaults_lie_below_var(workspace: Path) -> None:
    here = settings()
    assert here.store == f"{workspace}/var/store"
    assert here.ledger == f"sqlite:///{workspace}/var/ledger.db"


@pytest.mark.parametrize(
    ("reached", "shown", "expected"),
    [
        ("", "", "http://127.0.0.1:5000"),
        ("http://mlflow:5000/", "", "http://mlflow:5000"),
        ("http://mlflow:5000", "https://mlflow.example.org/", "https://mlflow.example.org"),
    ],
    ids=["local", "server", "server that people reach by another name"],
)
def test_mlflow_pages__are_where_people_open_them(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, reached: str, shown: str, expected: str
) -> None:
    monkeypatch.setenv("EVERGREEN_MLFLOW", reached)
    monkeypatch.setenv("EVERGREEN_MLFLOW_PAGES", shown)
    forget()
    assert settings().mlflow_pages == expected
    assert mlflow_run("7") == f"{expected}/#/runs/7"


def test_revision__outside_a_checkout_is_the_one_that_the_image_was_given(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "ROOT", workspace)
    monkeypatch.setenv("EVERGREEN_REVISION", "abc123")
    forget()
    assert revision.revision.__wrapped__() == "abc123"


def test_digest__changes_with_any_value(workspace: Path) -> None:
    path = workspace / "params.yaml"
    path.write_text(SHIPPED.replace("margin: 0.01", "margin: 0.02", 1))
    assert load_params(path).digest() != load_params(ROOT / "params.yaml").digest()
    assert load_params(path).train.digest() == load_params(ROOT / "params.yaml").train.digest()
