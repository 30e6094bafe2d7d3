# Two images from one file; both run as user 10001, read no secret and write below /state alone.
#   docker build --target airflow -t evergreen-airflow:0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#   docker build --target serving -t evergreen-serving:0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .

FROM python:3.11.14-slim-bookworm AS builder
WORKDIR /opt/evergreen
COPY requirements-uv.lock ./
RUN python -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements-uv.lock \
 && python -m venv --without-pip /opt/venv
ENV VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
COPY ops/link.py ops/

FROM builder AS airflow-packages
COPY deploy/airflow.lock deploy/
RUN /opt/uv/bin/uv pip sync --no-cache --require-hashes deploy/airflow.lock && /opt/venv/bin/python ops/link.py

FROM builder AS serving-packages
COPY deploy/serving.lock deploy/
RUN /opt/uv/bin/uv pip sync --no-cache --require-hashes deploy/serving.lock && /opt/venv/bin/python ops/link.py

FROM python:3.11.14-slim-bookworm AS runtime
RUN groupadd --gid 10001 evergreen \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /state --shell /usr/sbin/nologin evergreen \
 && install -d -o 10001 -g 10001 /state /opt/airflow
WORKDIR /opt/evergreen
ARG REVISION=""
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=Agg \
    AIRFLOW_HOME=/opt/airflow \
    EVERGREEN_HOST=0.0.0.0 \
    EVERGREEN_VAR=/state/var \
    EVERGREEN_DATA=/state/data \
    EVERGREEN_REVISION=$REVISION
COPY LICENSE params.yaml ./
COPY deploy/healthy.py deploy/
COPY ml ml

FROM runtime AS serving
COPY --from=serving-packages /opt/venv /opt/venv
RUN ["python", "-m", "compileall", "-q", "ml"]
USER 10001:10001
EXPOSE 3000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "deploy/healthy.py", "http://127.0.0.1:3000/livez"]
CMD ["evergreen", "serve"]

FROM runtime AS airflow
COPY --from=airflow-packages /opt/venv /opt/venv
COPY dags dags
COPY plugins plugins
COPY great_expectations great_expectations
COPY --chmod=755 deploy/entrypoint.sh /entrypoint
RUN ["python", "-m", "compileall", "-q", "ml", "dags", "plugins"]
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
  CMD ["python", "deploy/healthy.py", "http://127.0.0.1:8080/api/v2/version"]
CMD ["airflow", "api-server"]
