"""The training step compiled for a TPU slice that is not there: `make tpu`. Skipped where libtpu is not installed."""

import json
import os
import subprocess
import sys

import jax
import pytest

from vpp_jax.compilation.chips import parse_topology
from vpp_jax.compilation.environment import VARIABLES, MissingCompilerError, require_compiler
from vpp_jax.compilation.program import DoesNotFitError, Program
from vpp_jax.compilation.report import next_knob
from vpp_jax.config import ExperimentConfig


def _missing() -> bool:
    try:
        require_compiler()
    except MissingCompilerError:
        return True
    return False


@pytest.fixture(scope="module")
def report(project, tmp_path_factory):
    """Stage video with one U-Net level of 128 channels: the compiler's time grows with the number of operations, not with their widths."""
    if _missing():
        pytest.skip("libtpu is not installed (requirements-tpu.txt)")
    out = tmp_path_factory.mktemp("compiled") / "report.json"
    small = {
        "model.unet.block_out_channels": "(128,)", "model.unet.attention_levels": "(True,)", "model.unet.attention_heads": "(2,)",
        "model.unet.layers_per_block": 1, "model.unet.norm_groups": 8, "model.unet.cross_attention_dim": 64,
        "model.vae.block_out_channels": "(32,)", "model.vae.layers_per_block": 1, "model.vae.norm_groups": 8, "model.image_size": 32,
        "model.text.width": 32, "model.text.layers": 1, "model.text.heads": 2, "model.frames": 4, "data.clip_frames": 4,
        "mesh.data": 1, "mesh.fsdp": 4,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    command = [sys.executable, "-m", "vpp_jax.compilation", "--config=configs/svd_calvin_video.py", "--topology=v5e:2x2", f"--out={out}"]
    environment = os.environ | VARIABLES | {"XLA_FLAGS": ""}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, timeout=600, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()) | {"printed": done.stdout}


@pytest.mark.slow
def test_only_parameters_are_gathered(report):
    assert report["collectives"]["all-gather"]["count"] > 0
    assert report["gathered_not_parameters"] == []


@pytest.mark.slow
def test_report(report):
    assert report["memory_gib"]["arguments"] < report["memory_gib"]["peak"] < 16
    assert report["per_chip"]["model_tflop"] < report["per_chip"]["tflop"] < 1.5 * report["per_chip"]["model_tflop"]
    assert report["bound"]["step_s"] == max(report["bounds_s"].values())
    assert "fits: peak" in report["printed"]


def test_a_program_that_the_compiler_gives_up_does_not_fit(monkeypatch):
    def give_up(self):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(16.13G) exceeds available HBM (15.75G). HLO module: jit_step."
        )

    monkeypatch.setattr(Program, "_train_step", give_up)
    with pytest.raises(DoesNotFitError, match=r"16\.13 GiB per chip, 15\.75 are there"):
        Program(ExperimentConfig(), parse_topology("v5e-16")).compile()


def test_the_next_knob():
    report = {"step": "train", "remat": "none", "examples_per_chip": 16, "topology": {"chips": 16, "mesh": {"fsdp": 16, "tensor": 1}}}
    assert "remat=blocks" in next_knob(report)
    assert "--per_chip=8 " in next_knob(report | {"remat": "blocks"})
    assert "remat=everything" in next_knob(report | {"remat": "blocks", "examples_per_chip": 1})


def test_without_the_compiler_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingCompilerError, match=r"requirements-tpu\.txt"):
        require_compiler()
