"""Kubernetes manifests against the schemas of the oldest and the newest release that we mean to run on, and against each other."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from ml.settings import Settings
from tests.deploy import files

OLDEST, NEWEST = "1.32", kubernetes_validate.latest_version()
"""1.32 is the first in which `preStop.sleep` needs no feature gate's help."""
CUSTOM = {"ServiceMonitor"}
TARGETS = {"serving", "mlflow", "exporter"}
SERVICE_MONITOR: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["selector", "endpoints"],
            "additionalProperties": False,
            "properties": {
                "jobLabel": {"type": "string"},
                "selector": {"type": "object", "required": ["matchLabels"], "additionalProperties": False,
                             "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}}},
                "endpoints": {"type": "array", "minItems": 1, "items": {
                    "type": "object",
                    "required": ["port"],
                    "additionalProperties": False,
                    "properties": {
                        "port": {"type": "string"},
                        "path": {"type": "string", "pattern": "^/"},
                        "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                        "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+s$"},
                        "authorization": {"type": "object", "additionalProperties": False, "properties": {
                            "type": {"const": "Bearer"},
                            "credentials": {"type": "object", "required": ["name", "key"], "additionalProperties": False,
                                            "properties": {"name": {"type": "string"}, "key": {"type": "string"}}},
                        }},
                    },
                }},
            },
        },
    },
}  # fmt: skip
"""The part of the operator's definition that is used here; it has no schema of Kubernetes' own."""


def of(kind: str) -> dict[str, dict[str, Any]]:
    return {made["metadata"]["name"]: made for made in files.manifests() if made["kind"] == kind}


def containers() -> dict[str, dict[str, Any]]:
    found = {name: made["spec"]["template"]["spec"]["containers"][0] for name, made in of("Deployment").items()}
    assert found.keys() == TARGETS
    return found


def labels(name: str) -> dict[str, str]:
    return dict(of("Deployment")[name]["spec"]["template"]["metadata"]["labels"])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_objects__pass_their_schemas(version: str) -> None:
    checked = [made for made in files.manifests() if made["kind"] not in CUSTOM]
    assert len(checked) >= 10
    for made in checked:
        kubernetes_validate.validate(made, version, strict=True)


