"""What a person reads when a delivery is bad, and that what was good before stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml.data.landed import landed_days
from ml.data.landing import land
from ml.data.validation import validate
from ml.errors import DataQualityError, EvergreenError, SourceError
from ml.refs import Window
from ml.settings import settings
from tests.data.conftest import Delivery, contents, land_days


def nulls_in_forty_percent(rows: pd.DataFrame) -> pd.DataFrame:
    count = round(0.4 * len(rows))
    return rows.assign(sched_dep_time=rows.sched_dep_time.where(rows.index >= count))


def truncate(delivery: Delivery) -> None:
    path = delivery.file("flights", 1)
    path.write_bytes(path.read_bytes()[:-100])


def wrong_type(delivery: Delivery) -> None:
    path = delivery.file("flights", 1)
    rows = pq.read_table(path).to_pandas()
    pq.write_table(pa.Table.from_pandas(rows.assign(distance=rows.distance.astype(str) + " mi"), preserve_index=False), path)


BAD: dict[str, tuple[Callable[[Delivery], object], type[EvergreenError], str]] = {
    "missing column": (
        lambda d: d.edit("flights", 1, lambda rows: rows.drop(columns="dest")),
        SourceError,
        r"^table 'flights' has no column 'dest' in /.*/flights/2013-01-03\.parquet; found: carrier, flight, .*\n"
        r"  → deliver it, or change tables\.flights\.columns in the parameter file \(a copy is in .*/quarantine/flights/2013-01-03_.*\)$",
    ),
    "wrong type": (
        wrong_type,
        SourceError,
        r"^table 'flights', column 'distance' in /.*/flights/2013-01-03\.parquet: found string where float is declared, "
        r"917 of 917 values do not fit, e\.g\. '[\d.]+ mi'; '[\d.]+ mi'; '[\d.]+ mi'; allowed: numbers\n"
        r"  → mend the source, or change tables\.flights\.columns\.distance in the parameter file \(a copy is in ",
    ),
    "truncated file": (
        truncate,
        SourceError,
        r"^table 'flights': /.*/flights/2013-01-03\.parquet cannot be read: Parquet magic bytes not found.*\n"
        r"  → deliver the file again, whole; then land the interval again \(a copy is in .*/quarantine/flights/2013-01-03_",
    ),
    "nulls": (
        lambda d: d.edit("flights", 1, nulls_in_forty_percent),
        DataQualityError,
        r"^table 'flights', column 'sched_dep_time': 'values to not be null' broken by 367 rows, "
        r"e\.g\. \w\w-\d+-\w{3}-2013010\dT\d{4}-\d+; \w\w-.*; \w\w-.*\n"
        r"  → look at .*/quarantine/flights/2013-01-03_2013-01-04_20130104T020000_[0-9a-f]{12}, mend the source and land the interval again; good days are in place$",
    ),
    "duplicates": (
        lambda d: d.edit("flights", 1, lambda rows: pd.concat([rows, rows.head(3)])),
        DataQualityError,
        r"^table 'flights': 'compound columns to be unique \(carrier, flight, origin, time_hour, minute\)' broken by 3 rows, e\.g\. ",
    ),
}


@pytest.mark.parametrize(("damage", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_delivery__is_explained_and_good_days_stay(
    delivery: Delivery, damage: Callable[[Delivery], object], error: type[EvergreenError], message: str
) -> None:
    validate(land_days(0, as_of=datetime(2014, 1, 1)))
    before = contents()
    damage(delivery)
    with pytest.raises(error, match=message) as caught:
        validate(land_days(1))
    print(f"\n{caught.value}")  # `pytest -s` shows what a person reads
    after = contents()
    assert {name: after[name] for name in before} == before
    assert ("2013-01-03" in landed_days("flights")) == (damage is BAD["duplicates"][0]), (
        "a day with few bad rows is landed without them"
    )
    quarantined = [path.name for path in (settings().data / "quarantine" / "flights").glob("*/*")]
    assert {"2013-01-03.parquet", "reasons.json"} == set(quarantined)


def test_no_rows__in_the_interval(delivery: Delivery) -> None:
    validate(land_days(0))
    before = contents()
    with pytest.raises(SourceError) as caught:
        land(Window(start=date(2013, 6, 1), end=date(2013, 6, 3)), datetime(2013, 6, 3, 2))
    assert str(caught.value) == (
        "table 'flights' has no rows with event time in 2013-06-01..2013-06-02\n"
        "  → check the interval, and that tables.flights.source delivers it"
    )
    assert contents() == before
