#!/bin/sh
# A database for each owner of state; PostgreSQL's image runs it once, when its volume is empty. Those that exist are left alone.
# Reads POSTGRES_USER (and what libpq reads).
set -eu
for name in airflow mlflow evergreen feast optuna; do
  psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres -v name="$name" <<'SQL'
SELECT format('CREATE DATABASE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
SQL
done
