"""A training set as of a moment is what that moment would have given, whatever was corrected since."""

from __future__ import annotations

from datetime import datetime, timedelta

import pandas as pd

from ml import steps
from ml.data import snapshots
from ml.features import stored
from ml.refs import Window
from tests.data.conftest import FIRST, Delivery, days, night_after

THEN = datetime(
    2013, 1, 4, 2
)  # a landing: between two of them the later data version knows more, and `find` takes the one of then
LATER = datetime(2013, 1, 6, 3)


def ingest(window: Window) -> None:
    steps.validate(steps.land(window, night_after(window)))
    steps.snapshot(night_after(window))


def training_set(as_of: datetime, snapshot_of: datetime) -> pd.DataFrame:
    """Two days as known at `as_of`, from the data version that was there at `snapshot_of`."""
    version = snapshots.find(snapshot_of)
    return stored.read(stored.build(snapshots.restore(version), version, days(0, 2), as_of))


def delayed(rows: pd.DataFrame) -> pd.DataFrame:
    """A correction of every second flight: an hour and a half later than was said; and the outcome of one is taken back."""
    rows.loc[::2, "arr_delay"] += 90
    rows.loc[rows.index[1], ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]] = None
    return rows


def test_training_set__as_of_a_day_is_what_it_would_have_been_then(delivery: Delivery) -> None:
    ingest(days(0, 2))
    then = training_set(THEN, THEN)
    delivery.edit("flights", 1, delayed)  # 3 January; the night of 4 January lands it again
    ingest(days(2))
    corrected = night_after(days(2))
    assert snapshots.find(LATER).digest != snapshots.find(THEN).digest
    pd.testing.assert_frame_equal(training_set(THEN, LATER), then)

    now = training_set(LATER, LATER)
    assert now["entity_id"].tolist() == then["entity_id"].tolist()
    features = [c for c in then.columns if c not in ("known_at", "label")]
    pd.testing.assert_frame_equal(now[features], then[features])  # features of 2 and 3 January never saw the correction
    third = then["event_time"] >= pd.Timestamp(FIRST + timedelta(days=1))
    assert (now["label"] != then["label"])[third].sum() > 200
    assert now["known_at"][now["label"].ne(then["label"]) & now["label"].notna()].min() >= pd.Timestamp(corrected) - timedelta(
        days=1
    )


def test_features__see_a_correction_from_the_landing_that_brought_it(delivery: Delivery) -> None:
    ingest(days(0, 2))
    delivery.edit("flights", 1, delayed)
    ingest(days(2))
    ingest(days(3))
    version = snapshots.find(LATER)
    made = stored.read(stored.build(snapshots.restore(version), version, days(0, 4), LATER))
    landed = night_after(days(2))
    rows = made[made["tick"].between(pd.Timestamp(landed) - timedelta(hours=14), pd.Timestamp(landed) + timedelta(hours=14))]
    before, after = (rows[rows["tick"] < landed], rows[rows["tick"] >= pd.Timestamp(landed)])
    assert len(before) > 300
    assert len(after) > 100
    # A third of the flights in the long windows are of 3 January, and every second of those is an hour and a half later from then on.
    assert after["route_mean_672h"].mean() > before["route_mean_672h"].mean() + 8
