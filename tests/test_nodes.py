"""Several nodes: two launchers that find each other over loopback or between network namespaces,
and what is shipped for Slurm and Kubernetes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launchers
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DONE = re.compile("^reward +done", re.MULTILINE)
SCRIPT = [str(ROOT / "launch" / "reward.py"), "--config", "small.yaml"]
HOSTFILE = "localhost slots=1\n127.0.0.1 slots=1\n"
NAMESPACES = ("align-a", "align-b")


def configured(folder: Path) -> Path:
    text = yaml.safe_dump(launchers.REWARD_ALONE, sort_keys=False)
    (folder / "small.yaml").write_text(text)
    (folder / "hostfile").write_text(HOSTFILE)
    return folder


def both(
    folder: Path,
    commands: list[list[str]],
    more: list[dict[str, str]] | None = None,
) -> list[Any]:
    """How the two nodes' launchers ended."""
    more = more or [{}, {}]
    started = [launchers.begin(c, folder, m) for c, m in zip(commands, more, strict=True)]
    return launchers.end(*started)


def nodes(launcher: str, address: str = "127.0.0.1") -> list[list[str]]:
    """The command on each of two nodes of one process."""
    port = str(launchers.free_port())
    if launcher == "torchrun":
        options = ["--nnodes=2", f"--master_addr={address}", f"--master_port={port}"]
        return [
            [*launchers.torchrun(1, *options, f"--node_rank={rank}"), *SCRIPT] for rank in range(2)
        ]
    if launcher == "torchrun c10d":
        options = ["--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint={address}:{port}"]
        return [[*launchers.torchrun(1, *options, "--rdzv_id=j"), *SCRIPT]] * 2
    file = f"deepspeed={ROOT}/configs/deepspeed/zero2.json"
    options = ["--hostfile=hostfile", "--no_ssh", f"--master_addr={address}"]
    return [
        [
            *launchers.deepspeed(1, *options, f"--master_port={port}", f"--node_rank={rank}"),
            *SCRIPT,
            file,
        ]
        for rank in range(2)
    ]


def check(folder: Path, ended: list[Any]) -> None:
    """Both launchers ended well, and rank 0 alone has logged and written."""
    assert [node.code for node in ended] == [0, 0], "\n".join(node.text for node in ended)
    assert sum(len(DONE.findall(node.text)) for node in ended) == 1
    lines = (folder / "run" / "reward" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert (folder / "run" / "reward" / "artifact.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun c10d", "deepspeed"])
def test_two_nodes_on_loopback(launcher: str, tmp_path: Path):
    folder = configured(tmp_path)
    check(folder, both(folder, nodes(launcher)))


