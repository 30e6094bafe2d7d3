# Evergreen. `make` alone explains.
SHELL := /bin/sh
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
IMAGE_LOCK = $(VENV)/uv/bin/uv pip compile --constraint requirements.lock --generate-hashes --no-header --no-emit-index-url -q --python-version 3.11
export MPLBACKEND := Agg
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup lock lint format test test-fast test-browser test-families lock-families test-backfills demo screenshots bench-features bench-tuning bench-gates bench-canary bench-backfills bench-drift bench-harm bench-estimate bench-serving bench-stream bench-pages bench-batch bench-spread engines test-engines bench-metrics bench-lineage alert-table dashboards fault-table api-cases up down status cluster-up cluster-down test-cluster kill-table

help:  ## show this
	@echo "Evergreen: continuous training for tabular models, on Airflow."
	@echo
	@echo "New here?   make demo    from raw data to a served model, five days of life and a retrain; some minutes, two cores, no network"
	@echo "            make down    stops what it started"
	@echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "Ports:      EVERGREEN_AIRFLOW_PORT (8080), EVERGREEN_MLFLOW_PORT (5000), EVERGREEN_SERVING_PORT (3000)"
	@echo "Then:       $(BIN)/evergreen --help (every step by hand), params.yaml (what changes the model), README.md"

setup: $(STAMP)  ## make .venv from the lock file (once; again when the lock changes)

$(STAMP): requirements.lock requirements-uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; install Python 3.11, or: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing: $$(grep -c == requirements.lock) packages, hashes checked"
	@test -x $(VENV)/uv/bin/uv || $(PYTHON) -m venv $(VENV)/uv
	@$(VENV)/uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(VENV)/uv/bin/uv pip sync -q --require-hashes --compile-bytecode requirements.lock
	@$(BIN)/python ops/link.py
	@touch $@

lock:  ## resolve pyproject.toml again into requirements.lock
	@test -x $(VENV)/uv/bin/uv || { $(PYTHON) -m venv $(VENV)/uv && $(VENV)/uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.lock; }
	$(VENV)/uv/bin/uv pip compile pyproject.toml --extra dev --generate-hashes --no-header --no-emit-index-url -q -o requirements.lock --python-version 3.11
	@# what the images install: the same versions, without what only developers need
	$(IMAGE_LOCK) pyproject.toml -o deploy/airflow.lock
	$(IMAGE_LOCK) deploy/serving.in -o deploy/serving.lock
	@# these start from the versions of the main lock
	@for name in engines beam; do cp requirements.lock requirements-$$name.lock; done
	$(VENV)/uv/bin/uv pip compile pyproject.toml --extra dev --extra ray --extra spark --generate-hashes --no-header --no-emit-index-url -q -o requirements-engines.lock --python-version 3.11
	$(VENV)/uv/bin/uv pip compile pyproject.toml --extra dev --extra beam --generate-hashes --no-header --no-emit-index-url -q -o requirements-beam.lock --python-version 3.11

lock-families: $(STAMP)  ## resolve the examples' requirements again (PyTorch, Keras)
	@for family in torch keras; do \
	  $(VENV)/uv/bin/uv pip compile examples/$$family/requirements.in --generate-hashes --no-header --no-emit-index-url -q -o requirements-$$family.lock --python-version 3.11 || exit; done

lint: $(STAMP)  ## ruff, mypy, import-linter, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q --doctest-modules --doctest-glob=README.md ml $(wildcard README.md) --ignore-glob="ml/*/on_ray.py" --ignore-glob="ml/*/on_spark.py" --ignore-glob="ml/*/on_beam.py" --ignore ml/batch/engines/bigquery.py -p no:cacheprovider

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP)  ## all tests but those below that need more installed, with coverage of ml/
	@# three at a time on two cores: those that start servers wait much of the time
	$(BIN)/python -m pytest --ignore tests/browser --ignore tests/cluster --ignore tests/families --ignore tests/e2e/test_backfills.py -m "not engines" -n 3 --dist loadfile --no-loadscope-reorder --cov=ml --cov-report=term:skip-covered

test-fast: $(STAMP)  ## without the tests that start servers
	$(BIN)/python -m pytest --ignore tests/browser --ignore tests/cluster --ignore tests/families -m "not e2e and not engines" -n 2 --dist loadfile

engines: $(STAMP)  ## environments with Ray and Spark, and with Beam, from their locks
	@for name in engines beam; do \
	  test -x .venv-$$name/bin/python || $(PYTHON) -m venv --without-pip .venv-$$name; \
	  VIRTUAL_ENV=$(CURDIR)/.venv-$$name $(VENV)/uv/bin/uv pip sync -q --require-hashes requirements-$$name.lock || exit 1; \
	  .venv-$$name/bin/python ops/link.py || exit 1; \
	done

test-backfills: $(STAMP)  ## three days of backfills of each DAG beside a nightly: they move nothing; some minutes
	$(BIN)/python -m pytest tests/e2e/test_backfills.py

test-engines: engines  ## batch scoring and training on every engine, so that nothing is skipped for want of a package; some minutes
	@sh ops/install_debian.sh default-jre-headless
	.venv-engines/bin/python -m pytest -p no:cacheprovider -rs tests/batch tests/training/test_spread.py -k "not beam and not bigquery"
	.venv-beam/bin/python -m pytest -p no:cacheprovider -rs tests/batch/test_engines.py tests/batch/test_bigquery.py -k "beam or bigquery"

