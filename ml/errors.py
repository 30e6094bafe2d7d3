"""Exceptions that name the culprit, the values and the cure.

`EvergreenError` is an engineer's concern (a task fails); `NothingToDo` is a policy's "no" (a task is skipped).
`dags/` maps the two to Airflow outcomes in one place.
"""

from __future__ import annotations

from collections.abc import Sequence


class EvergreenError(Exception):
    """Something is wrong and a person has to act. The message is built from its parts.

    Args:
        what: the culprit and its values, e.g. ``table 'flights' has no column 'dest'``.
        cure: what to do about it, in the imperative.
    """

    def __init__(self, what: str, cure: str) -> None:
        self.what, self.cure = what, cure
        super().__init__(f"{what}\n  → {cure}")

    def __reduce__(self) -> tuple[type[EvergreenError], tuple[str, str]]:
        return type(self), (self.what, self.cure)  # so that it comes back whole from another process


class ConfigError(EvergreenError):
    """A key of params.yaml or an EVERGREEN_* variable is unknown or out of range."""


class SourceError(EvergreenError):
    """A source cannot be read, or what it delivers does not have the declared shape."""


class DataQualityError(EvergreenError):
    """Rows broke a rule; they are in quarantine.

    >>> raise DataQualityError.from_parts("flights", "dest", "not null", 3, ["UA-1", "UA-2", "UA-3", "UA-4"], "q/f")
    Traceback (most recent call last):
    ...
    ml.errors.DataQualityError: table 'flights', column 'dest': 'not null' broken by 3 rows, e.g. UA-1; UA-2; UA-3
      → look at q/f, mend the source and land the interval again; good days are in place
    """

    @classmethod
    def from_parts(
        cls, table: str, column: str | None, rule: str, count: int, examples: Sequence[object], where: str
    ) -> DataQualityError:
        column_part = f", column '{column}'" if column else ""
        shown = "; ".join(str(e) for e in list(examples)[:3])
        return cls(
            f"table '{table}'{column_part}: '{rule}' broken by {count:,} rows" + (f", e.g. {shown}" if shown else ""),
            f"look at {where}, mend the source and land the interval again; good days are in place",
        )


class SnapshotError(EvergreenError):
    """A data version cannot be written, found or restored."""


class SkewError(EvergreenError):
    """Served features are not what landed data gives, or this could not be told."""


class NotFoundError(EvergreenError):
    """A reference points at nothing."""


class IntegrityError(EvergreenError):
    """Bytes do not have the digest that their reference promises."""


class StaleWriteError(EvergreenError):
    """Somebody else changed the state since it was read; nothing was written."""


class NotEnoughDataError(EvergreenError):
    """There are too few (matured) rows for what was asked."""


class NothingToDo(Exception):
    """The policy said no; the message says why."""
