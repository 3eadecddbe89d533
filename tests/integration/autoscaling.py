"""A cluster that grows and shrinks, in a network namespace of its own: Ray's pretended cloud insists on a port.

``python autoscaling.py FOLDER RAYS`` runs FOLDER/*.yaml, one after the other, and writes FOLDER/nodes.json: the most
nodes beside the head that each had. Of the experiment called ``loss`` one node is killed once all of it trains.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import yaml

from raytuner.journal import Folder, replay

KIND = {"resources": {"CPU": 2, "GPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}
CLOUD = {
    "cluster_name": "pretended",
    "max_workers": 2,
    "upscaling_speed": 100.0,
    "idle_timeout_minutes": 0.05,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpus": KIND,
    },
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{
        key: []
        for key in (
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
        )
    },
    "file_mounts_sync_continuously": False,
}


def main(folder: Path, ray_folder: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_FAKE_CLUSTER="1", RAY_USAGE_STATS_ENABLED="0")
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    (folder / "cloud.yml").write_text(yaml.safe_dump(CLOUD))
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=6379"]
    ray_start += ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=0", "--include-dashboard=false"]
    ray_start += [f"--autoscaling-config={folder}/cloud.yml", f"--temp-dir={ray_folder}", "--log-color=false"]
    log = folder / "head.log"
    with log.open("wb") as file:
        subprocess.Popen(ray_start, stdout=file, stderr=file)  # ends with the namespace
    while "Ray runtime started" not in log.read_text():
        time.sleep(0.2)
    import ray

    ray.init("127.0.0.1:6379", log_to_driver=False)
    most: dict[str, int] = {}
    for definition in sorted(folder.glob("*.yaml")):
        while workers(ray):
            time.sleep(0.5)  # until those of the one before are gone
        name = definition.stem
        most[name] = 0
        command = [sys.executable, "-m", "raytuner", "run", str(definition)]
        env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:6379"}
        with (folder / f"{name}.log").open("wb") as file:
            driver = subprocess.Popen(command, env=env, stdout=file, stderr=file)
        if name == "loss":
            threading.Thread(target=kill_a_node, args=(folder / "results/loss",), daemon=True).start()
        while driver.poll() is None:
            most[name] = max(most[name], workers(ray))
            time.sleep(0.2)
        (folder / "nodes.json").write_text(json.dumps(most))
    while workers(ray):
        time.sleep(0.5)


def workers(ray: object) -> int:
    return sum(node["Alive"] for node in ray.nodes()) - 1  # type: ignore[attr-defined]


def kill_a_node(path: Path) -> None:
    """Kill a raylet once all trials train, as the machine of a spot node vanishes."""
    steps: list[int] = []
    while len(steps) < 4 or min(steps) < 3:
        time.sleep(0.2)
        if (path / "journal").is_dir():
            steps = [trial.step for trial in replay(Folder(path)).trials.values()]
    monitors = [process for process in psutil.process_iter() if "monitor.py" in " ".join(process.cmdline()[:4])]
    pretended = [child for monitor in monitors for child in monitor.children() if child.name() == "raylet"]
    pretended[-1].kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
