"""The page shows the evidence, and only the evidence: valid, self-contained, failed gates first, nothing executed, nothing invented."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from ml.errors import NotEnoughDataError
from ml.evaluation import page, plots

VOID = {"meta", "img", "wbr", "br", "link", "hr", "input"}
HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=y> | **b** [l](http://evil.example)"
SECTIONS = ["decision", "overall", "intervals", "comparisons", "holdout", "by_day", "slices", "classes", "fairness", "explanations", "tuning", "lineage", "card"]  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


def check(name: str, passed: bool, value: float | None, threshold: float, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "value": value, "threshold": threshold, "n": 12795, "detail": detail}


def sliced(name: str, n: int, mean: float, half: float, verdict: str, found: bool = False) -> dict[str, Any]:
    difference = {"mean": mean, "low": mean - half, "high": mean + half}
    loss = 0.52 + mean
    return {"slice": name, "n": n, "days": 14, "loss": loss, "reference_loss": 0.52, "difference": difference, "auc": 0.71, "verdict": verdict, "found": found}  # fmt: skip


DAYS = [f"2013-04-{day:02}" for day in range(5, 19)]
WAVE = (0.5 + 0.12 * np.sin(np.arange(14) / 2.2)).round(5)
METRICS = ["auc", "average_precision", "log_loss", "brier", "f1", "calibration_error", "cost", "positives"]
SCORES = {
    "candidate": [0.71234, 0.43810, 0.51042, 0.16811, 0.44120, 0.02210, 0.52210, 0.24510],
    "champion": [0.70511, 0.42905, 0.51467, 0.16984, 0.43377, 0.02944, 0.53102, 0.24510],
    "climatology": [0.61802, 0.31220, 0.54310, 0.18022, 0.36110, 0.03120, 0.60230, 0.24510],
    "linear": [0.68901, 0.40190, 0.52233, 0.17240, 0.41800, 0.03512, 0.54410, 0.24510],
}
FEATURES = ["origin_delay_last_hour", "hour_sin", "carrier_delay_share_24h", "visibility", "dest_delay_share_24h", "wind_gust", "tail_last_delay", "distance"]  # fmt: skip
REPORT: dict[str, Any] = {
    "title": "flight_delay as of 2013-04-23 03:00",
    "task": "binary",
    "rows": 12795,
    "decision": {
        "kind": "gate",
        "verdict": "keep",
        "reason": "kept the champion: slices: origin = LGA and hour in [18, 24) is worse by +0.0311 [+0.0215, +0.0407], allowed 0.02",
        "checks": [
            check("untouched_holdout_candidate", True, 2.0, 0.0, "candidate trained before 2013-04-04, holdout 2013-04-05..2013-04-18"),
            check("score_floor", True, 0.71234, 0.6, "ROC-AUC of the candidate 0.7123, must be >= 0.6"),
            check("loss_ceiling", True, 0.51042, 0.7, "log-loss of the candidate 0.5104, must be <= 0.7"),
            check("better_than_baseline", True, -0.0092, 0.0, "log-loss minus linear's: -0.0119 [-0.0146, -0.0092] over 12,795 rows of 14 days, must be < 0"),
            check("not_worse_than_champion", True, -0.0017, 0.01, "log-loss minus champion 1's: -0.0043 [-0.0068, -0.0017] over 12,795 rows of 14 days, must be <= 0.01"),
            check("slices", False, 0.0311, 0.02, "1 of 14 slices is worse: origin = LGA and hour in [18, 24)"),
            check("parity", True, 1.2e-6, 1e-5, "largest difference in probability, model against ONNX"),
            check("fairness_origin", False, None, 0.2, "the group JFK has no positive rows, so its true positive rate is unknown"),
        ],
    },
    "overall": {name: dict(zip(METRICS, values, strict=True)) for name, values in SCORES.items()},
    "intervals": {
        "candidate": {"auc": [0.7019, 0.7226], "log_loss": [0.4931, 0.5277]},
        "champion": {"auc": [0.6946, 0.7155], "log_loss": [0.4969, 0.5323]},
    },
    "comparisons": [
        {"against": "champion v1", "metric": "log_loss", "method": "day-block bootstrap", "mean": -0.00425, "low": -0.0068, "high": -0.0017, "rows": 12795, "days": 14, "confidence": 0.9833, "verdict": "better"},
        {"against": "champion v1", "metric": "auc", "method": "DeLong", "mean": 0.00723, "low": 0.0031, "high": 0.0114, "rows": 12795, "days": 14, "confidence": 0.9833, "verdict": "better"},
        {"against": "linear", "metric": "log_loss", "method": "day-block bootstrap", "mean": -0.0119, "low": -0.0146, "high": -0.0092, "rows": 12795, "days": 14, "confidence": 0.95, "verdict": "better"},
    ],
    "holdout": {"window": "2013-04-05..2013-04-18", "uses": 3, "rule": "Each further use of the same days widens the intervals: confidence 1 − 0.05 / 3.", "used_by": ["v1", "v2"], "champion_rows": {"answered": 12000, "twin": 700, "computed": 95}},
    "by_day": {"days": DAYS, "rows": [914] * 14, "loss": {"candidate": WAVE.tolist(), "champion": [*(WAVE[:13] + 0.004).tolist(), None], "climatology": (WAVE + 0.03).tolist()}, "against": "champion", "difference": [*[{"mean": -0.004, "low": -0.0123, "high": 0.0045}] * 13, None]},
    "slices": [
        sliced("origin = EWR", 4630, -0.0061, 0.0050, "ok"),
        sliced("origin = JFK", 4216, -0.0032, 0.0047, "ok"),
        sliced("origin = LGA", 3949, 0.0012, 0.0052, "ok"),
        sliced("carrier = UA", 2250, -0.0055, 0.0071, "ok"),
        sliced("carrier = HA", 14, 0.0, 0.0, "too few rows") | {"difference": None, "auc": None},
        sliced("hour in [18, 24)", 2881, 0.0081, 0.0098, "ok"),
        sliced("origin = LGA and hour in [18, 24)", 803, 0.0311, 0.0096, "worse", found=True),
    ],
    "classes": [{"class": "0", "n": 9659, "precision": 0.85, "recall": 0.78, "f1": 0.8134, "intervals": {"precision": [0.8311, 0.8722], "recall": [0.76, 0.80], "f1": [0.79, 0.83]}}, {"class": "1", "n": 3136, "precision": 0.44, "recall": 0.56, "f1": 0.4412}],
    "fairness": [{"attribute": "origin", "metric": "equalized_odds_difference", "value": 0.112, "threshold": 0.2, "groups": [{"group": "EWR", "n": 4630, "selection_rate": 0.31, "true_positive_rate": 0.58, "false_positive_rate": 0.22}, {"group": "LGA", "n": 3949, "selection_rate": 0.24, "true_positive_rate": 0.49, "false_positive_rate": 0.17}]}],
    "explanations": {
        "importance": [{"feature": name, "candidate": 0.42 / (i + 1), "champion": 0.4 / (i + 1.2)} for i, name in enumerate(FEATURES)],
        "slices": [{"slice": "origin = LGA and hour in [18, 24)", "top": [{"feature": "origin_delay_last_hour", "value": 0.611}, {"feature": "wind_gust", "value": 0.207}]}],
        "drift": {"value": 0.061, "detail": "share of the contributions that moved to other features"},
    },
    "tuning": {
        "reason": "The parameters were 90 days old.",
        "trials": 12,
        "convergence": [{"slot": i, "loss": None if i == 7 else 0.53 - 0.012 * (1 - np.exp(-i / 3)) + 0.004 * (i % 3), "best": 0.53 - 0.012 * (1 - np.exp(-i / 3)), "cpu_seconds": 9.5, "state": "failed" if i == 7 else "pruned" if i % 5 == 4 else "complete", "family": "lightgbm" if i % 2 else "xgboost"} for i in range(12)],
    },
    "lineage": {"snapshot": "5f0a9bb1c2d3e4f5061728394a5b6c7d.dir", "feature_code": "b41f0c9e77aa", "params": "9a3d51c0ff12", "revision": "c8b1e88", "train": "2013-01-08..2013-04-03", "refit": "2013-01-20..2013-04-18", "holdout": "2013-04-05..2013-04-18", "as_of": "2013-04-23T03:00:00", "trigger": "schedule", "reason": "the weekly refresh is due", "champion": "1", "family": "xgboost", "tuned": json.dumps({"max_depth": 5, "learning_rate": 0.0813}), "rounds": "120", "model": "3b5d" * 16},
    "card": {"intended_use": "Two hours before departure, the chance that a flight arrives 15 minutes late or more.", "limits": ["Learned from one city's three airports; others are unknown to it.", "Cancelled flights have no label and are not judged.", "Weather is observed, not forecast."], "owner": "the team that runs the pipeline"},
}  # fmt: skip


def answers(n: int = 3000) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    random = np.random.default_rng(11)
    score = random.normal(size=n)
    y_true = (random.random(n) < 1 / (1 + np.exp(1.3 - score))).astype(float)
    noisy = {"candidate": 0.4, "champion": 0.7, "climatology": 2.0, "linear": 1.1}
    return y_true, {name: 1 / (1 + np.exp(1.3 - score + random.normal(size=n) * by)) for name, by in noisy.items()}


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    y_true, y_probas = answers()
    top = REPORT["explanations"]["importance"]
    losses = {name: [np.nan if v is None else v for v in values] for name, values in REPORT["by_day"]["loss"].items()}
    return {
        "convergence.png": plots.convergence(REPORT["tuning"]["convergence"]),
        "by_day.png": plots.by_day(DAYS, losses, "log-loss (nats)"),
        "calibration.png": plots.calibration(y_true, y_probas),
        "forest.png": plots.forest(REPORT["slices"], 0.02),
        "importance.png": plots.importance(
            [r["feature"] for r in top], [r["candidate"] for r in top], [r["champion"] for r in top]
        ),
        "curves.png": plots.curves(y_true, y_probas),
    }


class Reader(HTMLParser):
    """Elements and visible text; fails on tags that do not balance."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.before_picture = ""
        self.feed(html.decode())
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "img" and not self.before_picture:
            self.before_picture = self.text
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def without(*sections: str) -> dict[str, Any]:
    return {key: value for key, value in REPORT.items() if key not in sections}


