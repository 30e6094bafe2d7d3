"""Makes a registered model again from the raw data version, the code and the parameters of then, and compares the graphs.

Nothing of the first making is used but what its tags say: raw data comes from DVC into a folder of its own and is verified, and a
child process without any of our state (store, caches, feature registry) computes features and fits. Where the code has changed
since, the child runs in a throw-away git worktree of the commit that made the version. See docs/reproduction.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from ml import ledger, store, tracking
from ml.config import Params, load_params
from ml.data import snapshots
from ml.errors import EvergreenError, IntegrityError, NotFoundError
from ml.features.definitions import code_digest as feature_digest
from ml.packaging import lineage
from ml.refs import Recipe, Ref, Window
from ml.revision import git
from ml.settings import ROOT, Settings

KIND = "rebuild"
NEEDED = ("snapshot", "code", "feature_code", "params_file", "revision", "train", "holdout", "learned", "as_of", "family",
          "tuned", "rounds", "model")  # fmt: skip
CHILD = Path(__file__).with_name("remake.py")
LAST_LINES = 15
"""Lines of a failed child's output that are shown."""


class Rebuilt(Ref):
    """What came out of making a version again."""

    version: str
    snapshot: str
    code: str
    tree: str
    """Where the code came from: ``this tree``, or ``commit <id>``."""
    params: str
    rows: int
    """Labelled rows that the model learned from."""
    expected: str
    """SHA-256 of the registered graph."""
    found: str
    """SHA-256 of the graph that was made again."""
    differences: list[str]
    """What else is not as it was then, as far as it was recorded: feature set, library versions."""
    seconds: float

    @property
    def equal(self) -> bool:
        return self.expected == self.found

    @property
    def verdict(self) -> str:
        return "equal" if self.equal else "different"


def rebuild(version: str) -> Rebuilt:
    """Makes a version again; the outcome goes to the ledger, once per version, digest found and code.

    Args:
        version: number in the registry, ``3`` or ``v3``.

    Raises:
        NotFoundError: there is no such version; its data version or parameters are not there any more; or it was registered
            without the tags that say how it was made.
        EvergreenError: it was brought as a graph.
        EvergreenError: the code of then is neither this tree nor a commit of its repository; or making it failed.
        SnapshotError: the raw data is not what was versioned.
    """
    began = time.monotonic()
    number = tracking.number(version)
    tags = tracking.tags(load_params().problem.name, number)
    if tags.get("family") == "onnx":
        raise EvergreenError(
            f"version {number} was brought as a graph: how it was trained is not known here, so it cannot be made again",
            "train it again where it came from, and compare the file's SHA-256 with that in the version's reason",
        )
    if missing := [name for name in NEEDED if name not in tags]:
        raise NotFoundError(
            f"version {number} has no tag {', '.join(missing)}: how it was made was not recorded",
            "rebuild a version trained since",
        )
    with tempfile.TemporaryDirectory(prefix="evergreen-rebuild-") as name, _tree(number, tags, Path(name)) as (tree, what):
        made = _made(number, tags, tree, Path(name))
    rebuilt = Rebuilt(
        version=number,
        snapshot=tags["snapshot"],
        code=made["code"],
        tree=what,
        params=tags["params_file"],
        rows=made["rows"],
        expected=tags["model"],
        found=made["model"],
        differences=_differences(tags, made),
        seconds=round(time.monotonic() - began, 1),
    )
    record(rebuilt, datetime.fromisoformat(tags["as_of"]))
    return rebuilt


def record(rebuilt: Rebuilt, as_of: datetime) -> bool:
    """Notes the outcome in the ledger; False when the same is there already.

    Args:
        as_of: the version's own: a rebuild says something about the moment that the model was made for.
    """
    which = f"the graph of {rebuilt.rows:,} rows, made by {rebuilt.tree}"
    reason = (
        f"{which}, is the registered one" if rebuilt.equal else f"{which}, is {rebuilt.found[:12]}, not {rebuilt.expected[:12]}"
    )
    key = f"{KIND}-v{rebuilt.version}-{rebuilt.found[:16]}-{rebuilt.code}"
    return ledger.record(KIND, key, as_of, f"v{rebuilt.version}", rebuilt.verdict, reason, rebuilt.to_xcom())


def window_of(text: str) -> Window:
    """The inverse of a window's name.

    >>> window_of("2013-01-04..2013-01-24")
    Window(start=datetime.date(2013, 1, 4), end=datetime.date(2013, 1, 25))
    """
    first, last = (date.fromisoformat(day) for day in text.split(".."))
    return Window(start=first, end=last + timedelta(days=1))


# ---- code