test-browser: $(STAMP)  ## the pages in a real browser (needs Debian's chromium); some minutes
	$(BIN)/python -m pytest tests/browser

test-families: $(STAMP)  ## PyTorch and Keras models: trained elsewhere, registered, served (300 MB to fetch); some minutes
	@sh ops/families.sh
	$(BIN)/python -m pytest -s -rs tests/families

test-cluster: $(STAMP)  ## the loop on PostgreSQL, Redis, S3 and two Celery workers, and some kills (needs postgresql and redis-server)
	$(BIN)/python -m pytest tests/cluster --durations=5 $(if $(ONLY),-k "$(ONLY)")

demo: $(STAMP)  ## the whole story on real data, with visible progress; starts clean, leaves the services up
	@$(BIN)/python -m ops.demo

screenshots: $(STAMP)  ## pictures for the docs, of what `make demo` left running
	@$(BIN)/python -m ops.screenshots

bench-features: $(STAMP)  ## the feature store beside its alternatives; some minutes
	@$(BIN)/python -m ops.bench_features

bench-tuning: $(STAMP)  ## the search beside the usual ones, on three months; half an hour
	@$(BIN)/python -m ops.bench_tuning --picture docs/tuning.png

bench-gates: $(STAMP)  ## how often the gate errs, on the shipped year: false promotions, power, reused days; some minutes
	@$(BIN)/python -m ops.bench_gates --pictures docs

bench-canary: $(STAMP)  ## what a canary stops, and how soon, on the shipped year; some minutes
	@$(BIN)/python -m ops.bench_canary --picture docs/canary.png

bench-drift: $(STAMP)  ## what a day of drift costs, on day 2 and day 365, and beside Evidently; some minutes
	@$(BIN)/python -m ops.bench_drift

bench-harm: $(STAMP)  ## how often the test of harm errs, and how soon it sees harm, on the shipped year; some minutes
	@$(BIN)/python -m ops.bench_harm --picture docs/harm.png

bench-estimate: $(STAMP)  ## how right estimated performance is on the shipped year, and when it says that it is not; some minutes
	@$(BIN)/python -m ops.bench_estimate --picture docs/estimated-performance.png

bench-backfills: $(STAMP)  ## a month of backfills of each DAG beside a nightly: do they move anything; an hour (DAYS=3 for a short one)
	@$(BIN)/python -m ops.bench_backfills --days $(or $(DAYS),30)

bench-serving: $(STAMP)  ## the service beside BentoML, MLflow and plain FastAPI: highest rate with p99 of 10 ms; 20 minutes
	@$(BIN)/python -m ops.bench_serving

bench-batch: engines  ## batch engines beside bare ONNX Runtime on ROWS rows (10 million); some minutes
	@$(BIN)/python -m ops.bench_batch --rows $(or $(ROWS),10000000)

bench-spread: $(STAMP)  ## training by one process and by several: memory, time, log-loss; some minutes (COPIES=4 of the year)
	@$(BIN)/python -m ops.bench_spread --copies $(or $(COPIES),4)

bench-stream: $(STAMP)  ## a Kafka stream (the client's mock cluster) beside an echo, and 50 kills; 25 minutes (MINUTES=1 KILLS=5 for a short one)
	@$(BIN)/python -m ops.bench_stream --minutes $(or $(MINUTES),10) --kills $(or $(KILLS),50)

bench-pages: $(STAMP)  ## the Models pages after ten days and after a year: time and queries of each; two minutes
	@$(BIN)/python -m ops.bench_pages

bench-metrics: $(STAMP)  ## series after a year, cost of a scrape, cost of counting a request; three minutes
	@$(BIN)/python -m ops.bench_metrics

alert-table: $(STAMP)  ## ten things go wrong under a real Prometheus and Alertmanager: who is told, how soon; six minutes
	@$(BIN)/python -m ops.alert_table

dashboards: $(STAMP)  ## writes Grafana's dashboards anew from ops/dashboards.py
	@$(BIN)/python -m ops.dashboards

bench-lineage: $(STAMP)  ## what lineage events cost, on two Airflows that take turns; four minutes
	@$(BIN)/python -m ops.bench_lineage

fault-table: $(STAMP)  ## the service under load while things break, 500 hot swaps and 10 rollbacks; some minutes
	@$(BIN)/python -m ops.faults

kill-table: $(STAMP)  ## kills on a running cluster, and whether its end is the same as without them; an hour (KILLS=8 for a short one)
	@$(BIN)/python -m ops.kill_table --kills $(or $(KILLS),100)

api-cases: $(STAMP)  ## thousands of made-up requests from the OpenAPI document: no server error, no answer against the schema
	@$(BIN)/python -m ops.api_cases

up: $(STAMP)  ## start Airflow, MLflow and the prediction service
	@$(BIN)/python -m ops.services up

down:  ## stop them
	@test -x $(BIN)/python || { echo "nothing was set up"; exit 0; }; $(BIN)/python -m ops.services down

status: $(STAMP)  ## are they well?
	@$(BIN)/python -m ops.services status

cluster-up: $(STAMP)  ## start a cluster on this computer: PostgreSQL, Redis, S3, MLflow, Airflow with two Celery workers, the service
	@$(BIN)/python -m ops.cluster up

cluster-down:  ## stop it
	@test -x $(BIN)/python || { echo "nothing was set up"; exit 0; }; $(BIN)/python -m ops.cluster down
