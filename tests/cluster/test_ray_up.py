"""The files for ``ray up``, against Ray's own schema, validator and launchers, and against what they promise."""

from __future__ import annotations

import copy
import json
import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cluster_tools import ROOT, options_of, pinned_in, pins, read

CLOUDS = ("aws", "gcp", "azure")
ALL = (*CLOUDS, "on_prem")
SHARED = "/mnt/raytuner"


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(name: str) -> dict[str, Any]:
    return read(f"{name}.yaml")


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(f"{request.param}.yaml")


def _ray_schema() -> dict[str, Any]:
    import ray

    return json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def _prepared(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` completes it from its defaults, and checked by Ray."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    else:
        yield str(value)


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    jsonschema.validate(config, _ray_schema())
    prepared = _prepared(config)
    assert prepared["head_setup_commands"][: len(config["setup_commands"])] == config["setup_commands"]
    assert prepared["worker_setup_commands"] == config["setup_commands"]


def test_ray_refuses_a_field_that_it_does_not_know(config: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        jsonschema.validate({**config, "idle_timeout": 5}, _ray_schema())


def test_the_workers_bounds_are_consistent_and_begin_at_none(cloud: dict[str, Any]) -> None:
    head = cloud["available_node_types"][cloud["head_node_type"]]
    workers = [kind for name, kind in cloud["available_node_types"].items() if name != cloud["head_node_type"]]
    assert head["max_workers"] == 0
    assert workers
    for kind in workers:
        assert kind["min_workers"] == 0
        assert 1 <= kind["max_workers"] <= cloud["max_workers"]
    assert cloud["idle_timeout_minutes"] <= 10
    assert cloud["provider"]["cache_stopped_nodes"] is False


def test_on_prem_all_machines_are_workers() -> None:
    provider = read("on_prem.yaml")["provider"]
    assert _prepared(read("on_prem.yaml"))["max_workers"] == len(provider["worker_ips"])


def _is_spot(node: dict[str, Any]) -> bool:
    azure = node.get("azure_arm_parameters", {})
    kinds = (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
        node.get("scheduling", {}).get("provisioningModel") == "SPOT",
        azure.get("priority") == "Spot",
    )
    return any(kinds)


def test_gpu_workers_are_on_spot_and_the_head_is_not(cloud: dict[str, Any]) -> None:
    for name, kind in cloud["available_node_types"].items():
        if name == cloud["head_node_type"]:
            assert not _is_spot(kind["node_config"])
            assert kind["resources"] == {"CPU": 0}  # no trial beside the driver
        else:
            assert _is_spot(kind["node_config"])
            assert kind["resources"]["GPU"] >= 1
            types = [resource for resource in kind["resources"] if resource.startswith("accelerator_type:")]
            assert [kind["resources"][resource] for resource in types] == [kind["resources"]["GPU"]]
            assert f"spot_notice.sh {cloud['provider']['type']} " in cloud["worker_start_ray_commands"][-1]


def test_nodes_have_no_public_addresses(cloud: dict[str, Any]) -> None:
    assert cloud["provider"]["use_internal_ips"] is True
    assert "accessConfigs" not in set(_texts(cloud))  # Google's word for a public address


def test_the_dashboard_is_for_the_head_alone_and_ray_wants_a_token(config: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        starts = [command for command in config[f"{kind}_start_ray_commands"] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]


def test_ray_start_knows_the_options(config: dict[str, Any]) -> None:
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    given = re.findall(r"(--[a-z-]+)", " ".join(command.partition("&&")[0] for command in commands))
    assert set(given) <= options_of("ray", "start")


def test_no_secret_is_in_the_file(config: dict[str, Any]) -> None:
    words = r"(?i)AKIA[0-9A-Z]{12}|secret|password|BEGIN .*KEY|RAY_AUTH_TOKEN=|\b[0-9a-f]{32,}\b"
    assert [text for text in _texts(config) if re.search(words, text)] == []


def test_all_nodes_mount_the_same_storage_and_wait_for_it(config: dict[str, Any]) -> None:
    commands = config["setup_commands"]  # those of the head and of the workers alike
    assert any(f" {SHARED} nfs" in command and "/etc/fstab" in command for command in commands)
    assert any(f"mountpoint -q {SHARED} || sudo mount {SHARED}" in command for command in commands)
    assert not any(
        SHARED in command for kind in ("head", "worker") for command in config.get(f"{kind}_setup_commands", ())
    )


def test_every_package_is_pinned_as_the_tests_pin_it(config: dict[str, Any]) -> None:
    commands = [*config["setup_commands"], *config.get("head_setup_commands", ())]
    installs = [command for command in commands if "pip install" in command]
    assert any('"$HOME/raytuner[cluster]"' in command for command in installs)
    for command in installs:
        words = command.split("pip install", 1)[1].split()
        packages = [word for word in words if word[0].isalpha()]
        assert all("==" in package for package in packages), command
        assert "uv==" in command or "-c ~/raytuner/constraints.txt" in command
        known = pins()
        for package, version in pinned_in(command).items():
            assert known.get(package, version) == version
    assert any("--python 3.11" in command for command in commands)
    assert "cluster" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert config["file_mounts"]["~/raytuner/constraints.txt"] == "constraints.txt"


def test_every_image_is_one_and_no_alias_that_moves(cloud: dict[str, Any]) -> None:
    for kind in cloud["available_node_types"].values():
        node = kind["node_config"]
        named = node.get("ImageId") or node.get("azure_arm_parameters", {}).get("imageVersion")
        named = named or node["disks"][0]["initializeParams"]["sourceImage"]
        assert re.fullmatch(r"ami-[0-9a-f]{17}|\d+\.\d+\.\d+|projects/[\w-]+/global/images/[\w-]+-v\d{8}", named), named


def test_what_is_copied_to_the_nodes_is_there(config: dict[str, Any]) -> None:
    mounts = {there: here for there, here in config["file_mounts"].items() if not here.startswith("~")}
    assert [here for here in mounts.values() if not (ROOT / here).exists()] == []
    package = {"raytuner", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert package <= set(mounts.values())  # what a build of the package needs
    if "spot_notice.sh" in config["worker_start_ray_commands"][-1]:
        assert mounts["~/raytuner/spot_notice.sh"] == "cluster/spot_notice.sh"


def test_azure_knows_the_machines_parameters() -> None:
    import ray

    folder = Path(ray.__file__).parent / "autoscaler" / "_private" / "_azure"
    known = json.loads((folder / "azure-vm-template.json").read_text())["parameters"]
    for kind in read("azure.yaml")["available_node_types"].values():
        assert set(kind["node_config"]) == {"azure_arm_parameters"}
        for parameter, value in kind["node_config"]["azure_arm_parameters"].items():
            types = {"string": str, "int": int, "object": dict}
            assert isinstance(value, types[known[parameter]["type"]]), parameter


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The AWS file, with the values that one has to change, in an imitation of AWS that has such things."""
    moto = pytest.importorskip("moto")
    import boto3

    config = read("aws.yaml")
    region = config["provider"]["region"]
    for variable, value in {
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": region,
        "HOME": str(tmp_path),  # a key pair is written to ~/.ssh
    }.items():
        monkeypatch.setenv(variable, value)
    with moto.mock_aws():
        ec2 = boto3.resource("ec2")
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        zones = [(f"10.0.{number}.0/24", f"{region}{zone}") for number, zone in enumerate("ab")]
        subnets = [network.create_subnet(CidrBlock=block, AvailabilityZone=zone).id for block, zone in zones]
        group = ec2.create_security_group(GroupName="raytuner", Description="raytuner", VpcId=network.id).id
        image = next(iter(ec2.images.limit(1))).id
        for kind in config["available_node_types"].values():
            node = kind["node_config"]
            boto_profile = node["IamInstanceProfile"]["Name"]
            iam = boto3.client("iam")
            if boto_profile not in {p["InstanceProfileName"] for p in iam.list_instance_profiles()["InstanceProfiles"]}:
                iam.create_instance_profile(InstanceProfileName=boto_profile)
            assert len(node["SubnetIds"]) == len(subnets)
            assert len(node["SecurityGroupIds"]) == 1
            node.update(SubnetIds=list(subnets), SecurityGroupIds=[group], ImageId=image)
        yield config


def test_rays_launcher_starts_the_nodes_on_an_imitation_of_aws(aws: dict[str, Any]) -> None:
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

    logging.getLogger("ray").setLevel(logging.ERROR)
    prepared = bootstrap_aws(_prepared(aws))
    provider = AWSNodeProvider(prepared["provider"], prepared["cluster_name"])
    for name, kind in prepared["available_node_types"].items():
        provider.create_node(kind["node_config"], {TAG_RAY_USER_NODE_TYPE: name}, 1)
    started = {
        next(tag["Value"] for tag in instance.tags if tag["Key"] == TAG_RAY_USER_NODE_TYPE): instance
        for instance in boto3.resource("ec2").instances.all()
    }
    assert {name: instance.instance_lifecycle for name, instance in started.items()} == {
        "head": None,
        "gpu": "spot",
        "gpus": "spot",
    }
    assert all(instance.public_ip_address is None for instance in started.values())
    assert all(instance.metadata_options["HttpTokens"] == "required" for instance in started.values())


def test_the_resources_are_those_of_the_instance_types(aws: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    bare = copy.deepcopy(aws)
    for kind in bare["available_node_types"].values():
        kind["resources"] = {}
    found = AWSNodeProvider.fillout_available_node_types_resources(bare)["available_node_types"]
    for name, kind in aws["available_node_types"].items():
        if name != aws["head_node_type"]:
            there = found[name]["resources"]
            assert {resource: there.get(resource) for resource in ("CPU", "GPU")} == {
                resource: kind["resources"][resource] for resource in ("CPU", "GPU")
            }
            assert set(there) - {"memory"} <= set(kind["resources"])