@contextmanager
def _tree(version: str, tags: Mapping[str, str], scratch: Path) -> Iterator[tuple[Path, str]]:
    """The code that made the version: this tree where it is the same, else a worktree of its commit, removed in the end."""
    params = store.get(tags["params_file"])
    if (differs := _differs_here(tags, params)) is None:
        yield ROOT, "this tree"
        return
    commit, clean = tags["revision"].partition("+")[0], "+" not in tags["revision"]
    if commit == "unknown" or not clean:
        raise EvergreenError(
            f"version {version} was made by other code than this ({differs}), and by no commit: revision {tags['revision']!r}"
            + ("" if clean else ", where +changes is code that was never committed"),
            f"check out code with digest {tags['code']} by hand, and train from clean commits",
        )
    tree = scratch / "tree"
    try:
        git("cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        raise EvergreenError(
            f"version {version} was made by other code than this ({differs}), by commit {commit}, which the repository {ROOT} "
            "does not have",
            "fetch that commit, or run the command in a clone that has it",
        ) from None
    try:
        git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        yield tree, f"commit {commit[:12]}"
    finally:
        if tree.exists():
            git("worktree", "remove", "--force", "--force", str(tree))
        git("worktree", "prune")


def _differs_here(tags: Mapping[str, str], raw: bytes) -> str | None:
    """Why this tree is not the code that made the version; None when it is."""
    if (code := lineage.code_digest()) != tags["code"]:
        return f"code {tags['code']}, here {code}"
    try:
        params = Params.model_validate_json(raw)
    except ValueError:
        return "its parameters have other keys"
    if (code := feature_digest(params)) != tags["feature_code"]:
        return f"feature code {tags['feature_code']}, here {code}"
    return None


# ---- data, parameters, making


def _made(version: str, tags: Mapping[str, str], tree: Path, scratch: Path) -> dict[str, Any]:
    """Runs the child; its outcome, if it was the right code that ran."""
    snapshot = snapshots.by_digest(tags["snapshot"])
    root = snapshots.restore(snapshot, scratch / "restored" / "raw")
    snapshots.verify(snapshot, root)
    (scratch / "params.yaml").write_bytes(store.get(tags["params_file"]))  # JSON is YAML
    start, end = tags["learned"].split("/")
    order = {
        "root": str(root),
        "snapshot": snapshot.model_dump(mode="json"),
        "window": Window(start=window_of(tags["train"]).start, end=window_of(tags["holdout"]).end).model_dump(mode="json"),
        "learned": {"start": start, "end": end},
        "as_of": tags["as_of"],
        "recipe": Recipe.model_validate({"family": tags["family"], "params": json.loads(tags["tuned"])}).model_dump(mode="json"),
        "rounds": int(tags["rounds"]),
        "workers": int(tags.get("workers", 1)),
        "code": tags["code"],
        "feature_code": tags["feature_code"],
    }
    (scratch / "order.json").write_text(json.dumps(order))
    outcome = scratch / "outcome.json"
    workers = {"EVERGREEN_TRAIN_WORKERS": tags.get("workers", "1")}
    command = [sys.executable, "-P", str(CHILD), str(scratch / "order.json"), str(outcome)]
    done = subprocess.run(
        command, cwd=tree, env=_environment(tree, scratch) | workers, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not outcome.exists():
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
        raise EvergreenError(
            f"version {version} cannot be made again: the child process ended with {done.returncode}:\n{last}",
            "install the libraries that the version's tag `libraries` names, or mend what the last line says",
        )
    made: dict[str, Any] = json.loads(outcome.read_text())
    for name in ("code", "feature_code"):
        if made[name] != tags[name]:
            raise IntegrityError(
                f"version {version} was made by {name} {tags[name]}; {tree.name} at {tags['revision'][:12]} has {made[name]}",
                "it was trained with files that git does not track: put them back, or train from clean commits",
            )
    return made


def _environment(tree: Path, scratch: Path) -> dict[str, str]:
    """Ours, but for every place of state, which is below `scratch`: the child finds nothing made, and leaves nothing behind."""
    (scratch / "var").mkdir()
    names = {f"EVERGREEN_{name.upper()}" for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in names}
    places = {"EVERGREEN_PARAMS": "params.yaml", "EVERGREEN_DATA": "data", "EVERGREEN_VAR": "var"}
    return kept | {name: str(scratch / place) for name, place in places.items()} | {"PYTHONPATH": str(tree)}


def _differences(tags: Mapping[str, str], made: Mapping[str, Any]) -> list[str]:
    """What is not as it was, in words; older versions recorded less."""
    found = []
    if tags.get("features", made["features"]) != made["features"]:
        found.append(f"feature set {made['features'][:12]}, then {tags['features'][:12]}")
    then, now = json.loads(tags.get("libraries", "{}")), lineage.libraries()
    for name in sorted(then.keys() | now.keys() if then else ()):
        if then.get(name) != now.get(name):
            found.append(f"{name} {now.get(name, 'not installed')}, then {then.get(name, 'not installed')}")
    return found
