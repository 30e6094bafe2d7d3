"""The pages show the document, and only the document: valid, self-contained, nothing executed, nothing invented."""

from __future__ import annotations

import copy
import re
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from ml.monitoring import charts, overview, page
from ml.monitoring.charts import Mark, Series
from tests.evaluation.test_page import HOSTILE, Reader

FEATURES = ["origin_delay_share_1h", "hour_sin", "wind_gust", "carrier", "visib", "dest_delay_share_24h", "distance"]
VERDICTS = ["none", "none", "large", "small", "moderate", "none", "none"]
KEPT = {"day", "as_of", "next_allowed", "verdict", "phase", "metric", "version"}
"""Keys whose words mean something to the page: the hostile document keeps them."""


def drift(name: str, verdict: str, importance: float | None, at: int = 0) -> dict[str, Any]:
    window = np.roll(np.linspace(2, 8, 12), at)
    return {"name": name, "verdict": verdict, "kind": "numeric", "psi": 0.31 - 0.04 * at, "js": 0.2, "wasserstein": 0.4, "ks": 0.11, "p": 1e-9,
            "q": 0.0012, "missing": 0.024, "unseen": 0.0, "out_of_range": 0.001, "n": 6400, "importance": importance,
            "reference": [500] * 12, "window": window.tolist()}  # fmt: skip


def check(name: str, passed: bool, value: float | None, threshold: float, detail: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "value": value, "threshold": threshold, "n": 900, "detail": detail}


REALISED = [
    {"day": f"2013-07-0{4 + i}", "n": 880 + i, "log_loss": loss, "auc": 0.7 + 0.01 * i, "positives": 0.28, "mean_probability": 0.26,
     "low": loss - 0.03, "high": loss + 0.03}
    for i, loss in enumerate([0.52, 0.61, 0.55])
]  # fmt: skip
DAY: dict[str, Any] = {
    "title": "flight_delay",
    "day": "2013-07-08",
    "as_of": "2013-07-09T05:00:00",
    "champion": "12",
    "phase": "suspect",
    "decision": {"kind": "retrain", "verdict": "keep", "reason": "cause: harm on 1 of the last 3 days, 2 wanted", "checks": [
        check("cause", False, 1.0, 2.0, "harmed on 2013-07-05 of 3 days"), check("in_flight", True, 0.0, 0.0, "no retrain is in flight")]},
    "next_allowed": "2013-07-11T05:00:00",
    "health": [check("flights.volume", True, 0.98, 0.6, "931 rows, 98% of the 950 usual on a Monday"), check("flights.nulls", True, 0.01, 0.3, "nothing much more missing")],
    "drifts": [drift(name, verdict, 0.4 / (i + 1), i) for i, (name, verdict) in enumerate(zip(FEATURES, VERDICTS, strict=True))],
    "recent": [{"name": "wind_gust", "verdict": "small", "psi": 0.0451}],
    "prediction": drift("prediction", "small", None, 3),
    "label": drift("label", "none", None, 5),
    "moved": 0.1832,
    "two_sample": {"auc": 0.61, "low": 0.58, "high": 0.64, "verdict": "small", "features": {"wind_gust": 0.4, "visib": 0.2}},
    "realised": REALISED,
    "overall": {"auc": {"value": 0.7134, "low": 0.6912, "high": 0.7356}, "log_loss": {"value": 0.5601, "low": 0.52, "high": 0.6}},
    "expected": 0.5312,
    "estimate": {"metrics": {"auc": {"value": 0.7021, "low": 0.68, "high": 0.72}, "log_loss": {"value": 0.5511, "low": 0.53, "high": 0.57}},
                 "valid": True, "reasons": ["calibrated on the last matured window: slope 0.97"], "n": 2700, "days": 3, "start": "2013-07-07", "end": "2013-07-09"},
    "settled": {"auc": {"estimated": 0.72, "realised": 0.7079, "error": 0.0121, "inside": True}},
    "settled_days": {"start": "2013-07-03", "end": "2013-07-05", "valid": True, "n": 1800},
    "harm": {"verdict": "unproven", "by_day": {"2013-07-04": False, "2013-07-05": True, "2013-07-06": False}, "since": None, "excess": 0.0123,
             "low": -0.0207, "high": 0.0451, "n": 2643, "days": 3, "detail": "the excess is +0.0123 and may be noise"},
    "slices": [{"name": "origin = LGA", "n": 900, "days": 3, "loss": 0.61, "score": 0.69, "label": 0.31, "answer": 0.27, "judged": True},
               {"name": "carrier = HA", "n": 3, "days": 3, "loss": 0.4, "score": None, "label": 0.0, "answer": 0.2, "judged": False}],
    "cost_curve": {"thresholds": [i / 100 for i in range(101)], "costs": [0.72 - 0.3 * np.sin(i / 45) for i in range(101)],
                   "threshold": 0.5, "cost": 0.4512, "best": 0.3, "best_cost": 0.4301, "calibrated": 0.25, "n": 2643},
}  # fmt: skip
PARTS = ["decision", "health", "drifts", "realised", "estimate", "harm", "slices", "cost_curve"]


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in DAY.items() if key not in keys}


