"""One function per step. The DAGs, dvc.yaml and the command line call these and nothing else.

References come in, a reference goes out; time is an argument; run twice, a step has the same effect. Imports are inside the
functions: a task must not pay for what another task needs.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from ml.refs import (
    BundleRef,
    CanaryState,
    Decision,
    EvaluationRef,
    FeatureSetRef,
    LandingRef,
    ModelRef,
    MonitorRef,
    Recipe,
    ReportRef,
    ScoreRef,
    ShippedRef,
    SnapshotRef,
    TrainPlan,
    ValidationRef,
    VersionRef,
    WatchRef,
    Window,
)

if TYPE_CHECKING:
    import pandas as pd

    from ml.packaging.artifacts import Artifacts
    from ml.serving.manifest import Deployed
    from ml.training.fit import Fitted
    from ml.training.tuning import Winner


# ---- ingest


def land(window: Window, as_of: datetime, beside_others: bool = False) -> LandingRef:
    """Reads the window's days from the sources and stages them, typed, as they were known at `as_of`.

    Args:
        beside_others: the days around may be landed at the same time, in any order.
    """
    from ml.data import landing

    return landing.land(window, as_of, beside_others)


def validate(landing: LandingRef) -> ValidationRef:
    """Checks staged days: good rows are published, bad ones go to quarantine, and then it raises."""
    from ml.data import validation

    return validation.validate(landing)


def snapshot(as_of: datetime) -> SnapshotRef:
    """Makes a version of everything that is published, and pushes it."""
    from ml.data import snapshots

    return snapshots.snapshot(as_of)


def data_docs(validation: ValidationRef) -> str:
    """Builds the pages that show what validation found; returns where they are."""
    from ml.data import validation as checks

    return checks.data_docs(validation)


# ---- features


def prepare_days(window: Window, as_of: datetime) -> int:
    """Computes and stores the feature history of the window's days, and of the days before it that its landing changed, so that
    training finds them; returns how many were not there yet.

    Raises:
        SnapshotError: the data version as of then ends before the window does.
    """
    from ml.config import load_params
    from ml.data import snapshots
    from ml.errors import SnapshotError
    from ml.features import days, inputs

    params, version = load_params(), snapshots.find(as_of)
    if version.last_day < window.end - timedelta(days=1):
        what = f"{window} is not in the data version as of {as_of:%Y-%m-%d %H:%M}, whose last day is {version.last_day}"
        raise SnapshotError(what, "run `ingest` for these days first; clear the task")
    first = max(window.start - timedelta(days=params.landing.lookback_days), version.first_day)
    source = inputs.landed(snapshots.restore(version), version.last_day)
    return len(days.prepare(params, source, Window(start=first, end=window.end).days()))


# ---- train


def plan(as_of: datetime, reason: str, trigger: str, run_key: str) -> TrainPlan:
    """Fixes everything that a training run depends on: data version, windows, recipes to try, and the champion to beat, as
    known at `as_of`.
    """
    from ml.config import load_params
    from ml.data import snapshots
    from ml.training import history
    from ml.training.splits import split

    params = load_params()
    windows = split(as_of, params.train)
    champion = _champion(as_of)
    recipe = _recipe(champion.bundle) if champion else None
    used_by, uses = history.uses(windows.holdout, as_of, run_key)
    return TrainPlan(
        run_key=run_key,
        as_of=as_of,
        reason=reason,
        trigger=trigger,
        snapshot=snapshots.find(as_of),
        train=windows.train,
        holdout=windows.holdout,
        folds=windows.folds,
        champion_version=champion.version if champion else None,
        champion_digest=champion.bundle if champion else None,
        champion_recipe=recipe,
        warm=history.warm(recipe, as_of, run_key),
        holdout_uses=uses,
        used_by=used_by,
    )


def pull(snapshot: SnapshotRef) -> str:
    """Restores a data version, exactly, to a workspace of its own."""
    from ml.data import snapshots

    return str(snapshots.restore(snapshot))


def validate_training(plan: TrainPlan) -> ValidationRef:
    """Checks the rows that will be trained and judged on."""
    from ml.config import load_params
    from ml.data import rows, snapshots, validation
    from ml.features.inputs import midnight

    root = snapshots.restore(plan.snapshot)
    training = rows.problem_rows(root, midnight(plan.train.start), midnight(plan.holdout.end), plan.as_of)
    name = f"training-{plan.run_key}"
    return validation.validate_rows("training", {load_params().problem.table: training.to_pandas()}, name)


def features(plan: TrainPlan) -> FeatureSetRef:
    """Computes the feature rows of train window and holdout, unless they are there already."""
    from ml.data import snapshots
    from ml.features import stored

    window = Window(start=plan.train.start, end=plan.holdout.end)
    return stored.build(snapshots.restore(plan.snapshot), plan.snapshot, window, plan.as_of)


def tune(plan: TrainPlan, features: FeatureSetRef, worker: int, workers: int) -> int:
    """Takes part as worker number `worker` (from 0) of `workers` in the plan's study; returns how many trials it did now."""
    from ml.config import load_params
    from ml.features.definitions import load_module
    from ml.training import folds
    from ml.training.rows import rows_for
    from ml.training.tuning import run_worker

    params = load_params()
    rows = rows_for(features, plan.folds, params.tune.rows)
    built = folds.build(rows, plan.folds, load_module(params).learned, params)
    return run_worker(_study(plan, features), (worker, workers), params, plan.warm, built)


