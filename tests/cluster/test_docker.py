"""The images and the compose file, against the Compose specification and the files that they name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cluster_tools import CLUSTER, ROOT, options_of, pinned_in, pins, read, schema_file

import raytuner

DOCKERFILE = CLUSTER / "docker" / "Dockerfile"
RAY_NODES = ("head", "worker", "worker-gpu")


@pytest.fixture
def compose() -> dict[str, Any]:
    return read("docker/compose.yaml")


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


def _instructions() -> list[list[str]]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def test_compose_accepts_the_file_and_refuses_another(compose: dict[str, Any]) -> None:
    schema = json.loads(schema_file("compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(compose)
    compose["services"]["head"]["restarts"] = "always"
    with pytest.raises(jsonschema.ValidationError, match="restarts"):
        jsonschema.Draft7Validator(schema).validate(compose)


def test_images_are_pinned(services: dict[str, Any]) -> None:
    tags = {name: service["image"].rsplit(":", 1)[1] for name, service in services.items()}
    assert all(re.fullmatch(r"\d+\.\d+(\.\d+)?", tag) for tag in tags.values()), tags
    assert {tags[name] for name in RAY_NODES} == {raytuner.__version__}
    assert tags["mlflow"] == tags["bucket"] == pins()["mlflow"]
    targets = {name: service["build"]["target"] for name, service in services.items() if "build" in service}
    assert targets == {**dict.fromkeys(RAY_NODES, "raytuner"), "mlflow": "mlflow", "bucket": "mlflow"}
    assert {service["build"]["context"] for service in services.values() if "build" in service} == {"../.."}


def test_only_this_machine_reaches_a_port(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in services["postgres"]
    assert "ports" not in services["storage"]


def test_the_database_and_the_store_are_out_of_reach_for_trials(compose: dict[str, Any]) -> None:
    assert compose["networks"]["data"] == {"internal": True}
    for name in RAY_NODES:
        assert compose["services"][name]["networks"] == ["ray"]
        assert compose["services"][name]["secrets"] == ["ray_token"]
    for name in ("postgres", "storage", "bucket"):
        assert compose["services"][name]["networks"] == ["data"]


def test_ray_nodes_want_a_token_share_a_folder_and_have_time_to_end(services: dict[str, Any]) -> None:
    for name in RAY_NODES:
        service = services[name]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert service["volumes"] == ["results:/mnt/raytuner"]
        assert int(service["stop_grace_period"].removesuffix("s")) > 30  # Ray's time to drain a node
        assert service["command"][:2] == ["ray", "start"]
        assert service["command"][-1] == "--block"
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    devices = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_who_waits_for_a_service_can_see_that_it_is_well(services: dict[str, Any]) -> None:
    waits = {
        other
        for service in services.values()
        for other, wait in service.get("depends_on", {}).items()
        if wait["condition"] == "service_healthy"
    }
    assert waits == {"head", "postgres", "storage"}
    assert all("healthcheck" in services[name] for name in waits)


def test_secrets_are_made_by_the_script_kept_private_and_out_of_git(compose: dict[str, Any], tmp_path: Path) -> None:
    script = Path(shutil.copy(CLUSTER / "docker" / "secrets.sh", tmp_path))
    subprocess.run(["bash", str(script)], check=True)
    made = tmp_path / "secrets"
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in made.iterdir()} == {Path(s["file"]).name for s in compose["secrets"].values()}
    texts = {path.name: path.read_text() for path in made.iterdir()}
    assert len(set(texts.values())) == len(texts)
    credentials = dict(re.findall(r"(aws_\w+) = (\w{64})", texts["s3_credentials"]))
    identity = json.loads(texts["s3_config.json"])["identities"][0]["credentials"]
    assert identity == [
        {"accessKey": credentials["aws_access_key_id"], "secretKey": credentials["aws_secret_access_key"]}
    ]
    assert subprocess.run(["bash", str(script)], capture_output=True).returncode == 1  # what is there is kept
    assert {path.name: path.read_text() for path in made.iterdir()} == texts
    for name in texts:
        ignored = ["git", "-C", str(ROOT), "check-ignore", "-q", f"cluster/docker/secrets/{name}"]
        assert subprocess.run(ignored).returncode == 0, name


def test_no_secret_is_in_an_environment_or_on_a_command_line(services: dict[str, Any]) -> None:
    for service in services.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("TOKEN|PASSWORD|CREDENTIALS|KEY|SECRET", variable):
                assert value.startswith("/run/secrets/"), variable
    command = services["mlflow"]["command"]
    assert "$$(cat /run/secrets/postgres_password)" in command[-1].split(";")[0]
    assert "secrets" not in command[-1].split(";")[1]


def test_mlflow_and_ray_know_the_options(services: dict[str, Any]) -> None:
    asked = re.findall(r"(--[a-z0-9-]+)", services["mlflow"]["command"][-1])
    assert set(asked) <= options_of("mlflow", "server")
    start = options_of("ray", "start")
    for name in RAY_NODES:
        assert {word.split("=")[0] for word in services[name]["command"] if word.startswith("--")} <= start
    assert services["head"]["healthcheck"]["test"][1:] == ["ray", "health-check", "--address=head:6379"]
    assert "--address" in options_of("ray", "health-check")


def test_the_images_are_built_from_what_is_there() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    sources = {word for name, *words in _instructions() if name == "COPY" for word in words[:-1]}
    assert sources == let_in
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_images_are_pinned_and_run_without_root() -> None:
    instructions = _instructions()
    bases = [words[1] for words in instructions if words[0] == "FROM"]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    installs = [words for words in instructions if words[0] == "RUN" and "pip" in words]
    assert len(installs) == 3
    for words in installs:
        assert words[words.index("-c") + 1].endswith("constraints.txt")
        for package, version in pinned_in(" ".join(words)).items():
            assert pins().get(package, version) == version
    stages = " ".join("\n" + " ".join(words) if words[0] == "FROM" else " ".join(words) for words in instructions)
    assert all("USER 1000:1000" in stage for stage in stages.split("\nFROM")[1:])