def hostile(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: hostile(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) and key not in KEPT else value


def changed(**values: Any) -> dict[str, Any]:
    return copy.deepcopy(DAY) | values


# ---- the day


def test_day__whole_document() -> None:
    html = page.render(DAY)
    read = Reader(html)
    assert len(html) < 200_000
    assert len(read.all("h1")) == 1 and len(read.all("table")) == len(read.all("caption")) == 7
    assert len(read.all("svg")) == len(FEATURES) + 2 + 2  # a picture per feature, of answers and outcomes, by day, of costs
    assert all(len(attrs["aria-label"] or "") > 20 for attrs in read.all("svg"))
    for shown in (
        "Kept: AUC 0.713 ± 0.022, no harm shown; wind_gust drifted, PSI 0.23, and 1 more of 7 features", "champion 12", "18.3 % of the importance",
        "0.045", "0.6100", "−0.0207 to 0.0451", "harmed on 2013-07-05 of 3 days", "931 rows, 98% of the 950 usual on a Monday",
        "At the threshold in use, 0.5000: 0.4512 a row", "2,700 rows from 2013-07-07 to before 2013-07-09", "2013-07-03 to before 2013-07-05", "+0.0121", "calibrated on the last matured window: slope 0.97", "carrier = HA too few rows",
        "A retrain may be asked for again from 2013-07-11 05:00 on",
    ):  # fmt: skip
        assert shown in read.text, shown
    assert not [sentence for sentence in page.MISSING.values() if sentence in read.text]


def test_day__needs_nothing_else() -> None:
    for html in (page.render(DAY), overview.render([overview.line(DAY)], link="")):
        assert not re.search(rb"https?://|file:|@import|url\(|//cdn", html)
        read = Reader(html)
        assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in read.elements}
        assert not [attrs for _, attrs in read.elements for key in ("src", "href", "srcset", "data") if key in attrs]


def test_day__hostile_strings_are_text() -> None:
    day = hostile(DAY)
    day["champion"] = {"version": HOSTILE}
    day["estimate"]["metrics"][HOSTILE] = {"value": 1.0}
    for read in (Reader(page.render(day)), Reader(overview.render([overview.line(day)], HOSTILE))):
        assert not read.all("script") and not read.all("img")
        assert not [name for _, attrs in read.elements for name in attrs if name.startswith("on")]
        assert read.text.count("<script>alert('x')</script>") >= 5
    assert "\n" not in page.note(day) and "<" not in page.note(day)


def test_day__hostile_phase_and_verdicts_are_text() -> None:
    day = changed(phase=HOSTILE, harm={"verdict": HOSTILE, "detail": HOSTILE}, decision={"verdict": HOSTILE, "checks": []})
    day["drifts"][0]["verdict"] = HOSTILE
    for read in (Reader(page.render(day)), Reader(overview.render([overview.line(day)]))):
        assert not read.all("script") and not read.all("img")


@pytest.mark.parametrize("part", PARTS)
def test_day__one_part_absent_or_null(part: str) -> None:
    absent, null = Reader(page.render(without(part))), Reader(page.render(DAY | {part: None}))
    assert absent.text == null.text
    assert page.MISSING[part] in absent.text


def test_day__bare_document_invents_nothing() -> None:
    read = Reader(page.render({"day": "2013-07-08"}))
    assert not read.all("table") and not read.all("svg")
    for part in PARTS:
        assert page.MISSING[part] in read.text
    assert Reader(page.render({})).text.startswith("a day: No verdict")