def fit(plan: TrainPlan, features: FeatureSetRef) -> ModelRef:
    """Fits the study's choice on the train window: the twin that is judged, with the simple models and the reference profile."""
    from ml.config import load_params
    from ml.training.tuning import winner

    return _fitted(plan.train, features, winner(_study(plan, features), load_params(), plan.champion_recipe), plan.holdout)


def evaluate(plan: TrainPlan, features: FeatureSetRef, model: ModelRef) -> EvaluationRef:
    """Judges the twin on the holdout by all gates: floors, baselines, the champion on the same rows, slices, parity and more.

    Trees that are not better than the linear model beside them give way to it; a brought model is judged as it is.
    """
    from ml import store
    from ml.config import load_params
    from ml.monitoring import collect
    from ml.packaging import contest, dossier
    from ml.packaging.artifacts import Artifacts
    from ml.training.rows import rows_of
    from ml.training.spread.fit import learned_rows

    params, parts = load_params(), Artifacts.load(model.artifacts)
    X = rows_of(features, plan.holdout)
    champion, answered = None, {}
    if plan.champion_digest and plan.champion_version:
        champion = contest.Champion.load(plan.champion_version, plan.champion_digest)
        answered = collect.answered(plan.champion_version, plan.holdout)
    held = contest.hold(plan, X, parts, champion, answered, params)
    if not model.recipe.brought and (why := held.simpler_wins()) is not None:
        parts, plan = parts.simple(why), plan.model_copy(update={"holdout_uses": plan.holdout_uses + 1})
        rows = learned_rows(features, plan.train, parts.fitted.learned.rows, model.workers)
        parts = replace(parts, profile=_reference(parts.fitted, rows, parts.fitted, X))
        model = _stored(parts, model.train, model.seconds, model.cpu_seconds)
        held = contest.hold(plan, X, parts, champion, answered, params)
    report, metrics = dossier.report(plan, features, model, parts, champion, held, X, params)
    return EvaluationRef(model=model, decision=held.decision, report=store.put(report), metrics=metrics)


def refit(plan: TrainPlan, features: FeatureSetRef, evaluation: EvaluationRef) -> ShippedRef:
    """Fits a promoted recipe again on all matured days, by the judged settings and rounds, and holds it against its judged twin.

    A rejected candidate, or any with `train.refit` off, stays as it was judged.
    """
    from ml.config import load_params
    from ml.packaging import refit as again
    from ml.packaging.artifacts import Artifacts
    from ml.training.rows import rows_of

    params, model = load_params(), evaluation.model
    if model.recipe.brought:
        why = "a brought model has no recipe to fit again"
        return ShippedRef(model=model, twin=model.artifacts, decision=again.as_judged(f"ships as it was judged: {why}"))
    if evaluation.decision.verdict != "promote" or not params.train.refit:
        why = "the verdict was keep" if params.train.refit else "train.refit is off"
        return ShippedRef(model=model, twin=model.artifacts, decision=again.as_judged(f"ships as it was judged: {why}"))
    twin = Artifacts.load(model.artifacts)
    refitted = _fitted(again.window(plan), features, twin.winner, plan.holdout, twin.fitted)
    X = rows_of(features, plan.holdout)
    decision = again.held_against_twin(Artifacts.load(refitted.artifacts), twin, X, params)
    return ShippedRef(model=refitted, twin=model.artifacts, decision=decision)


