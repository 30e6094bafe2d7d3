"""`release`: proves that a candidate serves, then makes it the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Param, dag, task

from dags.common import CANDIDATE, CHAMPION, Json, dag_args, occasion, step, time_param

if TYPE_CHECKING:
    from ml.refs import VersionRef

DOC = """
### release: from candidate to champion

**What** — runs when `train` announces a candidate (asset `candidate`). `smoke` boots the packaged service and compares its answers with the
recorded ones; `promote` moves the alias and the deployment manifest by compare-and-set (asset `champion`). The service follows the manifest.

**Who is called** — the data team, on *failed*. Until `promote` has succeeded the old champion serves. Versions marked `backfill` are refused.

| task failed | it means | do |
|---|---|---|
| `smoke` | the package does not start, or answers otherwise than when it was built | do not promote it; read the log, train again |
| `promote` | somebody else moved the champion meanwhile, or the registry does not answer | clear the task: it reads the state anew |

**By hand** — give *version* to release a registered version again.
"""


def _version() -> VersionRef:
    """The version to release: from the asset event (whole), or by its number from the form."""
    from ml.errors import ConfigError, EvergreenError
    from ml.refs import VersionRef

    asked = occasion().asked.get("version")
    if asked is None:
        raise ConfigError("no version to release", 'fill in "Version" (conf {"version": "3"}); see the registry for its numbers')
    if isinstance(asked, dict):
        ref = VersionRef.model_validate(asked)
    else:
        from ml import tracking

        ref = tracking.version_ref(str(asked))
    if ref.backfill:
        raise EvergreenError(f"version {ref.version} comes from a backfill", "release a version that was trained on the day")
    return ref


@dag(
    schedule=[CANDIDATE],
    doc_md=DOC,
    params={
        "version": Param(
            None, type=["null", "string", "object"], title="Version", description_md="Number of a registered version."
        ),
        "as_of": time_param(description="The moment written beside the promotion; fill it in when you release by hand."),
    },
    **dag_args("model"),
)
def release() -> None:
    @task
    def smoke() -> Json:
        from ml import steps
        from ml.errors import EvergreenError

        with step():
            decision = steps.smoke(_version())
            if not decision.passed:
                raise EvergreenError(f"the package failed its smoke test: {decision.reason}", "read the checks in the ledger")
            return decision.to_xcom()

    @task(outlets=[CHAMPION])
    def promote(*, outlet_events: Any) -> int:
        from ml import steps

        with step():
            version = _version()
            as_of = occasion().as_of
            manifest = steps.promote(version, as_of)
            outlet_events[CHAMPION].extra = {"version": version.version, "manifest": manifest, "as_of": as_of.isoformat()}
            return manifest

    smoke() >> promote()


RELEASE = release()
