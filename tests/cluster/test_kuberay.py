"""The Kubernetes files, against KubeRay's own schemas and against what they promise."""

from __future__ import annotations

import copy
import gzip
from functools import cache
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from cluster_tools import CLUSTER, ROOT, pins, schema_file

import raytuner
from raytuner.definition import load

SHARED = "/mnt/raytuner"


def _strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema. Like the API server's strict reading it refuses fields that it does not name."""
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {key: _strict(inner) for key, inner in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        converted.pop("anyOf", None)
        return {**converted, "type": ["integer", "string"]}
    names_fields = isinstance(schema.get("properties"), dict) and "type" in schema
    if names_fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        converted.setdefault("additionalProperties", False)
    return converted


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    text = gzip.decompress(schema_file(f"ray.io_{kind}s.crd.yaml.gz").read_bytes())
    crd = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # it is long
    version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / f"{name}.yaml").read_text()))


@pytest.fixture(params=["raycluster", "rayjob"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def resource(kind: str) -> dict[str, Any]:
    (only,) = _documents(kind)
    return only


@pytest.fixture
def cluster(resource: dict[str, Any]) -> dict[str, Any]:
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def _pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_kuberay_accepts_the_file(kind: str, resource: dict[str, Any]) -> None:
    _validator(kind).validate(resource)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["authOptions", "mode"], "tokens", "'tokens' is not one of"),
        (["workerGroupSpecs", 0, "maxReplica"], 3, "maxReplica"),
        (["workerGroupSpecs", 0, "template", "spec", "containers", 0, "resource"], {}, "resource"),
        (["headGroupSpec", "template", "spec", "securityContext", "fsGroup"], "users", "'users' is not of type"),
    ],
)
def test_a_planted_mistake_is_found(
    kind: str, resource: dict[str, Any], path: list[Any], value: Any, message: str
) -> None:
    wrong = copy.deepcopy(resource)
    place = wrong["spec"].get("rayClusterSpec", wrong["spec"])
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError, match=message):
        _validator(kind).validate(wrong)


def test_a_job_brings_the_same_cluster_and_may_use_all_of_it() -> None:
    standing, job = _documents("raycluster")[0]["spec"], _documents("rayjob")[0]["spec"]
    assert standing == job["rayClusterSpec"]
    assert [group["replicas"] for group in standing["workerGroupSpecs"]] == [0]
    most = sum(group["maxReplicas"] for group in standing["workerGroupSpecs"])
    assert f"--set resources.concurrent_trials={most}" in job["entrypoint"]  # nobody but KubeRay knows


def test_versions_agree(cluster: dict[str, Any]) -> None:
    assert cluster["rayVersion"] == pins()["ray"] == ray.__version__
    images = {container["image"] for pod in _pods(cluster) for container in pod["spec"]["containers"]}
    assert [image.rsplit(":", 1)[1] for image in images] == [raytuner.__version__]


def test_ray_wants_a_token_and_is_not_exposed(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]


def test_the_network_policy_is_for_these_pods(cluster: dict[str, Any]) -> None:
    (policy,) = (document for document in _documents("shared") if document["kind"] == "NetworkPolicy")
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for pod in _pods(cluster):
        assert selected <= pod["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    among_them, from_others = policy["spec"]["ingress"]
    assert [peer["podSelector"]["matchLabels"].items() for peer in among_them["from"]] == [selected]
    assert from_others["ports"] == [{"port": 8265}]


def test_gpu_workers_come_and_go_on_spot_and_the_head_stays(cluster: dict[str, Any]) -> None:
    def terms(pod: dict[str, Any]) -> list[dict[str, Any]]:
        affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return affinity["nodeSelectorTerms"]

    assert cluster["enableInTreeAutoscaling"] is True
    head, *workers = _pods(cluster)
    (all_of,) = terms(head)  # every one of these conditions holds for the head's node
    kept_off = {(e["key"], *e.get("values", ["true"])) for e in all_of["matchExpressions"]}
    assert {e["operator"] for e in all_of["matchExpressions"]} == {"NotIn", "DoesNotExist"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod, group in zip(workers, cluster["workerGroupSpecs"], strict=True):
        wanted = {(e["key"], *e["values"]) for term in terms(pod) for e in term["matchExpressions"]}
        assert wanted == kept_off
        assert group["minReplicas"] == 0
        assert group["maxReplicas"] >= 1
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["nvidia.com/gpu"]) >= 1
        assert pod["spec"]["terminationGracePeriodSeconds"] > 30  # Ray's time to drain a node


def test_all_pods_mount_the_claim_alike(cluster: dict[str, Any]) -> None:
    (claim,) = (document for document in _documents("shared") if document["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in _pods(cluster):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert volumes[mounts[SHARED]]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}


def test_no_pod_has_rights_that_it_does_not_need(cluster: dict[str, Any]) -> None:
    head, *workers = _pods(cluster)
    for pod in (head, *workers):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "env" not in container  # and so no secret in one
    assert all(
        pod["spec"]["automountServiceAccountToken"] is False for pod in workers
    )  # the head's autoscaler needs it


def test_the_job_names_an_experiment_that_is_in_the_image() -> None:
    job = _documents("rayjob")[0]["spec"]
    program, command, file, resume, *options = job["entrypoint"].split()
    assert (program, command, resume) == ("raytuner", "run", "--resume")
    assert options[0::2] == ["--set"] * 3
    definition = load(ROOT / file.removeprefix("/opt/raytuner/"), options[1::2])
    assert definition.storage.startswith(SHARED)
    assert not set(job["entrypoint"]) & set("'\"`$;|")
    assert job["shutdownAfterJobFinishes"] is True
    assert job["backoffLimit"] >= 1