def package(plan: TrainPlan, features: FeatureSetRef, shipped: ShippedRef) -> BundleRef:
    """Proves that the graph answers as the model does, and packs what serving needs: bundle and Bento."""
    from ml import store
    from ml.config import load_params
    from ml.data import snapshots
    from ml.errors import ConfigError, IntegrityError
    from ml.packaging import artifacts, bento, bundle, examples, lineage
    from ml.training.rows import rows_of

    params, model = load_params(), shipped.model
    if params.problem.task != "binary":
        raise ConfigError(
            f"the service answers problems of task binary; problem.task is {params.problem.task}",
            "read the evaluation's report; the graph itself is in the model's archive, and answers this task too",
        )
    parts = artifacts.Artifacts.load(model.artifacts)
    encoding, X = parts.fitted.encoding, rows_of(features, plan.holdout)
    decision = parts.parity(X, params)
    if not decision.passed:
        raise IntegrityError(f"the graph of {model.digest[:12]} differs from its model: {decision.reason}", "do not ship it")
    spec = params.tables[params.problem.table]
    archive = bundle.build(
        name=params.problem.name,
        model=parts.onnx,
        task=params.problem.task,
        numeric=encoding.numeric,
        text=encoding.text,
        threshold=params.serving.threshold,
        request={c: t for c, t in spec.columns.items() if c not in spec.outcomes},
        params={s: d for s, d in params.model_dump(mode="json").items() if s in ("problem", "tables", "features", "serving")},
        climatology=parts.fitted.climatology,
        lineage=lineage.of(plan, features, shipped),
        examples=examples.record(snapshots.restore(plan.snapshot), plan, parts, X),
        profile=parts.profile,
        explainer=artifacts.dump(parts.fitted),
    )
    tag, bento_archive = bento.build_bento(archive, params.problem.name, {"model": model.digest[:12]})
    return BundleRef(
        digest=store.put(archive), model=model.digest, bento=tag, bento_archive=store.put(bento_archive), parity=decision
    )


