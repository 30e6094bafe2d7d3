"""Online features in memory: what was read at the current tick answers again without a read, until the tick moves.

One thread reads the store, for all requests that wait, and looks at the tick twice a second. Whoever asks never waits for it
longer than `PATIENCE`: a store that is slow or gone is left alone by requests until a read comes back in time.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ml.features.assembly import NOTHING, Known
from ml.features.online import Key, OnlineStore, Payload, StoreDownError

WATCH_SECONDS = 0.5
PATIENCE = 0.5
"""Share of a request's time budget that it may wait for the store."""
FIRST_SECONDS = 5.0
"""How long a start waits for the first look: opening the store may take longer than a read."""
LIFETIME = 60.0
"""Seconds in which all values are read again though the tick has not moved: somebody may have mended the tick's values."""
MOST = 500_000
_ABSENT: Payload = {}

logger = logging.getLogger(__name__)


class _Read(NamedTuple):
    keys: list[Key]
    arrived: Callable[[Known], object]


class HotFeatures:
    """A store's values, kept in memory.

    Args:
        store: what is read.
        patience: seconds; a read that takes longer, or fails, makes the store distrusted until one does not.
    """

    def __init__(self, store: OnlineStore, patience: float) -> None:
        self._store, self.patience = store, patience
        self.known = NOTHING
        """Everything that was read at the current tick; an entity that the store does not have is in it, without values."""
        self.problem: str | None = None
        self.trusted = True
        self.reads = 0
        self._again: list[Key] = []
        """Known keys that are still to be read again in this round."""
        self._last = 0.0
        self._asked: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="online-features", daemon=True)

    def start(self) -> None:
        """Starts the reader and gives it a moment for a first look."""
        self._thread.start()
        self._looked.wait(FIRST_SECONDS)

    def stop(self) -> None:
        """Ends the reader; one that hangs in a read is left behind."""
        self._asked.put(None)
        self._thread.join(1.0)

    def lookup(self, keys: Iterable[Key | None]) -> Known | None:
        """What is known of these entities (None: no entity), all of one tick; None: it has to be read. Never waits."""
        known = self.known
        if known.tick is None:
            return NOTHING
        found = known.found
        for key in keys:
            if key is not None and key not in found:
                return None if self.trusted else NOTHING
        return known

    def read(self, keys: list[Key], arrived: Callable[[Known], object]) -> None:
        """Has the reader read these entities, and call `arrived`, on its own thread."""
        self._asked.put(_Read(keys, arrived))

    def distrust(self) -> None:
        """A read did not come back in time: until one does, requests do not wait."""
        self.trusted = False
        self.problem = f"a read took longer than {1000 * self.patience:.0f} ms"

    def _run(self) -> None:
        watched = 0.0
        while True:
            wanted = self._wanted(max(0.0, watched + WATCH_SECONDS - time.monotonic()))
            if wanted is None:
                return
            if wanted or time.monotonic() >= watched + WATCH_SECONDS:
                self._look(wanted)
                watched = time.monotonic()

    def _wanted(self, seconds: float) -> list[_Read] | None:
        """All that was asked for by now; waits at most `seconds` for the first. None: stop."""
        found: list[_Read] = []
        try:
            while len(found) < 1000:
                asked = self._asked.get(timeout=seconds) if not found and seconds else self._asked.get_nowait()
                if asked is None:
                    return None
                found.append(asked)
        except queue.Empty:
            pass
        return found

    def _look(self, wanted: list[_Read]) -> None:
        started = time.monotonic()
        keys = list(dict.fromkeys([*(key for read in wanted for key in read.keys), *self._due(started)]))
        known = NOTHING
        self.reads += 1
        try:
            tick, found = self._store.read(keys)
            known = Known(tick, found)
            if tick is None and self.known.tick is not None:
                raise StoreDownError("the online store has lost its values", "run `evergreen materialise`")
            self._keep(Known(tick, {key: found.get(key, _ABSENT) for key in keys}))
            first = not self._looked.is_set()
            self.trusted = (seconds := time.monotonic() - started) <= self.patience or first
            self._told(None if self.trusted else f"a read took {seconds:.2f} s")
        except Exception as error:  # whatever a store's library may raise: answers go on without it
            self.trusted = False
            self._told(str(error))
        finally:
            self._looked.set()
        for read in wanted:
            read.arrived(known)

    def _due(self, now: float) -> list[Key]:
        """The next known keys in turn: as many as keep all younger than `LIFETIME`, never all at once."""
        self._again = self._again or list(self.known.found)
        share, self._last = min((now - self._last) / LIFETIME, 1.0), now
        n = max(len(self._again) - math.ceil(share * len(self.known.found)), 0)
        due, self._again = self._again[n:], self._again[:n]
        return due

    def _keep(self, fresh: Known) -> None:
        if fresh.tick != self.known.tick or len(self.known.found) + len(fresh.found) > MOST:
            self.known = fresh
        else:  # no new object: who holds the tick's values sees them grow
            self.known.found.update(fresh.found)  # type: ignore[attr-defined]  # a Mapping to all but us

    def _told(self, problem: str | None) -> None:
        if (problem is None) != (self.problem is None):
            logger.warning("online features: %s", problem or "the store answers again")
        self.problem = problem
