"""Eight simulated devices give the updates that one gives; a checkpoint of one mesh is read on another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.medium
TOY = Path(__file__).parents[1] / "training" / "toy_stage.py"

SCRIPT = """
import dataclasses, json, pathlib, sys
import jax, numpy as np
sys.path.insert(0, str(pathlib.Path({toy!r}).parent))
from toy_stage import ToyStage, toy_config
from vpp_jax.config import MeshConfig
from vpp_jax.training.checkpoints import load_params
from vpp_jax.training.loop import train

root, answers = pathlib.Path({root!r}), {{}}
for name, (data, fsdp, tensor), devices, grad_accum_steps in [
    ("one", (1, 1, 1), 1, 1), ("dp8", (8, 1, 1), 8, 1), ("fsdp8", (1, 8, 1), 8, 1), ("mixed", (2, 2, 2), 8, 1),
    ("resumed", (1, 4, 1), 4, 1), ("accumulated", (2, 1, 2), 4, 4),
]:
    config = toy_config(steps=3, eval_every=0, save_every=1, grad_accum_steps=grad_accum_steps)
    config = dataclasses.replace(config, mesh=MeshConfig(data, fsdp, tensor, min_size_to_shard=0))
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule_steps=5))
    stage, folder = ToyStage(config), root / ("mixed" if name == "resumed" else name)
    if name == "resumed":  # steps 4 and 5 on four devices, from the checkpoint of eight
        stage = ToyStage(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5)))
    from vpp_jax.parallel.mesh import make_mesh
    outcome = train(stage, folder, make_mesh(config.mesh, jax.devices()[:devices]))
    specs = stage.abstract_trainable()
    params = load_params(folder, specs, item="params")
    answers[name] = {{k: np.asarray(v).ravel()[::97].tolist() for k, v in params.items()}}
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    answers[name + "_loss"] = [entry["loss"] for entry in entries]
    answers[name + "_step"] = outcome.step
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    root = tmp_path_factory.mktemp("meshes")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    script = SCRIPT.format(toy=str(TOY), root=str(root))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["dp8", "fsdp8", "mixed", "accumulated"])
def test_three_steps_equal_the_single_device(answers, mesh):
    for name, expected in answers["one"].items():
        # sums over the batch and over split dimensions come in another order: float32 rounding of three AdamW steps
        assert answers[mesh][name] == pytest.approx(expected, rel=1e-5, abs=1e-6), name
    assert answers[f"{mesh}_loss"] == pytest.approx(answers["one_loss"], rel=1e-5)


def test_another_mesh_continues(answers):
    assert answers["resumed_step"] == 5
    assert answers["resumed"] != answers["mixed"]