def register(
    plan: TrainPlan, features: FeatureSetRef, evaluation: EvaluationRef, shipped: ShippedRef, bundle: BundleRef
) -> VersionRef:
    """Logs the run and registers the version, once per plan, whatever the verdict; the gate's decision goes to the ledger.

    The verdict is *promote* when the gates said so, and the refit is still the model that was judged.
    """
    from ml import ledger, store, tracking
    from ml.config import load_params
    from ml.features.definitions import load_module
    from ml.packaging import lineage
    from ml.packaging.artifacts import Artifacts

    params, model, decision = load_params(), shipped.model, evaluation.decision
    parts, report = Artifacts.load(model.artifacts), store.unpack(store.get(evaluation.report))
    encoding, backfill = parts.fitted.encoding, plan.trigger == "backfill"
    verdict, reason = decision.verdict, decision.reason
    if shipped.decision.verdict == "differs":
        verdict, reason = "keep", shipped.decision.reason
    said = f"backfill, never released: {reason}" if backfill else reason
    tags = lineage.of(plan, features, shipped) | {
        "verdict": verdict,
        "backfill": str(backfill).lower(),
        "bundle": bundle.digest,
        "bento": bundle.bento,
        "report": evaluation.report,
    }
    files = parts.files()
    run_id, version = tracking.log_and_register(
        plan.run_key,
        params.problem.name,
        title=f"{plan.as_of:%Y-%m-%d %H:%M} {plan.trigger}",
        params=model.recipe.params
        | {"family": model.recipe.family, "rounds": model.rounds, "workers": model.workers}
        | {k: str(v) for k, v in params.train.model_dump().items()},
        metrics=evaluation.metrics
        | {"fit_cpu_seconds": model.cpu_seconds}
        | ({} if parts.winner.loss is None else {"tuning_loss": parts.winner.loss}),
        tags=tags,
        artifacts={name: files[name] for name in ("encoding.json", "climatology.json", "profile.json", "tuning.json")}
        | {name: report[name] for name in ("report.json", "report.html", "card.md")},
        plots={name: content for name, content in report.items() if name.endswith(".png")},
        onnx=parts.onnx,
        numeric=encoding.numeric,
        text=encoding.text,
        dataset=(f"raw {features.window}", plan.snapshot.digest),
        description=report["card.md"].decode(),
    )
    if load_module(params).views:
        from ml.features import repository

        repository.register_service(params, version, [*encoding.numeric, *encoding.text])
    evidence = {
        "plan": plan.to_xcom(),
        "decision": decision.to_xcom(),
        "refit": shipped.decision.to_xcom(),
        "recipe": model.recipe.to_xcom(),
        "metrics": evaluation.metrics,
        "run_id": run_id,
    }
    ledger.record("gate", f"gate-{plan.run_key}", plan.as_of, f"v{version}", verdict, said, evidence)
    return VersionRef(
        version=version, bundle=bundle.digest, model=model.digest, verdict=verdict, backfill=backfill, run_id=run_id
    )


# ---- release


def smoke(version: VersionRef) -> Decision:
    """Boots the real Bento as users run it, and compares its answers with the recorded ones."""
    from ml.serving import smoke as proof

    return proof.smoke(version)


def canary(version: VersionRef, as_of: datetime, skip: str = "", said: str = "", by: str = "") -> CanaryState:
    """Looks at the release's canary, and gives it its first or next share, or takes it out; call it until it does not say
    running.

    Args:
        said: what a person, `by`, said before any traffic: ``Approve`` or ``Reject``; empty: nobody was asked.
    """
    from ml.monitoring import rollout
    from ml.serving import release

    if said:
        release.hear(version, as_of, said, by)
    return rollout.look(version, as_of, skip)


def promote(version: VersionRef, as_of: datetime, said: str = "", by: str = "") -> int:
    """Makes a version the champion: deployment manifest by compare-and-set, then registry alias; returns the manifest's version.

    Args:
        as_of: as for `canary`.
        said: what a person, `by`, said of an inconclusive canary: ``promote`` or ``roll back``.

    Raises:
        EvergreenError: it was not promoted by its gate, comes from a backfill, or has not passed its canary.
        NothingToDo: its canary was refused.
    """
    from ml.serving import release

    return release.promote(version, as_of, said, by).version


def rollback(to: str | None, by: str, reason: str) -> int:
    """Ends a running canary or experiment; without one the previous champion, or version `to`, serves again. Returns the
    manifest's version.
    """
    from ml.serving import release

    return release.rollback(to, by, reason).version


# ---- online, score, drift


def materialise(as_of: datetime) -> int:
    """Brings the online store to the last tick at or before `as_of`; returns the rows written, 0 when it is further on
    already.
    """
    from ml.config import load_params
    from ml.data import snapshots
    from ml.features import days, history, inputs
    from ml.features.assembly import floor_to_tick
    from ml.features.definitions import load_module
    from ml.features.online import open_store
    from ml.settings import settings

    params = load_params()
    tick = floor_to_tick(as_of, params.features.tick_minutes)
    version = snapshots.find(as_of)
    source = inputs.landed_and_live(params, snapshots.restore(version), version.last_day, tick)
    found = days.histories(params, source, tick, tick)
    values = {view.name: history.last_values(view, found[view.name], tick) for view in load_module(params).views}
    return open_store(settings().online).write(tick, values)