def test_page__whole_report(pictures: dict[str, bytes]) -> None:
    html = page.render(REPORT, pictures)
    read = Reader(html)
    assert len(html) < 1_000_000
    assert [attrs["src"][:22] for attrs in read.all("img")] == ["data:image/png;base64,"] * 6
    assert all(len(attrs["alt"] or "") > 20 for attrs in read.all("img"))
    assert len(read.all("h1")) == 1 and len(read.all("table")) == len(read.all("caption"))
    for shown in ("Keep the champion", "12,795", "0.7123", "0.7019–0.7226", "−0.0043", "98.33 %", "5f0a9bb1c2d3e4f5061728394a5b6c7d.dir", "max_depth 5, learning_rate 0.0813", "Weather is observed, not forecast."):  # fmt: skip
        assert shown in read.text, shown
    assert not any(sentence in read.text for sentence in page.MISSING.values())


def test_page__needs_nothing_else(pictures: dict[str, bytes]) -> None:
    html = page.render(REPORT, pictures)
    assert not re.search(rb"https?://|file:|@import|url\(|//cdn", html)
    read = Reader(html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read.elements}
    references = [attrs[key] for _, attrs in read.elements for key in ("src", "href", "srcset", "data") if key in attrs]
    assert references and all(reference.startswith("data:") for reference in references if reference)