def test_day__values_that_could_not_be_measured() -> None:
    day = changed()
    day["drifts"][2] |= {"psi": float("nan"), "q": None, "wasserstein": float("inf"), "window": [float("nan")] * 12}
    day["realised"][1] |= {"auc": None, "low": None}
    day["harm"] |= {"low": None, "high": None}
    day["overall"] = {"auc": {"value": float("nan")}}
    html = page.render(day)
    assert not re.search(rb"\b(nan|None|inf|Undefined)\b", html)


def test_day__many_features_are_folded_but_never_those_that_moved() -> None:
    many = [drift(f"feature_{i}", "none", 1 / (i + 1)) | {"reference": [3] * 52, "window": [4] * 52} for i in range(200)]
    many[150]["verdict"] = "large"
    html = page.render(changed(drifts=many))
    assert len(html) < 1_000_000
    text = Reader(html).text
    assert "184 further features" in text
    # the name and its verdict stand side by side
    places = [text.index(name) for name in ("feature_14steady", "feature_150large", "further features", "feature_15steady")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("changes", "words", "tone"),
    [
        ({"decision": {"verdict": "retrain"}}, "Retrain asked for: AUC 0.713 ± 0.022, no harm shown; wind_gust", "warn"),
        ({"decision": {"verdict": "wait"}}, "Waiting: ", "none"),
        ({"decision": {"verdict": "odd"}}, "Verdict odd: ", "none"),
        ({"harm": {"verdict": "harmed"}}, "Kept: AUC 0.713 ± 0.022, harm is shown; ", "bad"),
        ({"phase": "frozen"}, "Frozen: ", "bad"),
        ({"broken": ["flights.volume"]}, "Frozen, data broke (flights.volume): ", "bad"),
        ({"health": [check("flights.nulls", False, 1.0, 0.3, "")]}, "Frozen, data broke (flights.nulls): ", "bad"),
        ({"health": [check("answers.volume", False, 0.1, 0.5, "")], "broken": []}, "Kept: ", "good"),
        ({"drifts": [drift("a", "none", 1)]}, "Kept: AUC 0.713 ± 0.022, no harm shown; nothing drifted", "good"),
        ({"overall": None, "realised": [{"day": "2013-07-04", "n": 100, "auc": 0.6}, {"day": "2013-07-05", "n": 300, "auc": 0.8}]},
         "Kept: AUC 0.750 in 2 days", "good"),  # (100 · 0.6 + 300 · 0.8) / 400
        ({"overall": None, "realised": []}, "Kept: AUC 0.702 ± 0.020 estimated, no labels yet", "good"),
        ({"overall": None, "realised": [], "estimate": {"metrics": {"auc": {"value": 0.7}}, "valid": False}},
         "Kept: AUC 0.700 estimated, not to be relied on, no labels yet", "good"),
    ],
)  # fmt: skip
def test_headline__in_plain_words(changes: dict[str, Any], words: str, tone: str) -> None:
    told = page.headline(changed(**changes))
    assert told.text.startswith(words)
    assert told.tone == tone


@pytest.mark.parametrize(
    ("moment", "words"),
    [(None, "A freeze or a retrain in flight forbids"), ("2013-07-09T05:00:00", "it takes a cause"), ("2013-07-10T05:00:00", "again from 2013-07-10 05:00 on")],
)  # fmt: skip
def test_day__when_a_retrain_is_next_allowed(moment: str | None, words: str) -> None:
    assert words in Reader(page.render(changed(next_allowed=moment))).text
    assert "not in the document" in Reader(page.render(without("next_allowed"))).text


def test_day__answers_among_the_drifts_are_no_features() -> None:
    beside, among = (
        changed(),
        changed(drifts=[*DAY["drifts"], DAY["prediction"], DAY["label"] | {"verdict": "large", "psi": 9.0}]),
    )
    del among["prediction"], among["label"]
    assert page.headline(among) == page.headline(beside)
    assert overview.line(among)["drift"]["name"] == overview.line(beside)["drift"]["name"]
    assert "the model's answers" in Reader(page.render(among)).text


def test_note__is_one_short_line() -> None:
    told = page.note(changed(decision={"verdict": "keep", "reason": "line\nbreak | *bold* " + "long " * 200}))
    assert told.startswith("2013-07-08, champion 12: Kept: AUC 0.713 ± 0.022, no harm shown; wind_gust drifted")
    assert "\n" not in told and r"\| \*bold\*" in told and len(told) < page.NOTE + 20
    assert page.note({}) == "a day, champion none: No verdict"


