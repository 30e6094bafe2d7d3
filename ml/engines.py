"""What carries work to workers: processes of this machine, Ray, Spark, Beam; for batch scoring and for training alike."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from ml.errors import ConfigError
from ml.settings import settings

Engine = Literal["local", "ray", "spark", "beam"]
NEEDS: dict[str, str] = {"ray": "ray", "spark": "pyspark", "beam": "apache_beam"}
"""What an engine imports; the package's extra has the engine's name."""


def check(engine: str) -> None:
    """Raises ConfigError when there is no such engine, or it is not installed here."""
    if engine not in get_args(Engine):
        raise ConfigError(f"engine {engine!r} is not known", f"set EVERGREEN_ENGINE to one of {', '.join(get_args(Engine))}")
    if engine in NEEDS and importlib.util.find_spec(NEEDS[engine]) is None:
        raise ConfigError(
            f"engine {engine} needs package {NEEDS[engine]}, which is not installed here",
            f"install extra [{engine}] (`make engines` makes an environment with it), or set EVERGREEN_ENGINE=local",
        )


def said(error: Exception) -> str:
    """What a worker raised, out of the engine's wrapping; else the engine's own last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if "ml.errors." in line), lines[-1])[:500]


def environment() -> dict[str, str]:
    """What a worker must know that is in no reference: where the store is. Its credentials are the worker's own."""
    return {"EVERGREEN_STORE": settings().store}


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def ray_cluster(address: str, slots: int) -> Iterator[None]:
    """A connection to a Ray cluster; one that is there already is used, and left.

    Args:
        address: ``auto`` or ``ray://host:10001``; empty: a cluster of its own, on this machine, for so many tasks at a time.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        here = {} if address else {"num_cpus": slots, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        runtime = {"env_vars": environment()} | ({} if address else {"py_executable": sys.executable})
        ray.init(address=address or "local", runtime_env=runtime, log_to_driver=False, configure_logging=False, **here)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def spark_session(address: str, slots: int, **more: str) -> Iterator[Any]:
    """A Spark session; one that is there already is used, and left running.

    Args:
        address: a master, ``spark://host:7077`` or ``yarn``; empty: processes here, so many at a time.
        more: settings of a session of its own, dots written as two underscores.
    """
    from pyspark.sql import SparkSession

    if found := SparkSession.getActiveSession():
        yield found
        return
    builder = SparkSession.builder.appName("evergreen").master(address or f"local[{slots}]")
    chosen = {f"spark.executorEnv.{name}": value for name, value in environment().items()}
    chosen |= {name.replace("__", "."): value for name, value in more.items()}
    if not address:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        chosen |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
    for name, value in chosen.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:
        yield session
    finally:
        session.stop()
