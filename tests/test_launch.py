"""launch/: with --dry_run every script prints the commands it would run, as words that a shell reads back unchanged."""

import re
import shlex
import subprocess
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
    assert remote[-len(AWKWARD) - 1 :] == ["registry/vpp:1", *AWKWARD]
    assert {"--privileged", "host", "/mnt/vpp:/mnt/vpp"} <= set(remote)


def test_arguments_reach_vpp_through_xpk_unchanged():
    given = ["--cluster", "c", "--workload", "w", "--type", "v5litepod-256", "--image", "i", "--zone", "z", "--project", "p"]
    (command,) = printed("xpk.sh", *given, "--dry_run", "--", *AWKWARD)
    assert command[:3] == ["xpk", "workload", "create"]
    assert shlex.split(option(command, "command")) == ["exec", "vpp", *AWKWARD]
    assert "143" in option(command, "restart-on-exit-codes").split(",")  # what a preempted run ends with
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
    ],
)
def test_bad_input_is_named(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_image_copies_what_the_package_consists_of():
    """The Dockerfile copies paths that exist; the packages among them are those that setuptools installs."""
    text = (LAUNCH / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert all((LAUNCH.parent / source).exists() for source in sources)
    packages = re.search(r"include = \[(.+)\]", (LAUNCH.parent / "pyproject.toml").read_text()).group(1)
    assert {name.strip('"* ') for name in packages.split(",")} <= set(sources)