# ---- the overview


def year() -> list[overview.Line]:
    lines = []
    for i in range(365):
        day = date(2013, 1, 1) + timedelta(days=i)
        matured = REALISED[0] | {"day": (day - timedelta(days=2)).isoformat(), "log_loss": 0.5 + 0.1 * np.sin(i / 20)}
        verdict = "retrain" if i % 40 == 39 else "keep"
        why = {"kind": "retrain", "verdict": verdict, "reason": f"cause: nothing on {day}; " + "words " * 60, "checks": []}
        lines.append(overview.line(changed(day=day.isoformat(), champion=str(1 + i // 42), realised=[matured], decision=why)))
    return lines


def test_overview__a_year() -> None:
    html = overview.render(year()[::-1], "flight_delay")
    read = Reader(html)
    assert len(html) < 1_000_000
    assert "365 days" in read.text and "9 retrains asked for" in read.text and "8 changes of champion" in read.text
    days = [attrs["href"] for attrs in read.all("a")]
    assert (days[0], days[-1], len(days)) == ("2013-12-31.html", "2013-01-01.html", 365)
    marks = [attrs["class"] for attrs in read.all("path")]
    assert marks.count("mark bad") == 9 * 2 and marks.count("mark soft") == 8 * 2  # in each of two pictures
    assert {"v2", "v9", "Jan 2013", "Dec"} <= set(read.text.split()) | {"Jan 2013"} and "words words" in read.text


def test_overview__the_last_of_two_lines_of_a_day_counts() -> None:
    first, second = overview.line(DAY), overview.line(changed(champion="13"))
    read = Reader(overview.render([first, second]))
    assert len(read.all("a")) == 1 and "13" in read.text and "0 changes of champion" in read.text


def test_overview__of_nothing_says_so() -> None:
    assert page.MISSING["lines"] in Reader(overview.render([])).text
    bare = Reader(overview.render([overview.line({"day": "2013-07-08"})]))
    assert page.MISSING["realised"] in bare.text and page.MISSING["drifts"] in bare.text


def test_overview__a_day_that_is_no_date_makes_no_link() -> None:
    with pytest.raises(ValueError, match="javascript"):
        overview.render([overview.line({"day": "javascript:alert(1)"})])


# ---- pictures


def points(svg: str, tag: str) -> list[list[float]]:
    return [[float(number) for number in re.split("[ ,]", found)] for found in re.findall(rf'<{tag}[^>]* points="([^"]+)"', svg)]


def test_chart__a_gap_parts_the_line_and_higher_is_further_up() -> None:
    svg = str(charts.chart([0, 1, 2, 3, 4], [Series("a", [1.0, 2.0, None, 3.0, 3.0])], "a title that says it", [(0, "x")]))
    left, right = points(svg, "polyline")
    assert left[1] > left[3] > right[1] == right[3]
    assert left[0] == charts.LEFT and right[2] == charts.WIDTH - charts.RIGHT


def test_chart__what_is_above_the_top_is_drawn_on_it() -> None:
    svg = str(charts.chart([0, 1, 2], [Series("a", [0.1, 0.2, 50.0])], "a title", [], top=0.3))
    ((_, first, _, second, _, third),) = points(svg, "polyline")
    assert third < second < first and third == pytest.approx(charts.TOP, abs=1)


def test_chart__labels_and_titles_are_escaped() -> None:
    svg = str(charts.chart([0, 1], [Series("a", [0.1, 0.2])], HOSTILE, [(0, HOSTILE[:8])], [Mark(0.5, "<b>", foot=True)]))
    assert "<script" not in svg and "<b>" not in svg and "<img" not in svg


def test_chart__of_nothing_is_nothing() -> None:
    assert not charts.chart([], [], "none", []) and not charts.chart([1], [Series("a", [None])], "none", [])
    assert not charts.histogram([0, 0], [1, 1], "none") and not charts.histogram([1, 1], [], "none")


def test_histogram__shares_not_counts() -> None:
    svg = str(charts.histogram([100, 100], [3, 1], "a title"))
    # shares ½, ½ and ¾, ¼: the highest is ¾, so bars reach ⅔ of 30, the window 30 and 10
    assert [float(height) for height in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)] == [20.0, 20.0]
    assert points(svg, "polyline") == [[0, 0, 75, 0, 75, 20, 150, 20]]
