"""Head and worker started for real by the files' own commands, on machines made of namespaces; and the Slurm script."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.files import LAUNCHED, ROOT, resolved
from tests.cluster.nodes import Node, machines

TOKEN = "0123456789abcdef" * 4
NODES = """
import json, ray
ray.init(address="{address}", log_to_driver=False, logging_level="ERROR")
alive = [n for n in ray.nodes() if n["Alive"]]
print(json.dumps(sorted([n["NodeManagerAddress"], n["Resources"].get("CPU", 0)] for n in alive)))
"""
STATUS = """
import sys, urllib.error, urllib.request
request = urllib.request.Request("http://127.0.0.1:8265/api/jobs/")
if len(sys.argv) > 1:
    request.add_header("Authorization", "Bearer " + sys.argv[1])
try:
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def as_over_ssh(command: str) -> str:
    """A command in the shell that Ray's ssh runner starts on a node."""
    from ray.autoscaler._private.command_runner import _with_interactive

    return " ".join(_with_interactive(command))


def prepare(node: Node, config: dict[str, Any]) -> None:
    """What `ray up` leaves on a node before it starts Ray: the token, the configuration, the lines in .bashrc."""
    (node.home / ".ray").mkdir()
    (node.home / ".ray/auth_token").write_text(TOKEN)
    (node.home / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
    for command in config["setup_commands"]:
        if "bashrc" in command or "auth_token" in command:
            assert node.run(as_over_ssh(command)).returncode == 0
    assert (node.home / ".ray/auth_token").stat().st_mode & 0o077 == 0


def start(node: Node, config: dict[str, Any], kind: str, head: str, **variables: Any) -> None:
    """Run the start commands as Ray's updater does."""
    from ray.autoscaler._private.command_runner import _with_environment_variables
    from ray.autoscaler._private.util import with_head_node_ip

    for command in with_head_node_ip(config[f"{kind}_start_ray_commands"], head):
        told = _with_environment_variables(command, {"RAY_USAGE_STATS_ENABLED": 0, **variables})
        done = node.run(as_over_ssh(told))
        assert done.returncode == 0, done.stdout


def python(node: Node, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python on a node, without a shell's variables."""
    script = node.home / "client.py"
    script.write_text(code)
    return node.run(
        " ".join([sys.executable, str(script), *arguments]), RAY_gcs_server_port_wait_time_s="5", **variables
    )


def nodes_seen(node: Node, address: str, wanted: int, **variables: str) -> list[list[Any]]:
    """Address and CPUs of the live nodes, as a client on `node` sees them, when there are `wanted`."""
    until, seen = time.monotonic() + 120, []
    while len(seen) < wanted and time.monotonic() < until:
        done = python(node, NODES.format(address=address), **variables)
        assert done.returncode == 0, done.stdout
        seen = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_started_by_the_file_let_in_only_the_token(name: str) -> None:
    config = resolved(name)
    types, local = config["available_node_types"], config["provider"]["type"] == "local"
    with machines(2) as (head, worker):
        for node in (head, worker):
            prepare(node, config)
        address, tokens = f"{head.address}:6379", {"RAY_AUTH_MODE": "token"}
        # the updater tells a rented node what its type has; a machine of one's own finds out itself
        given = {} if local else {"RAY_OVERRIDE_RESOURCES": types[config["head_node_type"]]["resources"]}
        start(head, config, "head", head.address, **given)
        start(worker, config, "worker", head.address)

        seen = nodes_seen(head, address, 2, **tokens)
        assert [where for where, _ in seen] == [head.address, worker.address]
        assert (seen[0][1] == 0) is not local and seen[1][1] > 0

        # a job as the README submits it, on a head that has no CPU for trials
        script = head.home / "crmt-sweep/pipelines/sweep.py"
        script.parent.mkdir(parents=True)
        script.write_text("import sys\nprint(6 * 7, *sys.argv[1:])")
        submit = "ray job submit --no-wait --submission-id one -- python ~/crmt-sweep/pipelines/sweep.py --dataset x"
        assert head.run(as_over_ssh(submit)).returncode == 0
        until, said = time.monotonic() + 120, ""
        while "SUCCEEDED" not in said.upper() and time.monotonic() < until:
            said = head.run(as_over_ssh("ray job status one; ray job logs one")).stdout
        assert "42 --dataset x" in said, said

        assert python(head, STATUS, TOKEN).stdout.split() == ["200"]
        assert python(head, STATUS).stdout.split() == ["401"]
        assert python(head, STATUS, "f" * 64).stdout.split() in (["401"], ["403"])
        (worker.home / ".ray/auth_token").rename(worker.home / "elsewhere")
        for wrong in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}):
            refused = python(worker, NODES.format(address=address), **wrong)
            assert refused.returncode != 0 and head.address not in refused.stdout.splitlines()[-1:], refused.stdout
        started = worker.run(f"ray start --address={address}", RAY_gcs_server_port_wait_time_s="5")
        assert started.returncode != 0
        assert len(nodes_seen(head, address, 2, **tokens)) == 2


SRUN = """#!/usr/bin/env bash
# a stand-in for srun: the command once for each node of the job, all on this machine; ended as Slurm ends a step, by
# SIGTERM and, a while later, by SIGKILL to all that it started
while [[ "$1" == --* ]]; do shift; done
trap 'kill $(jobs -p); sleep 5; pkill -KILL -f "ray start|site-packages/ray/"' TERM
for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do SLURM_NODEID=$i "$@" & done
wait
"""
SWEEP = """
import pathlib, sys, ray
ray.init(logging_level="ERROR")
print("sweep on", sum(n["Alive"] for n in ray.nodes()), "nodes:", *sys.argv[1:])
if "--out" in sys.argv:
    run = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
"""


def test_the_slurm_script_is_shell() -> None:
    script = ROOT / "clusters/slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert "RAY_AUTH_MODE=token" in text and text.index("#SBATCH --nodes") < text.index("set -euo")


@pytest.mark.slow
def test_the_slurm_script_runs_a_sweep_on_all_nodes_and_goes_on_with_it() -> None:
    """With stand-ins for srun and the sweep; Ray is real."""
    with machines(1) as (node,):
        project = node.home / "project"
        for folder in ("bin", "pipelines", ".venv/bin"):
            (project / folder).mkdir(parents=True)
        (project / "bin/srun").write_text(SRUN)
        (project / "bin/srun").chmod(0o755)
        (project / "pipelines/sweep.py").write_text(SWEEP)
        (project / ".venv/bin/activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
        slurm = {
            "SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "0",
        }  # fmt: skip
        call = f"hostname() {{ echo ::1 {node.address}; }}; export -f hostname; PATH={project}/bin:$PATH "
        call += f"bash {ROOT}/clusters/slurm.sh --dataset avdigits"
        run = project / "runs/slurm-4711"
        for said in (f"sweep on 2 nodes: --out {run} --dataset avdigits", f"sweep on 2 nodes: --resume {run}"):
            done = node.run(call, **slurm)
            assert done.returncode == 0 and said in done.stdout, done.stdout
        assert (node.home / ".ray/auth_token").stat().st_mode & 0o077 == 0
