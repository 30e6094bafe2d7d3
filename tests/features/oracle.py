"""What features should be, by brute force: plain Python over every version, written from the definitions and not from the SQL."""

from __future__ import annotations

from datetime import datetime, timedelta

from ml.config import Params
from ml.features.definitions import Latest, Recent, View

Row = dict


def known_values(params: Params, view: View, versions: list[Row], entity: tuple, tick: datetime) -> dict[str, float | None]:
    """The view's columns for one entity at one tick; only versions with known_at <= tick are ever looked at."""
    table = params.problem.table if isinstance(view, Recent) else view.table
    keys = params.tables[table].key
    known: dict[tuple, list[Row]] = {}
    for row in versions:
        if row["known_at"] is not None and row["known_at"] <= tick:
            known.setdefault(tuple(row[k] for k in keys), []).append(row)
    holding = []
    for chain in known.values():
        counting = [r for r in chain if _counts(view, r)]
        if not counting:
            continue
        first = min(r["known_at"] for r in counting)
        newest = max(r["known_at"] for r in chain)
        last = min((r for r in chain if r["known_at"] == newest), key=lambda r: _order(view, r))
        in_time = first - last["event_time"] <= timedelta(hours=params.features.outcome_hours)
        if _counts(view, last) and in_time and tuple(last[c] for c in view.entity.columns) == entity and None not in entity:
            holding.append((first, last))
    return _recent(view, holding, tick) if isinstance(view, Recent) else _latest(view, holding, tick)


def _counts(view: View, row: Row) -> bool:
    return isinstance(view, Latest) or (row["label"] is not None and row[view.value] is not None)


def _order(view: View, row: Row) -> tuple:
    """Versions of the same moment: the smallest, missing last."""
    values = [view.value, "label"] if isinstance(view, Recent) else list(view.values)
    return tuple(
        (row[c] is None, row[c]) if row[c] is not None else (True,) for c in [*values, *view.entity.columns, "event_time"]
    )


def _recent(view: Recent, holding: list[tuple[datetime, Row]], tick: datetime) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for h in view.hours:
        inside = [row for first, row in holding if tick - timedelta(hours=h) < first]
        n = len(inside)
        values[f"{view.name}_count_{h}h"] = float(n)
        values[f"{view.name}_rate_{h}h"] = sum(r["label"] for r in inside) / n if n else None
        values[f"{view.name}_mean_{h}h"] = sum(r[view.value] for r in inside) / n if n else None
    return values


def _latest(view: Latest, holding: list[tuple[datetime, Row]], tick: datetime) -> dict[str, float | None]:
    def rank(each: tuple[datetime, Row]) -> tuple:
        first, row = each
        smallest = tuple(float("-inf") if row[v] is None else -row[v] for v in view.values)
        return (row["event_time"], -first.timestamp(), *smallest)

    chosen = max(holding, key=rank, default=None)
    age = None if chosen is None else (tick - chosen[0]).total_seconds() / 3600
    if chosen is None or age is None or view.max_age_hours is None or age > view.max_age_hours:
        return dict.fromkeys(view.columns)
    return {f"{view.name}_{v}": chosen[1][v] for v in view.values} | {f"{view.name}_age": age}
