"""The published chain from the shipped svd files: import, fine-tune the video model, train a policy on it, act, export.

Only widths, image size, batch, mesh, steps and paths differ from `configs/svd_calvin_*.py`; the weights are fabricated in the published
format. Two U-Net levels here, all four in the slow lane.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipelines.builders import sharded
from data_pipelines.builders.calvin_recorded import CalvinRecordedRecipe, RecordedSettings
from eval.policies import Observations
from vpp_jax.cli.config_flag import load_config
from vpp_jax.cli.main import main
from vpp_jax.config import ExperimentConfig, from_config_dict, to_dict, to_json
from vpp_jax.functional import PureModule
from vpp_jax.interop.published_configs import published_text, published_unet, published_vae
from vpp_jax.serving.policy_runner import load_policy
from vpp_jax.training.checkpoints import load_params
from vpp_jax.training.metrics import read_entries
from vpp_jax.training.stages.registry import make_stage

WIDTHS = {
    "model.vae.block_out_channels": (32, 32, 32, 32),
    "model.text.width": 32,
    "model.text.mlp_width": 64,
    "model.text.projection_dim": 32,
    "model.unet.addition_time_embed_dim": 32,
    "model.former.dim": 32,
    "model.former.dim_head": 8,
    "model.action.width": 32,
    "mesh.fsdp": 1,
    "data.batch_size": 2,
    "data.threads": 1,
    "train.steps": 2,
    "train.eval_every": 1,
    "train.eval_batches": 1,
    "train.progress": False,
}
# The depth of a U-Net is the number of its levels, which the other sequences follow.
LEVELS = {
    2: {
        "model.image_size": 32,
        "model.unet.block_out_channels": (160, 160),
        "model.unet.attention_levels": (True, False),
        "model.unet.attention_heads": (5, 10),
        "model.unet.layers_per_block": 1,
        "model.vae.layers_per_block": 1,
        "model.text.layers": 2,
        "model.former.depth": 1,
        "model.action.encoder_layers": 1,
        "model.action.decoder_layers": 1,
        "model.frames": 4,
        "video_diffusion.noise_schedule.num_sampling_steps": 2,
    },
    4: {"model.image_size": 64, "model.unet.block_out_channels": (160, 160, 160, 160)},
}


def shrunk(name: str, levels: int, changes: dict | None = None) -> ExperimentConfig:
    """The shipped experiment `configs/NAME.py` with other widths."""
    tree = to_dict(load_config(f"configs/{name}.py"))
    for field, value in (WIDTHS | LEVELS[levels] | (changes or {})).items():
        *above, last = field.split(".")
        reduce(dict.__getitem__, above, tree)[last] = value
    return from_config_dict(tree)


@dataclass(frozen=True)
class Bed:
    """Published weights, imported; recorded CALVIN; and the command that trains on them."""

    folder: Path
    levels: int

    def config(self, name: str, changes: dict | None = None) -> Path:
        """A file for --config."""
        path = self.folder / f"{name}.json"
        if self.levels < 4:  # one program with a U-Net less to compile
            changes = {"train.evaluators": ({"kind": "loss" if name.endswith("video") else "action_mse"},)} | (changes or {})
        data = {"path": str(self.folder / "data"), "name": "calvin"}
        path.write_text(to_json(shrunk(name, self.levels, {"data.datasets": (data,), **(changes or {})})))
        return path

    def train(self, name: str, workdir: str, *, video: str = "", changes: dict | None = None) -> Path:
        """`vpp train` of configs/NAME.py; the VAE is the imported one, the video model is in work directory `video`."""
        paths = [f"--workdir={self.folder / workdir}", *([f"--config.init.video={self.folder / video}"] if video else [])]
        if name.endswith("video"):
            paths.append(f"--config.init.vae={self.folder / 'published' / 'vae'}")
        assert main(["train", f"--config={self.config(name, changes)}", *paths]) == 0
        return self.folder / workdir


def recorded_calvin(folder: Path) -> Path:
    """The layout of the original dataset: two windows of language data in scene B, and in D for validation."""
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        directory = folder / split
        (directory / "lang_annotations").mkdir(parents=True)
        for number in range(96):
            np.savez(
                directory / f"episode_{number:07d}.npz",
                rgb_static=np.full((200, 200, 3), number, np.uint8),
                rgb_gripper=np.full((84, 84, 3), 2 * number, np.uint8),
                robot_obs=rng.normal(size=15),
                scene_obs=np.arange(24.0),
                actions=rng.normal(size=7),
                rel_actions=rng.uniform(-1, 1, 7),
                depth_static=np.zeros((200, 200), np.float32),
            )
        windows = {"language": {"ann": ["lift the block", "shut it"], "task": ["lift_red_block_table", "close_drawer"], "emb": None}}
        content = windows | {"info": {"indx": [(0, 48), (48, 95)], "episodes": []}}
        np.save(directory / "lang_annotations" / "auto_lang_ann.npy", content, allow_pickle=True)
    np.save(folder / "training" / "scene_info.npy", {"calvin_scene_B": [0, 95]}, allow_pickle=True)
    return folder


def make_bed(folder: Path, levels: int, fabricated) -> Bed:
    source = recorded_calvin(folder / "calvin")
    sharded.build(CalvinRecordedRecipe(RecordedSettings(source=str(source))), folder / "data", workers=0)
    config = shrunk("svd_calvin_video", levels)
    model, modules = config.model, make_stage(config).predictor
    pipeline = folder / "svd-robot-calvin-ft"
    parts: list[tuple[Path, str, PureModule, dict]] = [
        (pipeline / "unet", "diffusion_pytorch_model", modules.unet, published_unet(model.unet, model.frames, 96)),
        (pipeline / "vae", "diffusion_pytorch_model", modules.vae, published_vae(model.vae, 0.18215, 768)),
        (folder / "clip", "model", modules.text, published_text(model.text)),
    ]
    for seed, (directory, stem, module, described) in enumerate(parts):
        fabricated.write_component(directory, stem, fabricated.tensors(module, seed), described)
    (pipeline / "model_index.json").write_text("{}")
    bed = Bed(folder, levels)
    weights = (f"--unet={pipeline}", f"--text={folder / 'clip'}", f"--config={bed.config('svd_calvin_video')}")
    assert main(["convert", "import", *weights, f"--out={folder / 'published'}"]) == 0
    return bed


@pytest.fixture(scope="module")
def beds(tmp_path_factory, fabricated) -> Callable[[int], Bed]:
    made: dict[int, Bed] = {}

    def bed(levels: int) -> Bed:
        if levels not in made:
            made[levels] = make_bed(tmp_path_factory.mktemp(f"levels{levels}"), levels, fabricated)
        return made[levels]

    return bed


def observations() -> Observations:
    rng = np.random.default_rng(0)
    images = {view: rng.integers(0, 256, (1, size, size, 3), np.uint8) for view, size in (("primary", 200), ("wrist", 84))}
    return Observations(images, np.zeros((1, 15), np.float32), ["lift the block"])


@pytest.mark.parametrize("levels", [pytest.param(2, marks=pytest.mark.medium), pytest.param(4, marks=pytest.mark.slow)])
def test_import_finetune_policy_act_export(beds, levels):
    bed = beds(levels)
    video = bed.train("svd_calvin_video", "video", video="published/video")
    policy = bed.train("svd_calvin_policy", "policy", video="video")

    evaluated = [entry for entry in read_entries(video / "metrics.jsonl") if entry["kind"] == "eval"]
    assert [entry["step"] for entry in evaluated] == [1, 2]
    assert all(entry["text_kept"] == 1.0 for entry in evaluated)  # text is dropped in training only
    (_, last) = (entry for entry in read_entries(policy / "metrics.jsonl") if entry["kind"] == "eval")
    assert np.isfinite([last["action_mse"], last["action_mse_validation"]]).all()

    runner = load_policy(policy)
    actions = runner.act(observations(), np.zeros(1, np.uint32))
    model = runner.config.model
    assert actions.shape == (1, model.action.action_horizon, model.action.action_dim)
    assert np.isfinite(actions).all()

    clip = load_file(bed.folder / "clip" / "model.safetensors")
    goal = {name: value for name, value in runner.params.items() if name.startswith("goal_text_encoder/")}
    assert goal
    projection = next(value for name, value in goal.items() if name.endswith("text_projection.kernel"))
    np.testing.assert_allclose(np.asarray(projection, np.float32), clip["text_projection.weight"].T, rtol=2**-8)

    frozen = {
        name: spec for name, spec in make_stage(runner.config).abstract_frozen().items() if name.startswith(("unet/", "vae/", "text/"))
    }
    finetuned = load_params(video, frozen, stage="video")
    for name, value in finetuned.items():
        np.testing.assert_array_equal(np.asarray(runner.params[name]), np.asarray(value), err_msg=name)

    for workdir, files in ((video, {"unet", "vae", "text_encoder"}), (policy, {"policy.safetensors", "config.json", "robot.json"})):
        out = bed.folder / f"exported_{workdir.name}"
        assert main(["convert", "export", f"--checkpoint={workdir}", f"--out={out}"]) == 0
        assert {entry.name for entry in out.iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize("handover", ["adapters", "from_scratch", "latents", "one_view"])
def test_other_hand_overs(beds, handover):
    """What a tiny experiment does not exercise: each once, with bfloat16 frozen parts as in the shipped files."""
    bed, of_video, of_policy, init = beds(2), {}, {}, "published/video"
    match handover:
        case "adapters":
            of_video = {"lora.rank": 4}
        case "from_scratch":  # the text encoder then comes from the VAE's work directory
            of_video = of_policy = {"model.position_encode": True}
            init = ""
        case "latents":
            out, vae = bed.folder / "latents", bed.folder / "published" / "vae"
            source = (f"--dataset={bed.folder / 'data'}", "--robot=calvin", f"--config={bed.config('svd_calvin_video')}")
            assert main(["data", "latents", *source, f"--config.init.vae={vae}", f"--out={out}"]) == 0
            of_video = {"data.datasets": ({"path": str(out), "name": "calvin", "latents": True},)}
        case "one_view":
            of_policy = {"model.views": ("wrist",)}
    video = bed.train("svd_calvin_video", f"video_{handover}", video=init, changes=of_video)
    policy = bed.train("svd_calvin_policy", f"policy_{handover}", video=video.name, changes=of_policy)
    assert np.isfinite(load_policy(policy).act(observations(), np.zeros(1, np.uint32))).all()

    # a run that resumes reads its own copy of what is frozen, in the types it was stored in
    again = bed.train("svd_calvin_video", video.name, video=init, changes=of_video | {"train.steps": 3})
    steps = [entry["step"] for entry in read_entries(again / "metrics.jsonl") if entry["kind"] == "eval"]
    assert steps == [1, 2, 3]
