"""The chain from raw days to served traffic of one model version: from registry, ledger, manifest and prediction logs."""

from __future__ import annotations

import io
import json
import textwrap
from datetime import date, datetime
from typing import Any

import pyarrow.parquet as pq

from ml import ledger, store, tracking
from ml.batch import score
from ml.config import load_params
from ml.data import snapshots
from ml.errors import NotFoundError
from ml.packaging import rebuild
from ml.refs import Window
from ml.serving import log, manifest

ALIAS = "champion"
SHORT = 12
"""Digits of a digest that a person is shown."""
WIDEST = 240
"""Characters of a reason that a person is shown; the failed checks follow it, and ``--json`` has all of it."""


def collect(version: str) -> dict[str, Any]:
    """Everything that is known about a version, one section per link of the chain; None or [] where there is nothing.

    Args:
        version: number in the registry, ``3`` or ``v3``.

    Returns:
        version, model, raw, features, search, twin, gate, refit, package, registry, releases, served, answers, quality, rebuilds.

    Raises:
        NotFoundError: there is no such version.
    """
    name, number = load_params().problem.name, tracking.number(version)
    tags = tracking.tags(name, number)
    gate = next(iter(ledger.entries("gate", subject=f"v{number}")), None)
    plan = gate.evidence["plan"] if gate else {}
    return {
        "version": number,
        "model": name,
        "raw": _raw(tags),
        "features": _features(tags),
        "search": _search(tags),
        "twin": {
            "artifacts": tags.get("twin"),
            "rows": _learned(tags.get("twin")).get("rows"),
            "train": tags.get("train"),
            "holdout": tags.get("holdout"),
            "uses": plan.get("holdout_uses"),
            "used_by": plan.get("used_by", []),
        },
        "gate": _gate(gate),
        "refit": _refit(tags, gate),
        "package": {"model": tags.get("model"), "bundle": tags.get("bundle"), "bento": tags.get("bento")},
        "registry": _registry(name, number, tags),
        "releases": _releases(number),
        "served": served(number),
        "answers": {"online": log.answers_by(number), "batch": score.answers_by(number)},
        "quality": _quality(number),
        "rebuilds": [
            {"as_of": e.as_of, "recorded_at": e.recorded_at, "verdict": e.verdict, "reason": e.reason}
            for e in ledger.entries(rebuild.KIND, subject=f"v{number}")
        ],
    }


def served(version: str) -> list[dict[str, Any]]:
    """Spans of data time in which the version was the champion: from, until (None: still), why it began and by whom it ended."""
    spans: list[dict[str, Any]] = []
    for document in manifest.history():
        mine = document.champion is not None and document.champion.version == version
        running = bool(spans) and spans[-1]["until"] is None
        if mine and not running:
            spans.append({"from": document.changed_at, "until": None, "manifest": document.version, "replaced_by": None})
        elif running and not mine:
            spans[-1]["until"] = document.changed_at
            spans[-1]["replaced_by"] = document.champion.version if document.champion else None
    return spans


# ---- the links


def _raw(tags: dict[str, str]) -> dict[str, Any] | None:
    if "snapshot" not in tags:
        return None
    try:
        ref = snapshots.by_digest(tags["snapshot"])
    except NotFoundError:  # another ledger noted it: the digest is all that is known here
        return {"digest": tags["snapshot"]}
    return ref.model_dump()


def _features(tags: dict[str, str]) -> dict[str, Any]:
    digest = tags.get("features")
    rows = pq.read_metadata(io.BytesIO(store.get(digest))).num_rows if digest and store.exists(digest) else None
    as_of = datetime.fromisoformat(tags["as_of"]) if "as_of" in tags else None
    window = None
    if "train" in tags and "holdout" in tags:
        window = str(Window(start=rebuild.window_of(tags["train"]).start, end=rebuild.window_of(tags["holdout"]).end))
    return {"code": tags.get("feature_code"), "window": window, "as_of": as_of, "digest": digest, "rows": rows}


def _search(tags: dict[str, str]) -> dict[str, Any]:
    found = json.loads(_parts(tags.get("twin")).get("tuning.json", b"{}"))
    return {
        "family": tags.get("family"),
        "settings": json.loads(tags.get("tuned", "{}")),
        "rounds": tags.get("rounds"),
        "trials": found.get("trials"),
        "loss": found.get("loss"),
        "reason": found.get("reason"),
    }


