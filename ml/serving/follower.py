"""Follows the deployment manifest: load → verify → probe → swap, within a second of a change."""

from __future__ import annotations

import logging
import threading
import time
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


class Follows(Protocol):
    """What the follower steers."""

    @property
    def serving(self) -> Serving | None: ...

    def swap(self, serving: Serving) -> None: ...

    def refuse(self, problem: str) -> None: ...

    def clear(self) -> None: ...


class Follower:
    """A thread that keeps `target` at what the manifest says. A bundle that fails any check never serves."""

    def __init__(self, target: Follows) -> None:
        self._target = target
        self._stopping = threading.Event()
        self._settled = 0
        """The manifest version that is served."""
        self._retry_at = 0.0
        self._tried = 0
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
                self._target.refuse(f"the manifest cannot be read: {type(error).__name__}: {error}")
            if self._stopping.wait(POLL_SECONDS):
                return

    def look(self) -> None:
        """One look at the manifest; swaps when it has moved."""
        version = manifest.current_version()
        if version == 0:
            self._target.refuse("nothing was deployed yet: run train and release")
        if version == self._settled and version:
            self._target.clear()
        waits = version == self._tried and time.monotonic() < self._retry_at
        if version in (0, self._settled) or waits:
            return
        self._tried, self._retry_at = version, time.monotonic() + RETRY_SECONDS
        if (wanted := manifest.current()) is not None:
            self._follow(wanted)

    def _follow(self, wanted: Manifest) -> None:
        if wanted.champion is None:
            self._target.refuse(f"manifest {wanted.version} names no champion")
            return
        try:
            self._target.swap(load(wanted.champion, wanted.version))
            self._settled = wanted.version
        except Exception as error:
            if self._target.serving is None and wanted.previous is not None:
                self._rescue(wanted.previous, wanted.version)
            self._target.refuse(f"version {wanted.champion.version} of manifest {wanted.version}: {error}")

    def _rescue(self, previous: Deployed, manifest_version: int) -> None:
        """A service that starts while the champion is broken serves the one before."""
        try:
            self._target.swap(load(previous, manifest_version))
        except Exception:
            logger.exception("the previous champion, version %s, cannot serve either", previous.version)


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