def test_page__failed_gates_come_before_the_first_picture(pictures: dict[str, bytes]) -> None:
    read = Reader(page.render(REPORT, pictures))
    assert "2 of 8 failed" in read.before_picture
    for one in REPORT["decision"]["checks"]:
        assert one["detail"] in read.before_picture
    first_passed = read.before_picture.index("untouched_holdout_candidate")
    assert read.before_picture.index("fairness_origin") < first_passed
    assert read.before_picture.index("1 of 14 slices is worse") < first_passed


def hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: hostile(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) else value


def test_page__hostile_strings_are_text() -> None:
    report = hostile(REPORT)
    report["overall"] = {HOSTILE: {HOSTILE: 1.0}, "candidate": {HOSTILE: 0.5}}
    report["by_day"]["loss"] = {HOSTILE: [0.5] * 14}
    report["lineage"][HOSTILE] = HOSTILE
    report["holdout"]["champion_rows"] = {HOSTILE: 5}
    report["missing"] = {"quality": HOSTILE}
    read = Reader(page.render(report, {HOSTILE: PNG}))
    assert not read.all("script") and [attrs["src"] for attrs in read.all("img")] == ["data:image/png;base64,iVBORw0KGgo="]
    assert not [name for _, attrs in read.elements for name in attrs if name.startswith("on")]
    assert read.text.count("<script>alert('x')</script>") > 40


