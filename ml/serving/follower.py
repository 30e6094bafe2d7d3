"""Follows the deployment manifests: load → verify → probe → swap, within a second of a change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable
from typing import Protocol

from ml.errors import IntegrityError
from ml.packaging.bundle import Bundle
from ml.serving import manifest
from ml.serving.answering import Serving
from ml.serving.manifest import Deployed, Manifest

POLL_SECONDS = 0.3
RETRY_SECONDS = 5.0
"""A refused bundle is tried again this often: the store may have been unreachable, or somebody has mended it."""

logger = logging.getLogger(__name__)

Loaded = dict[Deployed, Serving]


class Follows(Protocol):
    """What the follower steers. All is called on the follower's thread."""

    @property
    def default(self) -> str:
        """The name that has to be served."""

    def serves(self, name: str) -> bool:
        """Whether any model of this name answers."""

    def swap(self, document: Manifest, loaded: Loaded) -> None:
        """Takes a manifest into service. `loaded`: those of its models that may serve."""

    def drop(self, name: str) -> None:
        """No manifest has this name any more."""

    def refuse(self, name: str, problem: str) -> None:
        """What should serve cannot; what serves now stays."""

    def clear(self, name: str) -> None:
        """What should serve does."""


class Follower:
    """A thread that keeps `target` at what the manifests say. A bundle that fails any check never serves."""

    def __init__(self, target: Follows) -> None:
        self._target = target
        self._stopping = threading.Event()
        self._settled: dict[str, int] = {}
        """By name, the manifest version that is served whole."""
        self._tried: dict[str, tuple[int, float]] = {}
        """By name, the version that was tried last, and when to try it again."""
        self._loaded: dict[str, Loaded] = {}
        self._swapped: dict[str, tuple[int, Collection[Deployed]]] = {}
        """By name, what is in service: the manifest's version, and which of its models."""
        self._thread = threading.Thread(target=self._run, name="manifest-follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:
                self._target.refuse(self._target.default, f"the manifest cannot be read: {type(error).__name__}: {error}")
            if self._stopping.wait(POLL_SECONDS):
                return

    def look(self) -> None:
        """One look at all manifests; swaps what has moved."""
        versions = manifest.current_versions()
        if self._target.default not in versions:
            self._target.refuse(self._target.default, "nothing was deployed yet: run train and release")
        for name in self._loaded.keys() - versions.keys():
            self._target.drop(name)
            self._settled.pop(name, None)
            self._swapped.pop(name, None)
            del self._loaded[name]
        for name, version in versions.items():
            self._look_at(name, version)

    def _look_at(self, name: str, version: int) -> None:
        if version == self._settled.get(name):
            self._target.clear(name)
            return
        tried, retry_at = self._tried.get(name, (0, 0.0))
        if version == tried and time.monotonic() < retry_at:
            return
        self._tried[name] = (version, time.monotonic() + RETRY_SECONDS)
        try:
            if (wanted := manifest.current(name)) is not None:
                self._follow(wanted)
        except Exception as error:
            self._target.refuse(name, f"manifest {version} of {name} cannot be read: {type(error).__name__}: {error}")

    def _follow(self, wanted: Manifest) -> None:
        if wanted.champion is None:
            self._target.refuse(wanted.name, f"manifest {wanted.version} names no champion")
            return
        kept, loaded, problems = self._loaded.get(wanted.name, {}), {}, []
        for deployed in _named(wanted):
            try:
                loaded[deployed] = kept.get(deployed) or load(deployed, wanted.version)
            except Exception as error:
                problems.append(f"version {deployed.version} of manifest {wanted.version}: {error}")
        problem = "; ".join(problems)
        stand_in = wanted.previous in loaded and not self._target.serves(wanted.name)
        found = (wanted.version, loaded.keys())
        if (wanted.champion in loaded or stand_in) and found != self._swapped.get(wanted.name):
            self._target.swap(wanted, loaded)
            self._loaded[wanted.name], self._swapped[wanted.name] = loaded, found
        if problem:
            self._target.refuse(wanted.name, problem)
        else:
            self._settled[wanted.name] = wanted.version


def _named(wanted: Manifest) -> Iterable[Deployed]:
    """The models of a manifest, the champion first."""
    arms = wanted.experiment.arms.values() if wanted.experiment else ()
    every = (wanted.champion, wanted.canary, wanted.previous, wanted.shadow, *arms)
    return dict.fromkeys(deployed for deployed in every if deployed is not None)


def load(deployed: Deployed, manifest_version: int) -> Serving:
    """Loads what the manifest names.

    Raises:
        EvergreenError: it is not in the store, is damaged, is another model than the manifest says, or fails its probe.
    """
    bundle = Bundle.load(deployed.bundle)
    if bundle.card.model_digest != deployed.model:
        raise IntegrityError(
            f"bundle {deployed.bundle[:12]} holds model {bundle.card.model_digest}, the manifest says {deployed.model}",
            "register and promote the version again",
        )
    return Serving.of(bundle, deployed.version, manifest_version)
