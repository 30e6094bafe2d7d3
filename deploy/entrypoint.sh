#!/bin/sh
# Airflow's Helm chart runs its probes by /entrypoint, as the official image has one.
exec "$@"