def test_a_misspelt_key__does_not_pass() -> None:
    wrong = of("PodDisruptionBudget")["serving"]
    wrong["spec"]["maxUnavailible"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@pytest.mark.parametrize(("name", "job"), [("serving", "serving"), ("exporter", "loop")])
def test_service_monitor__passes_ours_selects_the_service_and_names_the_job_as_the_rules_do(name: str, job: str) -> None:
    monitors = of("ServiceMonitor")
    assert len(monitors) == 2
    spec = monitors[name]["spec"]
    jsonschema.validate(monitors[name], SERVICE_MONITOR)
    chosen = spec["selector"]["matchLabels"].items()
    (service,) = [s for s in of("Service").values() if chosen <= s["metadata"]["labels"].items()]
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert service["metadata"]["labels"].get(spec.get("jobLabel", ""), service["metadata"]["name"]) == job
    asks = endpoint.get("authorization", {}).get("credentials", {}).get("key")
    assert asks == ("EVERGREEN_TOKEN" if name == "serving" else None)


def test_kustomization__names_files_that_exist_and_all_of_them() -> None:
    made = yaml.safe_load((files.KUBERNETES / "kustomization.yaml").read_text())
    named = {*made["resources"], *(name for each in made["configMapGenerator"] for name in each["envs"])}
    there = {path.name for path in files.KUBERNETES.iterdir() if path.name != "secrets.env"}
    assert there == named | {"kustomization.yaml", "airflow-values.yaml", "secrets.env.example"}
    tagged = {image["name"]: image["newTag"] for image in made["images"]}
    assert {container["image"] for container in containers().values()} == tagged.keys()
    assert files.values()["defaultAirflowRepository"] in tagged
    assert files.values()["defaultAirflowTag"] == tagged["evergreen-airflow"]


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy"])
def test_selectors__choose_the_pods_of_their_deployment(kind: str) -> None:
    for name, made in of(kind).items():
        spec = made["spec"]
        chosen = spec["podSelector"]["matchLabels"] if kind == "NetworkPolicy" else spec["selector"]
        assert chosen.get("matchLabels", chosen).items() <= labels(name).items()
    for name, made in of("Deployment").items():
        assert made["spec"]["selector"]["matchLabels"].items() <= labels(name).items()


def test_autoscaler__owns_the_replicas_of_a_deployment_that_asks_for_cpu() -> None:
    (scaler,) = of("HorizontalPodAutoscaler").values()
    target = of("Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"]
    assert containers()[target["metadata"]["name"]]["resources"]["requests"]["cpu"]
    assert scaler["spec"]["minReplicas"] >= 2


def test_ports__are_named_and_the_service_listens_there() -> None:
    for name, container in containers().items():
        names = {port["name"]: port["containerPort"] for port in container["ports"]}
        probes = [container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
        assert all(probe["port"] in names for probe in probes)
        served = {port["targetPort"]: port.get("protocol", "TCP") for port in of("Service")[name]["spec"]["ports"]}
        assert served == {port["name"]: port.get("protocol", "TCP") for port in container["ports"]}
    assert containers()["serving"]["ports"][0]["containerPort"] == Settings.model_fields["serving_port"].default
    exporter = {item["name"]: item.get("value") for item in containers()["exporter"]["env"]}
    listens = {port["name"]: port["containerPort"] for port in containers()["exporter"]["ports"]}
    assert listens == {
        "http": Settings.model_fields["exporter_port"].default,
        "statsd": int(exporter["EVERGREEN_STATSD_PORT"]),
    }
    assert containers()["serving"]["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_pod__is_a_normal_user_without_privileges(name: str) -> None:
    pod = of("Deployment")[name]["spec"]["template"]["spec"]
    user = dict(files.lineage("airflow"))["USER"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    container = pod["containers"][0]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["resources"]["limits"]["memory"]
    assert files.values()["uid"] == pod["securityContext"]["runAsUser"]


def test_variables__exist_and_come_from_keys_that_exist() -> None:
    config = files.env_file(files.KUBERNETES / "config.env")
    secrets = files.env_file(files.KUBERNETES / "secrets.env.example")
    airflow = yaml.safe_load(files.values()["extraEnv"])
    items = [item for container in containers().values() for item in container.get("env", [])] + airflow
    own = {f"EVERGREEN_{name.upper()}" for name in Settings.model_fields}
    given = {name for name in [*config, *secrets, *(item["name"] for item in items)] if name.startswith("EVERGREEN_")}
    assert given <= own
    for item in items:
        if "valueFrom" in item:
            asked = item["valueFrom"]["secretKeyRef"]
            assert asked["name"] == "evergreen" and asked["key"] == item["name"] and asked["key"] in secrets
    assert not any(secrets.values())
    assert {"connection", "fernet-key", "api-secret-key", "jwt-secret"} <= secrets.keys()
    assert yaml.safe_load(files.values()["extraEnvFrom"]) == [{"configMapRef": {"name": "evergreen"}}]


def test_state__is_one_claim_for_all() -> None:
    (claim,) = of("PersistentVolumeClaim")
    pods = [of("Deployment")[name]["spec"]["template"]["spec"] for name in ("serving", "exporter")]
    volumes = [*(volume for pod in pods for volume in pod["volumes"]), *files.values()["volumes"]]
    assert {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v} == {claim}
    mounts = [
        *(m for name in ("serving", "exporter") for m in containers()[name]["volumeMounts"]),
        *files.values()["volumeMounts"],
    ]
    assert [m["mountPath"] for m in mounts if m["name"] == "state"] == ["/state"] * 3


def test_airflow__has_our_version_executor_and_no_chart_database() -> None:
    values = files.values()
    locked = (files.DEPLOY / "airflow.lock").read_text()
    assert f"\napache-airflow=={values['airflowVersion']} " in locked
    assert (values["executor"], values["postgresql"], values["redis"]) == (
        "CeleryExecutor",
        {"enabled": False},
        {"enabled": False},
    )
    assert values["config"]["core"]["dags_folder"] == "/opt/evergreen/dags"
    assert values["scheduler"]["replicas"] == 2
