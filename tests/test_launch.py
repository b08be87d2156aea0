"""launch/: with --dry_run every script prints the commands it would run, as words that a shell reads back unchanged."""

import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
AWKWARD = ["train", "--config=configs/svd_calvin_video.py", "--workdir=/mnt/vpp/a b", '--config.init.vae=it\'s $HOME; "x" `y` \\z']
VM = ["--name", "pod", "--zone", "us-west4-a"]


def launch(*arguments: str) -> subprocess.CompletedProcess:
    script, *rest = arguments
    return subprocess.run([LAUNCH / script, *rest], capture_output=True, text=True, timeout=20)


def printed(*arguments: str) -> list[list[str]]:
    """The printed commands, each as its words."""
    done = launch(*arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("+ ")]


def option(words: list[str], name: str) -> str:
    (value,) = [word.removeprefix(f"--{name}=") for word in words if word.startswith(f"--{name}=")]
    return value


def test_arguments_reach_vpp_on_every_host_unchanged():
    (command,) = printed("tpu.sh", "start", *VM, "--image", "registry/vpp:1", "--dry_run", "--", *AWKWARD)
    assert command[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert option(command, "worker") == "all"
    remote = shlex.split(option(command, "command"))  # what the remote shell makes of it
    assert remote[-len(AWKWARD) - 2 :] == ["registry/vpp:1", "vpp", *AWKWARD]
    assert {"--privileged", "host", "/mnt/vpp:/mnt/vpp"} <= set(remote)
    given = {remote[place]: remote[place + 1] for place in range(len(remote) - 1)}
    assert given["--entrypoint"] == "restarting"  # launch/restarting.sh; Docker itself would restart after every error
    assert "--restart" not in remote
    assert int(given["--stop-timeout"]) >= 600  # Docker's own is ten seconds, also when a spot VM shuts down
    assert given["--shm-size"] == "16g"


def test_arguments_reach_vpp_through_xpk_unchanged():
    given = ["--cluster", "c", "--workload", "w", "--type", "v5litepod-256", "--image", "i", "--zone", "z", "--project", "p"]
    (command,) = printed("xpk.sh", *given, "--dry_run", "--", *AWKWARD)
    assert command[:3] == ["xpk", "workload", "create"]
    assert shlex.split(option(command, "command")) == ["exec", "vpp", *AWKWARD]
    restarted = option(command, "restart-on-exit-codes").split(",")
    assert "143" in restarted  # what a preempted run ends with
    assert not {"1", "2"} & set(restarted)  # these need a person
    assert int(option(command, "termination-grace-period-seconds")) > 30  # time to save


@pytest.mark.parametrize(
    ("kind", "software"),
    [("v4-8", "tpu-ubuntu2204-base"), ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-16", "v2-alpha-tpuv6e")],
)
def test_software_goes_with_the_generation(kind, software):
    (command,) = printed("tpu.sh", "create", *VM, "--type", kind, "--spot", "--dry_run")
    assert option(command, "accelerator-type") == kind
    assert option(command, "version") == software
    assert "--spot" in command


def test_dry_run_runs_nothing(tmp_path):
    """With commands of these names on the path, none is called."""
    called = tmp_path / "called"
    for name in ("gcloud", "xpk", "docker"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {called}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for extra in (["--dry_run"], []):
        for arguments in (["image.sh", "--image", "i"], ["tpu.sh", "delete", *VM], ["tpu.sh", "logs", *VM]):
            done = subprocess.run([LAUNCH / arguments[0], *arguments[1:], *extra], env=environment, capture_output=True, timeout=20)
            assert done.returncode == 0
            assert called.exists() == (not extra)
        called.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tpu.sh", "fly"], "there is no 'fly'"),
        (["tpu.sh", "create", "--name", "pod"], "--zone is missing"),
        (["tpu.sh", "create", *VM, "--type", "v9-1", "--dry_run"], "give it with --version"),
        (["tpu.sh", "start", *VM, "--image", "i", "--dry_run"], "nothing to do"),
        (["tpu.sh", "logs", *VM, "--wroker", "1"], "no option --wroker"),
        (["xpk.sh", "--cluster"], "--cluster needs a value"),
        (["image.sh", "name"], "unexpected argument 'name'"),
        (["slurm.sh", "--nodes", "2"], "nothing to do"),
    ],
)
def test_bad_input_is_named(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_arguments_reach_vpp_through_slurm_unchanged():
    (command,) = printed("slurm.sh", "--nodes", "4", "--partition", "p", "--dry_run", "--", *AWKWARD)
    assert command[0] == "sbatch"
    assert command[-len(AWKWARD) - 1 :] == [str(LAUNCH / "slurm_job.sh"), *AWKWARD]
    assert [option(command, name) for name in ("nodes", "ntasks-per-node", "partition", "signal")] == ["4", "1", "p", "TERM@600"]
    assert "--requeue" in command


@pytest.fixture
def programs(tmp_path):
    """Adds a program to the search path: programs(name, text of a shell script) -> the environment."""

    def add(name: str, text: str) -> dict[str, str]:
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    return add


@pytest.mark.parametrize(("code", "again"), [(0, 0), (1, 0), (2, 0), (75, 2), (134, 2), (137, 2), (139, 2), (143, 0), (130, 0)])
def test_only_what_a_restart_mends_is_restarted(code, again, programs, tmp_path):
    environment = programs("vpp", f'echo "$@" >> {tmp_path}/tries; exit {code}') | {"RESTARTS": "2", "RESTART_PAUSE": "0"}
    done = subprocess.run([LAUNCH / "restarting.sh", "vpp", "train", "a b"], env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == code
    assert (tmp_path / "tries").read_text().splitlines() == ["train a b"] * (1 + again)
    assert done.stderr.count("restarting: exit code") == again


def test_a_signal_reaches_vpp_which_is_not_started_again(programs, tmp_path):
    script = f"trap 'echo saved >> {tmp_path}/said; exit 75' TERM; echo ready >> {tmp_path}/said; while :; do sleep 0.05; done"
    running = subprocess.Popen([LAUNCH / "restarting.sh", "vpp"], env=programs("vpp", script))
    deadline = time.monotonic() + 20
    while not (tmp_path / "said").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.terminate()
    assert running.wait(timeout=20) == 75
    assert (tmp_path / "said").read_text().split() == ["ready", "saved"]


REQUEUED = [(75, "RUNNING"), (143, "RUNNING")]


@pytest.mark.parametrize(("code", "state"), [*REQUEUED, (0, "RUNNING"), (1, "RUNNING"), (143, "CANCELLED")])
def test_a_slurm_job_queues_itself_again(code, state, programs, tmp_path):
    programs("vpp", f'echo "$VPP_COORDINATOR $VPP_SHARD_INDEX $VPP_NUM_SHARDS $*" > {tmp_path}/call; exit {code}')
    programs("srun", 'shift; SLURM_PROCID=1 exec "$@"')
    programs("squeue", f"echo {state}")
    environment = programs("scontrol", f'[ "$1" = requeue ] && echo "$2" > {tmp_path}/requeued; printf "node7\\nnode8\\n"')
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_ID": "31", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run([LAUNCH / "slurm_job.sh", "train", "a b"], env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "call").read_text().strip() == "node7:20031 1 2 train a b"
    assert (tmp_path / "requeued").exists() == ((code, state) in REQUEUED)


def test_the_image_is_built_with_its_commit(programs):
    environment = programs("git", '[ "$3" = rev-parse ] && echo 0123abc; [ "$3" = rev-parse ]')
    done = subprocess.run([LAUNCH / "image.sh", "--image", "i", "--dry_run"], env=environment, capture_output=True, text=True, timeout=20)
    assert "--build-arg GIT_REVISION=0123abc-dirty" in done.stdout
    assert re.search(r"^ARG GIT_REVISION.*\nENV VPP_GIT_REVISION=\$GIT_REVISION$", (LAUNCH / "Dockerfile").read_text(), re.M)


def test_image_copies_what_the_package_consists_of():
    """The Dockerfile copies paths that exist; the packages among them are those that setuptools installs."""
    text = (LAUNCH / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert all((LAUNCH.parent / source).exists() for source in sources)
    packages = re.search(r"include = \[(.+)\]", (LAUNCH.parent / "pyproject.toml").read_text()).group(1)
    assert {name.strip('"* ') for name in packages.split(",")} <= set(sources)
