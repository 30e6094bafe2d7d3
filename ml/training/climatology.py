"""Climatology: the label's mean by a few features. The simplest baseline, and the service's last resort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ml.features.definitions import Value
from ml.refs import Ref

Rate = float | list[float]
"""The label's mean (for 0/1 labels the rate of 1), or for a multiclass label the share of each class."""


class Climatology(Ref):
    """Rates of the label by the features `by`; a group that was never seen gets the overall rate."""

    by: list[str]
    rates: dict[str, Rate]
    overall: Rate

    def rate(self, features: Mapping[str, Value]) -> Rate:
        """The rate of the row's group.

        >>> table = Climatology(by=["origin", "hour"], rates={"EWR|7": 0.21}, overall=0.22)
        >>> table.rate({"origin": "EWR", "hour": 7.0}), table.rate({"origin": None, "hour": 7.0})
        (0.21, 0.22)
        """
        return self.rates.get(group_key(features.get(name) for name in self.by), self.overall)


def group_key(values: Iterable[Value]) -> str:
    """The name of a group in `Climatology.rates`: values joined by ``|``; whole numbers without a point, None empty.

    >>> group_key(["EWR", 7.0, None, 0.5])
    'EWR|7||0.5'
    """
    return "|".join(_shown(value) for value in values)


def _shown(value: Value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