def score(window: Window, as_of: datetime) -> ScoreRef:
    """Answers for every row of the window by the champion as of `as_of`; each with what was known at its own prediction time,
    and at `as_of`.
    """
    from ml.batch import engines
    from ml.batch import score as batch
    from ml.config import load_params
    from ml.data import snapshots, validation
    from ml.features import inputs, stored
    from ml.settings import settings

    params, champion, version = load_params(), _require_champion(as_of), snapshots.find(as_of)
    spec, root = params.tables[params.problem.table], snapshots.restore(version)
    rows = inputs.to_score(params, root, version.last_day, inputs.midnight(window.start), inputs.midnight(window.end), as_of)
    name = f"serving-{window}-{as_of:%Y%m%dT%H%M}"
    validation.validate_rows(
        "serving", {params.problem.table: rows.drop_columns([*spec.outcomes, "label", "known_at"]).to_pandas()}, name
    )
    table = stored.compute(params, rows, inputs.landed_and_live(params, root, version.last_day, as_of), as_of)
    job = batch.job(champion.bundle, champion.version, table, window.days(), as_of)
    counts = engines.run(job, settings().engine, settings().engine_address)
    batch.share(job)
    names = [part.output.rpartition("/")[2] for part in job.parts]
    return ScoreRef(window=window, rows=sum(counts), version=champion.version, partitions=names)


def monitor(window_end: date, as_of: datetime) -> MonitorRef:
    """Watches the days up to `window_end`: health of the data, drift, realised and estimated quality of the champion, harm.

    Args:
        window_end: first day after the days that are looked at.
        as_of: labels that became known later are not used.
    """
    from ml.data import snapshots
    from ml.monitoring import daily

    version = snapshots.find(as_of)
    return daily.measure(_require_champion(as_of), snapshots.restore(version), version, window_end, as_of)


def decide(monitor: MonitorRef, trigger: str) -> WatchRef:
    """Applies the retrain policy to what was measured; decision and state go to the ledger, the day's page to the store.

    Args:
        trigger: ``schedule``, ``request``, ``manual`` or ``backfill``; a backfill reports, and asks for nothing.
    """
    from ml.monitoring import daily

    return daily.decide(monitor, trigger)


def skew(window_end: date, as_of: datetime) -> Decision:
    """Computes the features of a sample of the last day's online answers again, from landed data, and compares them.

    Args:
        window_end: the day after the one that is looked at, which must be landed.
        as_of: the data version is the one of then.

    Raises:
        NothingToDo: nobody asked online that day.
        SkewError: values differ, or none could be compared. The decision is in the ledger all the same.
    """
    from ml import ledger, store
    from ml.config import load_params
    from ml.data import snapshots
    from ml.errors import NothingToDo
    from ml.features.inputs import midnight
    from ml.monitoring import skew as checks

    version, start, end = snapshots.find(as_of), midnight(window_end - timedelta(days=1)), midnight(window_end)
    report = checks.check(snapshots.restore(version), version, start, end, as_of)
    if not report.answers:
        raise NothingToDo(f"no online answers to rows of {start:%Y-%m-%d}")
    decision = checks.judge(report, load_params().monitoring.max_skew_share)
    found = checks.evidence(report)
    key = f"skew-{window_end}-{store.sha256(json.dumps(found).encode())[:12]}"
    ledger.record("skew", key, as_of, f"{start:%Y-%m-%d}", decision.verdict, decision.reason, found)
    if not decision.passed:
        raise checks.alert(report, decision)
    return decision


def report(week_end: date, as_of: datetime) -> ReportRef:
    """Writes the summary of the seven days before `week_end` for people: to the store, and to ``<var>/reports``.

    Args:
        week_end: the first day after the week.
        as_of: what was noted later is left out.
    """
    from ml import ledger, store
    from ml.config import load_params
    from ml.monitoring import summary
    from ml.monitoring.looks import last_look
    from ml.settings import settings

    params, week = load_params(), summary.week_before(week_end)
    entries = ledger.entries(until=as_of)
    look, _ = last_look(entry for entry in entries if entry.kind == "retrain")
    document = json.loads(store.get(look.evidence["report"])) if look else {}
    found = summary.summarise(entries, document, week, params.problem.name, "cost", params.costs)
    written = summary.render(found)
    path = settings().var / "reports" / f"{week.start}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    aside.write_bytes(written)
    aside.replace(path)
    return ReportRef(week=week, headline=found["headline"], page=store.put(written))


