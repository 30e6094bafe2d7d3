"""Engine `ray`: a task for each worker, all placed at once; a small actor tells them where the first one is."""

from __future__ import annotations

import asyncio

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ml.engines import ray_cluster
from ml.errors import ConfigError
from ml.training.spread.job import Job, work

PLACE_SECONDS = 120
"""How long a cluster may take to have room for all workers."""


class Board:
    """Holds what the first worker says until all have read it."""

    def __init__(self) -> None:
        self.there, self.said = asyncio.Event(), ""

    async def meet(self, said: str) -> str:
        if said:
            self.said = said
            self.there.set()
        await self.there.wait()
        return self.said


def carry(job: Job, address: str) -> list[str]:
    """See `ml.training.spread.run`. `address`: ``auto`` or ``ray://host:10001``; empty: a cluster of its own, here."""
    workers = len(job.shares)
    with ray_cluster(address, workers):
        group = placement_group([{"CPU": 1}] * workers)
        board = ray.remote(Board).options(num_cpus=0, max_concurrency=workers).remote()
        try:
            try:
                ray.get(group.ready(), timeout=PLACE_SECONDS)
            except ray.exceptions.GetTimeoutError:
                raise ConfigError(
                    f"the Ray cluster has no room for {workers} workers at once", "lower EVERGREEN_TRAIN_WORKERS, or add nodes"
                ) from None
            # a worker that failed must not be started again alone, and its process must end: the others wait for it
            task = ray.remote(num_cpus=1, max_retries=0, max_calls=1)(_work)
            pending = [
                task.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote(
                    job.model_dump_json(), i, board
                )
                for i in range(workers)
            ]
            return _gathered(pending)
        finally:
            ray.kill(board)
            remove_placement_group(group)  # ends what is still running in it


def _gathered(pending: list[ray.ObjectRef]) -> list[str]:
    """What all say; the first failure ends it."""
    said, left = [], pending
    while left:
        (done,), left = ray.wait(left, num_returns=1)
        try:
            said.append(ray.get(done))
        except ray.exceptions.RayTaskError as error:  # it passes for what the worker raised, in other words
            raise RuntimeError(str(error)) from None
    return said


def _work(job: str, rank: int, board: ray.actor.ActorHandle) -> str:
    return work(job, rank, ray.util.get_node_ip_address(), lambda said: ray.get(board.meet.remote(said)))