def _gate(entry: ledger.Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    decision = entry.evidence["decision"]
    checks = decision["checks"]
    return {
        "verdict": decision["verdict"],
        "reason": decision["reason"],
        "as_of": entry.as_of,
        "checks": len(checks),
        "failed": [{"name": c["name"], "detail": c["detail"]} for c in checks if not c["passed"]],
    }


def _refit(tags: dict[str, str], entry: ledger.Entry | None) -> dict[str, Any]:
    decision = entry.evidence.get("refit", {}) if entry else {}
    start, end = (date.fromisoformat(day) for day in tags["learned"].split("/")) if "learned" in tags else (None, None)
    return {
        "window": str(Window(start=start, end=end)) if start and end else None,
        "rows": _learned(tags.get("artifacts")).get("rows"),
        "verdict": decision.get("verdict"),
        "reason": decision.get("reason"),
    }


def _registry(name: str, number: str, tags: dict[str, str]) -> dict[str, Any]:
    shown = ("verdict", "backfill", "trigger", "reason", "champion", "code", "revision", "params_file", "libraries")
    return {
        "version": number,
        "run_id": tracking.run_id(name, number),
        "alias": ALIAS if tracking.get_alias(name, ALIAS) == number else None,
        "tags": {tag: tags[tag] for tag in shown if tag in tags},
    }


def _releases(number: str) -> list[dict[str, Any]]:
    """Changes of the deployment manifest to this version; `recorded_at` (the wall clock) where the ledger has the promotion."""
    entries = [e for kind in ("promotion", "rollback") for e in ledger.entries(kind, subject=f"v{number}")]
    noted = {int(entry.key.rsplit("-", 1)[1]): entry.recorded_at for entry in entries}
    found: list[dict[str, Any]] = []
    before = None
    for document in manifest.history():
        champion = document.champion.version if document.champion else None
        if champion == number != before:  # other changes, of a canary for instance, keep the champion
            told = {"manifest": document.version, "as_of": document.changed_at, "by": document.by, "reason": document.reason}
            found.append(told | {"recorded_at": noted.get(document.version)})
        before = champion
    return found


def _quality(number: str) -> list[dict[str, Any]]:
    """What monitoring measured, day by day, and what the policy made of it."""
    return [
        {
            "day": entry.evidence["monitor"]["day"],
            "predictions": entry.evidence["monitor"]["predictions"],
            "matured": entry.evidence["monitor"]["matured"],
            "metrics": {k: v for k, v in entry.evidence["monitor"]["metrics"].items() if not k.startswith("psi_")},
            "verdict": entry.verdict,
            "reason": entry.reason,
        }
        for entry in ledger.entries("retrain", subject=f"v{number}")
    ]


def _parts(digest: str | None) -> dict[str, bytes]:
    """Files of an archive in the store; none when it is not there any more."""
    return store.unpack(store.get(digest)) if digest and store.exists(digest) else {}


def _learned(digest: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_parts(digest).get("learned.json", b"{}"))
    return found


# ---- for people


def text(chain: dict[str, Any]) -> str:
    """The chain as a tree, each link below what it was made from."""
    lines = [f"{chain['model']} v{chain['version']}"]
    for heading, facts in _links(chain):
        lines.append(f"├─ {heading:<10} {facts[0]}")
        lines += [f"│  {'':<10} {fact}" for fact in facts[1:]]
    last = max(i for i, line in enumerate(lines) if line.startswith("├"))
    return "\n".join([*lines[:last], "└" + lines[last][1:], *(" " + line[1:] for line in lines[last + 1 :])])


def _links(chain: dict[str, Any]) -> list[tuple[str, list[str]]]:
    search, twin, package, features = chain["search"], chain["twin"], chain["package"], chain["features"]
    settings = ", ".join(f"{name} {value:.4g}" for name, value in search["settings"].items()) or "no settings"
    uses = "not recorded" if twin["uses"] is None else f"{twin['uses']} models judged on it before"
    return [
        ("raw days", _raw_lines(chain["raw"])),
        (
            "features",
            [
                f"{_rows(features['rows'])} of {_known(features['window'])}, as known at {_time(features['as_of'])}",
                f"feature code {_known(features['code'])}, set {_short(features['digest'])}",
            ],
        ),
        (
            "search",
            [
                f"{_known(search['trials'])} trials: {_known(search['reason'])}",
                f"{_known(search['family'])}, {_known(search['rounds'])} rounds, {settings}",
            ],
        ),
        (
            "twin",
            [
                f"learned from {_rows(twin['rows'])} of {_known(twin['train'])}, artifacts {_short(twin['artifacts'])}",
                f"judged on {_known(twin['holdout'])}: {uses}" + (f" ({_versions(twin['used_by'])})" if twin["used_by"] else ""),
            ],
        ),
        ("gate", _gate_lines(chain["gate"])),
        ("refit", _refit_lines(chain["refit"])),
        ("package", [f"graph {_short(package['model'])}, bundle {_short(package['bundle'])}, Bento {_known(package['bento'])}"]),
        ("registry", _registry_lines(chain["registry"])),
        ("released", _released_lines(chain["releases"])),
        ("served", _served_lines(chain["served"])),
        ("online", [_online_line(chain["answers"]["online"])]),
        ("batch", [_batch_line(chain["answers"]["batch"])]),
        ("quality", _quality_lines(chain["quality"])),
        (
            "rebuilt",
            [f"{r['verdict']} on {_time(r['recorded_at'])}: {r['reason']}" for r in chain["rebuilds"]] or ["never rebuilt"],
        ),
    ]


def _raw_lines(raw: dict[str, Any] | None) -> list[str]:
    if raw is None:
        return ["not recorded"]
    if "first_day" not in raw:
        return [f"version {raw['digest']}, which this ledger does not know"]
    return [
        f"{raw['first_day']}..{raw['last_day']}, {raw['files']} files, landed as of {_time(raw['as_of'])}",
        f"data version {raw['digest']}",
    ]


def _gate_lines(gate: dict[str, Any] | None) -> list[str]:
    if gate is None:
        return ["no decision in this ledger"]
    failed = [f"failed {check['name']}: {check['detail']}" for check in gate["failed"]]
    reason = textwrap.shorten(gate["reason"], WIDEST, placeholder=" …")
    return [f"{gate['verdict']}: {reason}", *(failed or [f"all of {gate['checks']} checks passed"])]


def _refit_lines(refit: dict[str, Any]) -> list[str]:
    learned = f"the model that ships learned from {_rows(refit['rows'])} of {_known(refit['window'])}"
    return [f"{_known(refit['verdict'])}: {_known(refit['reason'])}", learned]


def _registry_lines(registry: dict[str, Any]) -> list[str]:
    tags = registry["tags"]
    alias = f", alias {registry['alias']}" if registry["alias"] else ""
    libraries = ", ".join(f"{name} {value}" for name, value in json.loads(tags.get("libraries", "{}")).items())
    return [
        f"version {registry['version']}{alias}, run {registry['run_id']}, verdict {_known(tags.get('verdict'))}",
        f"trained because: {_known(tags.get('reason'))} ({_known(tags.get('trigger'))})",
        f"code {_known(tags.get('code'))}, revision {_known(tags.get('revision'))}, params {_short(tags.get('params_file'))}",
        f"libraries {libraries or 'not recorded'}",
    ]


def _released_lines(releases: list[dict[str, Any]]) -> list[str]:
    return [
        f"manifest {r['manifest']} as of {_time(r['as_of'])} by {r['by']}: {r['reason']}"
        + (f" (written {_time(r['recorded_at'])})" if r["recorded_at"] else "")
        for r in releases
    ] or ["never released"]


def _served_lines(spans: list[dict[str, Any]]) -> list[str]:
    lines = []
    for span in spans:
        after = f" by v{span['replaced_by']}" if span["replaced_by"] else ""
        until = f"until {_time(span['until'])}, replaced{after}" if span["until"] else "and still serves"
        lines.append(f"from {_time(span['from'])} {until}")
    return lines or ["never served"]


def _online_line(online: dict[str, Any]) -> str:
    if not online["count"]:
        return "no answers"
    flagged = f", {online['flagged']:,} of them degraded" if online["flagged"] else ""
    return f"{online['count']:,} answers{flagged}, to rows of {_time(online['first'])} to {_time(online['last'])}"


def _batch_line(batch: dict[str, Any]) -> str:
    if not batch["count"]:
        return "no answers in the partitions as they are now"
    return (
        f"{batch['count']:,} answers in {batch['days']} partitions, to rows of {_time(batch['first'])} to {_time(batch['last'])}"
    )


def _quality_lines(days: list[dict[str, Any]]) -> list[str]:
    if not days:
        return ["never monitored"]
    last = days[-1]
    figures = ", ".join(f"{name} {value:.4g}" for name, value in last["metrics"].items()) or "no labels yet"
    return [
        f"monitored {len(days)} times, last for {last['day']}: {last['matured']:,} matured answers of {last['predictions']:,}",
        figures,
        f"{last['verdict']}: {last['reason']}",
    ]


def _known(value: object) -> str:
    return "not recorded" if value is None else str(value)


def _short(digest: str | None) -> str:
    return "not recorded" if digest is None else digest[:SHORT]


def _rows(count: int | None) -> str:
    return "rows (how many is not known)" if count is None else f"{count:,} rows"


def _time(moment: datetime | None) -> str:
    return "not recorded" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _versions(numbers: list[str]) -> str:
    return ", ".join(f"v{number}" for number in numbers)
