"""The training step compiled for a TPU slice without the hardware: `make tpu`. Skipped where libtpu is not installed."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from vpp_jax.aot.chips import parse_topology
from vpp_jax.aot.environment import VARIABLES, MissingCompilerError, require_compiler
from vpp_jax.aot.program import ChipMemoryError, Compiled, DoesNotFitError, Program
from vpp_jax.aot.report import suggest_change
from vpp_jax.aot.roofline import UnreadableProgramError, analyse
from vpp_jax.config import ExperimentConfig


def _missing() -> bool:
    try:
        require_compiler()
    except MissingCompilerError:
        return True
    return False


# A quarter of every width of size svd, all levels and layers; and one level alone: the compiler's time grows with the number of operations.
QUARTER = {
    "model.unet.block_out_channels": "(80, 160, 320, 320)",
    "model.unet.norm_groups": 8,
    "model.vae.block_out_channels": "(32, 64, 128, 128)",
    "model.vae.norm_groups": 8,
    "model.text.width": 64,
    "model.text.heads": 1,
}
ONE_LEVEL = {
    "model.unet.block_out_channels": "(128,)",
    "model.unet.attention_levels": "(True,)",
    "model.unet.attention_heads": "(2,)",
    "model.unet.layers_per_block": 1,
    "model.unet.norm_groups": 8,
    "model.vae.block_out_channels": "(32,)",
    "model.vae.layers_per_block": 1,
    "model.vae.norm_groups": 8,
    "model.image_size": 32,
    "model.text.width": 32,
    "model.text.layers": 1,
    "model.text.heads": 2,
    "model.frames": 8,
    "model.tap_blocks": "(0,)",
}


# Besides the pinned one, the compilers that `pip install jax[tpu]` brings with jax 0.10.2 and 0.12.0.1; `make tpu` installs them there.
PAIRED = {version: Path(sys.prefix) / f"libtpu-{version}" for version in ("0.0.42.1", "0.0.50.1")}


def compile_report(project, folder, stage: str, topology: str, changes: dict, *flags: str, mesh=None, libtpu: str = "") -> dict:
    """What `vpp compile` reports of configs/svd_calvin_{stage}.py with `changes`; `mesh`: of four chips; `libtpu`: one of `PAIRED`."""
    if _missing() or (libtpu and not PAIRED[libtpu].exists()):
        pytest.skip(f"libtpu is not installed ({libtpu or 'requirements/tpu.txt'})")
    out = folder / "report.json"
    changes = [f"--config.{name}={value}" for name, value in changes.items()]
    changes += [f"--config.mesh.{axis}={size}" for axis, size in (mesh or {"data": 1, "fsdp": 4}).items()]
    flags = [f"--config=configs/svd_calvin_{stage}.py", f"--topology={topology}", f"--out={out}", *flags, *changes]
    command = [sys.executable, "-m", "vpp_jax.cli.compile_program", *flags]
    environment = os.environ | VARIABLES | {"XLA_FLAGS": ""}
    if libtpu:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PAIRED[libtpu]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()) | {"printed": done.stdout}


@pytest.fixture(scope="module")
def report(project, tmp_path_factory):
    return compile_report(project, tmp_path_factory.mktemp("compiled"), "video", "v5e:2x2", QUARTER, "--per_chip=1")


@pytest.mark.medium
def test_only_parameters_are_gathered(report):
    assert report["collectives"]["all-gather"]["count"] > 0
    assert report["gathered_not_parameters"] == []


@pytest.mark.medium
def test_report(report):
    assert report["memory_gib"]["arguments"] < report["memory_gib"]["peak"] < 16
    assert report["per_chip"]["model_tflop"] < report["per_chip"]["tflop"] < 1.5 * report["per_chip"]["model_tflop"]
    assert report["bound"]["step_s"] == max(report["bounds_s"].values())
    assert report["per_chip"]["tflop"] < report["per_chip"]["padded_tflop"] < 6 * report["per_chip"]["tflop"]  # a quarter of every width
    assert "fits: peak" in report["printed"]
    assert report["printed"].index("by the compiler") < report["printed"].index("by the figures above")
    assert "at most" not in report["printed"]


@pytest.mark.medium
@pytest.mark.parametrize("libtpu", ["", *PAIRED])
@pytest.mark.parametrize(("stage", "step"), [("video", "train"), ("policy", "act")])
def test_many_images_compile_for_v6e_with_every_compiler(project, tmp_path, stage, step, libtpu):
    """64 per chip at least: with all options at their defaults libtpu 0.0.52 ends the process. The older ones do not know all of ours."""
    report = compile_report(project, tmp_path, stage, "v6e:2x2", ONE_LEVEL, "--per_chip=8", f"--step={step}", libtpu=libtpu)
    assert report["versions"]["libtpu"] == (libtpu or importlib.metadata.version("libtpu"))
    assert report["gathered_not_parameters"] == []


@pytest.fixture(scope="module")
def two_slices(project, tmp_path_factory):
    """Every step of stage video on two slices."""
    folder = tmp_path_factory.mktemp("compiled")
    return compile_report(project, folder, "video", "2xv5e:2x2", ONE_LEVEL, "--per_chip=2", "--step=all", mesh={"data": 2, "fsdp": 4})


@pytest.mark.medium
def test_only_sums_cross_from_slice_to_slice(two_slices):
    """No parameter, gathered or not: a chip sends the gradients of its shards, in float32."""
    report = two_slices["steps"]["train"]
    assert set(report["collectives_between_slices"]) == {"all-reduce"}
    shards = report["memory_gib"]["arguments"] * 2**30 / 4  # parameters, EMA and two moments
    assert 0 < report["per_chip"]["network_gb"] * 1e9 < 1.2 * shards
    assert report["bounds_s"]["network"] == pytest.approx(report["per_chip"]["network_gb"] / 3.125)


@pytest.mark.medium
def test_every_step_of_a_run_is_reported(two_slices):
    steps = two_slices["steps"]
    assert list(steps) == ["train", "evaluation", "preview", "init", "restore"]
    assert all(step["memory_gib"]["short"] < 0 for step in steps.values())
    assert steps["preview"]["examples"] == 8 < steps["evaluation"]["examples"] == 16
    assert steps["restore"]["memory_gib"]["resident"] > steps["preview"]["memory_gib"]["resident"] > 0
    assert all(f"  {step} " in two_slices["printed"] for step in steps)


@pytest.mark.medium
def test_a_preview_costs_a_chip_the_same_whatever_the_batch(project, tmp_path):
    """One clip per chip here: sampled, and decoded."""
    small, large = (
        compile_report(
            project, tmp_path, "video", "v5e:2x4", ONE_LEVEL, f"--per_chip={rows}", "--step=preview", mesh={"data": 1, "fsdp": 8}
        )
        for rows in (1, 16)
    )
    assert small["per_chip"]["tflop"] == large["per_chip"]["tflop"]
    assert large["memory_gib"]["temporaries"] < 1.5 * small["memory_gib"]["temporaries"]


@pytest.mark.medium
def test_v4_has_one_device_per_chip(project, tmp_path):
    report = compile_report(project, tmp_path, "policy", "v4-8", ONE_LEVEL, "--step=features")
    assert report["topology"]["chips"] == 4
    assert report["topology"]["mesh"]["fsdp"] == 4


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (16.13G) "
            "exceeds available HBM (15.75G). HLO module: jit_step.",
            r"16\.13 GiB per chip are needed, 15\.75 are available",
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used "
            "22.10G of 15.75G hbm. Exceeded hbm capacity by 6.36G.",
            r"22\.10 GiB per chip are needed, 15\.75 are available",
        ),
    ],
)
def test_a_program_that_the_compiler_gives_up_does_not_fit(monkeypatch, message, sizes):
    def give_up(self):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(Program, "_executable", give_up)
    with pytest.raises(DoesNotFitError, match=sizes):
        Program(ExperimentConfig(), parse_topology("v5e-16"), per_chip=1).compile()


@pytest.mark.parametrize(
    ("space", "used", "advice"),
    [
        ("sflag", "2.6K of 2.0K", "semaphore .*one slice"),
        ("smem", "1.02M of 1.00M", "--per_chip"),
        ("vmem", "140.50M of 128.00M", "--per_chip"),
    ],
)
def test_a_memory_inside_the_chip_that_is_too_small_is_named(monkeypatch, space, used, advice):
    needed, available = used.split(" of ")

    def give_up(self):
        raise jax.errors.JaxRuntimeError(
            f"RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space {space}. Used {used} {space}. "
            f"Exceeded {space} capacity by 564B.\n\nProgram {space} requirement 2.5K:\n    reserved           204B"
        )

    monkeypatch.setattr(Program, "_executable", give_up)
    with pytest.raises(ChipMemoryError, match=f"step train for 2xv5e-16 .* {needed}iB .*{space}, {available}iB are there; .*{advice}"):
        Program(ExperimentConfig(), parse_topology("2xv5e-16"), per_chip=1).compile()


def test_a_program_whose_text_cannot_be_read_still_says_what_it_takes():
    if _missing():
        pytest.skip("libtpu is not installed (requirements/tpu.txt)")

    class Executable(jax.stages.Compiled):
        def __init__(self):
            pass

        def memory_analysis(self):
            return SimpleNamespace(
                argument_size_in_bytes=2**30, output_size_in_bytes=0, temp_size_in_bytes=2**30, peak_memory_in_bytes=2 * 2**30
            )

        def cost_analysis(self):
            return {"bytes accessed": 1.0, "flops": 1.0}

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update instruction should have 1 operands but sees 3")

    compiled = Compiled(Executable(), examples=16, model_flops=1.0, flops=1.0, padded_flops=1.0, parameters=frozenset(), seconds=1.0)
    with pytest.raises(UnreadableProgramError, match=r"peak of 2\.00 of 16 GiB per chip.*async-update"):
        analyse(Program(ExperimentConfig(), parse_topology("v5e-16"), per_chip=1), compiled, "O0")


def test_the_next_knob():
    report = {"step": "train", "remat": "none", "examples_per_chip": 16, "topology": {"chips": 16, "mesh": {"fsdp": 16, "tensor": 1}}}
    assert "remat=blocks" in suggest_change(report)
    assert "--per_chip=8 " in suggest_change(report | {"remat": "blocks"})
    assert "remat=everything" in suggest_change(report | {"remat": "blocks", "examples_per_chip": 1})


def test_without_the_compiler_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingCompilerError, match=r"pip install -e .*\[tpu\]"):
        require_compiler()