@pytest.mark.slow
def test_a_node_that_fails_ends_the_other_one(tmp_path: Path):
    """Each launcher knows only its own process: the rank on the other node ends by itself."""
    folder = configured(tmp_path)
    commands = [
        [str(launchers.SHARED / "faulty.py") if part == SCRIPT[0] else part for part in command]
        for command in nodes("torchrun")
    ]
    ended = both(folder, commands, [{"FAULT": "nan:1:2"}] * 2)
    assert all(node.code != 0 for node in ended)
    said = "rank 1: step reward failed: the loss is nan at optimiser step 3, of the rows"
    assert ended[0].text.count(said) == 1
    assert not (folder / "run" / "reward" / "artifact.json").exists()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[None]:
    """Two network namespaces, 10.99.0.1 and .2, joined by a pair of virtual devices."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    try:
        for number, name in enumerate(NAMESPACES):
            ip("netns", "add", name)
            if number == 0:
                ip("link", "add", "align0", "type", "veth", "peer", "name", "align1")
            ip("link", "set", f"align{number}", "netns", name)
            ip("-n", name, "addr", "add", f"10.99.0.{number + 1}/24", "dev", f"align{number}")
            for device in ("lo", f"align{number}"):
                ip("-n", name, "link", "set", device, "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode()}")
    finally:
        for name in NAMESPACES:
            if Path("/run/netns", name).exists():
                ip("netns", "delete", name)  # and the device in it


@pytest.mark.slow
def test_two_nodes_with_addresses_of_their_own(namespaces: None, tmp_path: Path):
    folder = configured(tmp_path)
    commands = [
        ["ip", "netns", "exec", name, *command]
        for name, command in zip(NAMESPACES, nodes("torchrun", "10.99.0.1"), strict=True)
    ]
    more = [{"GLOO_SOCKET_IFNAME": f"align{number}"} for number in range(2)]
    check(folder, both(folder, commands, more))


# --- what is shipped for clusters -----------------------------------------------------------------


def slurm(tmp_path: Path, *arguments: str, **fake: str) -> subprocess.CompletedProcess[str]:
    """Runs launch/slurm.sh with commands of Slurm's that only say what they were asked."""
    commands = {"srun": 'echo "srun $@"', "scontrol": "printf 'node-a\\nnode-b\\n'", **fake}
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "launch" / "slurm.sh"), *arguments],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "41234",
            "SLURM_GPUS_ON_NODE": "8",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_slurm_script_starts_a_torchrun_on_every_node(tmp_path: Path):
    """The port is 20000 + 41234 mod 20000."""
    done = slurm(tmp_path, "my.yaml", "seed=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "srun --kill-on-bad-exit=1 torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d "
        "--rdzv-endpoint node-a:21234 --rdzv-id 41234-0 launch/pipeline.py --config my.yaml "
        "seed=3\n"
    )


def test_the_slurm_script_hands_the_exit_code_on(tmp_path: Path):
    assert slurm(tmp_path, "my.yaml", srun="exit 3").returncode == 3
    assert slurm(tmp_path).returncode == 2


def test_the_slurm_script_goes_back_into_the_queue_before_its_time_is_over(tmp_path: Path):
    """Slurm sends the script SIGUSR1; requeueing ends srun, here with 5."""
    scontrol = "[ $1 = requeue ] && echo \"$@\" >> asked || printf 'node-a\\n'"
    done = slurm(tmp_path, "my.yaml", srun="kill -USR1 $PPID; sleep 1; exit 5", scontrol=scontrol)
    assert (tmp_path / "asked").read_text() == "requeue 41234\n"
    assert done.returncode == 5


def test_the_slurm_script_asks_for_what_it_needs():
    text = (ROOT / "launch" / "slurm.sh").read_text()
    options = {line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"--requeue", "--signal=B:USR1@120", "--ntasks-per-node=1"} <= options


def test_the_kubernetes_manifest_has_what_a_pytorchjob_needs():
    """The fields of kubeflow.org/v1: replicas by role, in each a container called pytorch and a
    restart policy. The sizes that torchrun is told are those of the job."""
    job = yaml.safe_load((ROOT / "launch" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["metadata"]["name"]
    assert job["spec"]["runPolicy"]["backoffLimit"] > 0
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = replica["template"]["spec"]
        [container] = pod["containers"]
        assert container["name"] == "pytorch"
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        torchrun, options, (script, *arguments) = split(container["command"])
        assert torchrun == "torchrun"
        assert options == {
            "--nnodes": str(sum(other["replicas"] for other in replicas.values())),
            "--nproc-per-node": str(gpus),
            **{f"--{name}": f"$({variable})" for name, variable in OPERATOR.items()},
        }
        assert (ROOT / script).is_file()
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert mounts["memory"] == "/dev/shm"
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        flag, config, output = arguments
        assert flag == "--config"
        for path in (variables["HF_HOME"], config, output.removeprefix("output_dir=")):
            assert path.startswith(mounts["shared"] + "/")


OPERATOR = {"node-rank": "RANK", "master-addr": "MASTER_ADDR", "master-port": "MASTER_PORT"}
"""torchrun's options that only the operator knows."""


def split(command: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """The launcher, its options, and the script with what it gets."""
    own = [part for part in command[1:] if part.startswith("--") and "=" in part]
    return command[0], dict(part.split("=") for part in own), command[1 + len(own) :]
