"""Commands for those who watch from outside: metrics for Prometheus."""

from __future__ import annotations

import signal
import threading

import typer

from ml import logs
from ml.settings import settings

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def exporter() -> None:
    """Answers Prometheus with the loop's metrics, from ledger and monitoring store, and with Airflow's, until it is stopped.

    \b
    Examples:
      EVERGREEN_EXPORTER_PORT=9109 evergreen exporter
      EVERGREEN_STATSD_PORT=8125 evergreen exporter
    """
    from ml.monitoring import exporter as metrics

    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    stop = metrics.serve(settings().host, settings().exporter_port, settings().statsd_port)
    logs.say(f"metrics of the loop: http://{settings().host}:{settings().exporter_port}/metrics")
    over.wait()
    stop()