@pytest.mark.parametrize("section", SECTIONS)
def test_page__one_section_absent_or_null(section: str) -> None:
    absent, null = Reader(page.render(without(section), {})), Reader(page.render(REPORT | {section: None}, {}))
    assert absent.text == null.text
    if section != "intervals":
        assert page.MISSING[section] in absent.text


def test_page__bare_report_invents_nothing() -> None:
    read = Reader(page.render({"title": "bare", "task": "binary", "rows": 10}, {}))
    assert not read.all("table") and not read.all("img") and not read.all("dl")
    for section, sentence in page.MISSING.items():
        if section != "champion":
            assert sentence in read.text
    assert Reader(page.render({}, {})).text.startswith("No verdict")


def test_page__report_gives_the_reason_itself() -> None:
    read = Reader(page.render(without("slices") | {"missing": {"slices": "no slice reached 300 rows"}}, {}))
    assert "no slice reached 300 rows" in read.text and page.MISSING["slices"] not in read.text


@pytest.mark.parametrize(("verdict", "champion", "words"), [("promote", True, "Promote the candidate"), ("keep", False, "Do not promote"), ("rolled back", True, "Verdict: rolled back")])  # fmt: skip
def test_page__verdict_in_words(verdict: str, champion: bool, words: str) -> None:
    report = copy.deepcopy(REPORT)
    report["decision"]["verdict"] = verdict
    if not champion:
        del report["overall"]["champion"]
    read = Reader(page.render(report, {}))
    assert words in read.text
    assert (page.MISSING["champion"] in read.text) == (not champion)


def test_page__values_that_could_not_be_measured() -> None:
    report = copy.deepcopy(REPORT)
    report["overall"]["candidate"]["auc"] = float("nan")
    html = page.render(report, {})
    assert not re.search(rb"\b(nan|None|inf)\b", html)
    auc = next(row for row in page._scores(page.measured(report)) if row["metric"] == "auc")
    assert [cell["text"] for cell in auc["cells"]][:2] == ["–", "0.7051"]
    assert [cell["best"] for cell in auc["cells"]] == [False, True, False, False]


@pytest.mark.parametrize(
    ("task", "scores", "shown"),
    [
        ("regression", {"r2": 0.31, "mae": 11.204, "pinball": 5.5, "rmse": 23.511, "odd": 1.0}, ["RMSE", "MAE", "R²"]),
        ("multiclass", {"log_loss": 1.1, "accuracy": 0.61, "macro_f1": 0.48}, ["log-loss", "accuracy", "macro F1"]),
        ("ranking", {"odd": 1.0, "f1": 0.5}, ["F1"]),
    ],
)
def test_page__other_tasks(task: str, scores: dict[str, float], shown: list[str]) -> None:
    report = {"title": "t", "task": task, "rows": 10, "overall": {"candidate": scores, "champion": scores}}
    rows = re.findall(r"^\| ([^|(]+?) \((?:higher|lower) is better\) \|", page.card(report), re.M)
    assert rows == shown
    text = Reader(page.render(report, {})).text
    assert all(page.label(metric) in text for metric in scores)