# ---- what the steps share


def _champion(as_of: datetime) -> Deployed | None:
    """Who served at `as_of`."""
    from ml.serving import manifest

    until = [m.champion for m in manifest.history() if m.changed_at <= as_of]
    return until[-1] if until else None


def _require_champion(as_of: datetime) -> Deployed:
    from ml.errors import NotFoundError

    champion = _champion(as_of)
    if champion is None:
        raise NotFoundError(f"no champion served at {as_of}", "train and release a model first, or choose a later as_of")
    return champion


def _recipe(bundle: str) -> Recipe | None:
    """What the search chose for a packaged model; None for one that was brought."""
    from ml.packaging.bundle import Bundle

    lineage = Bundle.load(bundle).card.lineage
    recipe = Recipe(family=lineage["family"], params=json.loads(lineage["tuned"]))
    return None if recipe.brought else recipe


def _fitted(
    window: Window, features: FeatureSetRef, winner: Winner, holdout: Window | None = None, twin: Fitted | None = None
) -> ModelRef:
    """A recipe fitted on the rows of a window; its parts go to the store.

    Args:
        holdout, twin: whose answers to which days are the reference of this model's; no twin: its own.
    """
    from ml.config import load_params
    from ml.features.definitions import load_module
    from ml.packaging.artifacts import Artifacts
    from ml.training.rows import rows_of
    from ml.training.spread.fit import fit

    began, cpu_began = time.monotonic(), time.process_time()
    params, module = load_params(), load_module(load_params())
    made = fit(features, window, module.learned, params, winner.recipe, winner.rounds)
    asked = rows_of(features, holdout) if holdout else made.rows[:0]
    profile = _reference(made.fitted, made.rows, twin or made.fitted, asked)
    parts = Artifacts.make(made.fitted, winner, profile)
    cpu_seconds = time.process_time() - cpu_began + made.cpu_seconds
    return _stored(parts, window, time.monotonic() - began, cpu_seconds, made.workers)


def _reference(fitted: Fitted, learned: pd.DataFrame, judged: Fitted, asked: pd.DataFrame) -> bytes:
    """What days are held against: inputs and labels of the rows that a model learned from, and what it, or its twin, answered to
    rows that it had not; features weigh by their mean share in the model's answers to these.
    """
    from ml.config import load_params
    from ml.evaluation import explain
    from ml.features.definitions import load_module
    from ml.monitoring.profiles import build_profile

    params, module = load_params(), load_module(load_params())
    answers = judged.predict(asked) if len(asked) else None
    rows = asked if len(asked) else learned
    profile = build_profile(
        module.numeric,
        module.text,
        learned,
        prediction=answers.argmax(axis=1) if answers is not None and answers.ndim == 2 else answers,
        label=learned["label"].to_numpy(float),
        importance=explain.importance(fitted, rows.iloc[:: max(len(rows) // params.evaluation.explained_rows, 1)]),
    )
    return profile.model_dump_json().encode()


def _stored(parts: Artifacts, window: Window, seconds: float, cpu_seconds: float, workers: int = 1) -> ModelRef:
    from ml import store

    return ModelRef(
        digest=store.sha256(parts.onnx),
        artifacts=store.put(store.pack(parts.files())),
        recipe=parts.winner.recipe,
        rounds=parts.winner.rounds,
        train=window,
        seconds=round(seconds, 3),
        cpu_seconds=round(cpu_seconds, 3),
        workers=workers,
    )


def _study(plan: TrainPlan, features: FeatureSetRef) -> str:
    """One study per data, search settings and warm start: a retried or repeated plan goes on with it instead of starting anew."""
    import hashlib

    from ml.config import load_params

    params = load_params()
    identity = [features.digest, params.tune.digest(), params.train.digest(), json.dumps([r.to_xcom() for r in plan.warm])]
    identity += [f"{fit}/{validation}" for fit, validation in plan.folds]
    return f"{params.problem.name}-{hashlib.sha256('/'.join(identity).encode()).hexdigest()[:16]}"