def test_card__whole_report() -> None:
    text = page.card(REPORT)
    assert len(text) < page.CARD_LIMIT
    assert "| ROC-AUC (higher is better) | 0.7123 (0.7019–0.7226) | 0.7051 (0.6946–0.7155) |" in text
    for shown in ("**Keep the champion.**", "the weekly refresh is due", "5f0a9bb1c2d3e4f5061728394a5b6c7d.dir", "2013-01-08..2013-04-03", "Cancelled flights"):  # fmt: skip
        assert shown in text, shown


def test_card__hostile_and_endless_strings() -> None:
    report = hostile(REPORT)
    report["card"]["limits"] = [HOSTILE * 50] * 40
    report["decision"]["reason"] = "<" * 9000
    report["task"] = "binary"
    text = page.card(report)
    assert len(text) < page.CARD_LIMIT and "and 35 more" in text
    assert "<" not in text and not re.search(r"(?<!\\)\[", text)


def test_card__cuts_no_more_than_it_must() -> None:
    long = "word " * 200
    about = {"intended_use": long, "limits": [long] * 5, "owner": "o"}
    text = page.card(REPORT | {"card": about})
    assert len(text) < page.CARD_LIMIT and "word " * 50 in text
    text = page.card(hostile(REPORT) | {"task": "binary", "title": "<" * 9000, "lineage": dict.fromkeys(page.LINEAGE, "<" * 9000), "card": dict.fromkeys(about, "<" * 9000) | {"limits": ["<" * 9000] * 9}})  # fmt: skip
    assert len(text) < page.CARD_LIMIT and "ROC-AUC" in text


def test_card__bare_report() -> None:
    text = page.card({})
    for section in ("decision", "overall", "lineage", "card"):
        assert page.MISSING[section] in text


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(PNG)
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def test_plots__same_input_same_bytes() -> None:
    y_true, y_probas = answers(300)
    assert plots.curves(y_true, y_probas) == plots.curves(y_true, y_probas)
    assert plots.residuals(y_true * 10, y_probas) == plots.residuals(y_true * 10, y_probas)


def test_plots__forest_leaves_out_what_has_no_interval() -> None:
    rows = [sliced(f"s{i} $x$ <b>", 400, i / 1000, 0.01, "ok") for i in range(5)]
    unknown = sliced("unknown", 3, 0.0, 0.0, "too few rows") | {"difference": {"mean": float("nan"), "low": 0.0, "high": 0.0}}
    assert size(plots.forest([*rows, unknown]))[1] == size(plots.forest(rows))[1] < size(plots.forest(rows * 3))[1]
    with pytest.raises(NotEnoughDataError, match="none of 1 slices"):
        plots.forest([unknown])


def test_plots__curves_of_one_class() -> None:
    with pytest.raises(NotEnoughDataError, match="one class only"):
        plots.curves(np.ones(5), {"candidate": np.linspace(0, 1, 5)})


def test_plots__few_rows_and_constant_answers() -> None:
    y = np.array([0.0, 1.0, 1.0])
    flat = {"candidate": np.full(3, 0.5), "odd one": np.full(3, 0.2)}
    for png in (plots.calibration(y, flat), plots.curves(y, flat), plots.residuals(np.zeros(3), {"candidate": np.zeros(3)})):
        assert min(size(png)) > 300


def test_plots__importance_without_champion_and_search_without_answers() -> None:
    many = [f"feature_{i}" for i in range(100)]
    assert size(plots.importance(many, [1.0] * 100)) == size(plots.importance(many[:40], [1.0] * 40, [float("nan")] * 40))
    failed = [{"slot": i, "loss": None, "best": None, "cpu_seconds": None, "state": "failed", "family": None} for i in range(3)]
    assert size(plots.convergence(failed))[0] > 300
