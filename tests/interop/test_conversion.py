"""Import and export of a small fabricated system: usable work directories, the same bytes back, and errors."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.transforms import Normalizer
from vpp_jax.cli.main import main
from vpp_jax.common.errors import VppError
from vpp_jax.config import ExperimentConfig, from_config_dict, to_dict
from vpp_jax.functional import PureModule, with_prefix
from vpp_jax.interop.published_configs import text_config, unet_config, vae_config
from vpp_jax.interop.safetensors_file import SafetensorsFile
from vpp_jax.interop.tensors import import_tensors
from vpp_jax.interop.torch_file import TorchFile
from vpp_jax.models.action_transformer import ActionTransformer, ActionTransformerConfig
from vpp_jax.models.text_encoder import CLIPTextEncoder
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.models.video_former import VideoFormer, VideoFormerConfig
from vpp_jax.models.video_unet import SpatioTemporalUNet
from vpp_jax.models.video_vae import TemporalVAE
from vpp_jax.serving.video_generator import load_video_generator
from vpp_jax.training.checkpoint_writing import Checkpoints
from vpp_jax.training.checkpoints import list_tensors, load_params, read_metadata
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.state import TrainState
from vpp_jax.video_predictor import SCALING_FACTOR

FORMER = VideoFormerConfig(dim=32, depth=2, heads=2, dim_head=16, frames=4, tokens_per_frame=3, condition_dim=32)
ACTION = ActionTransformerConfig(action_horizon=6, width=32, heads=8, encoder_layers=1, decoder_layers=2, goal_dim=24, token_dim=32)
ARGS = {
    "model": {
        "latent_dim": 32,
        "action_dim": 7,
        "action_seq_len": 6,
        "Former_depth": 2,
        "Former_heads": 2,
        "Former_dim_head": 16,
        "Former_num_time_embeds": 4,
        "num_latents": 3,
        "use_Former": "3d",
        "max_length": 12,
        "use_position_encoding": False,
        "extract_layer_idx": 0,
        "use_all_layer": True,
        "timestep": 20,
        "sigma_min": 0.001,
        "extra": [1, None, "${seed}"],
    },
    "seed": 6,
}
SMALL = (
    "--config.model.image_size=16",
    "--config.model.frames=4",
    "--config.model.text_length=12",
    "--config.model.n_action_steps=4",
    "--config.video_diffusion.noise_schedule.num_sampling_steps=2",
    "--config.policy_diffusion.noise_schedule.num_sampling_steps=2",
)


@dataclass(frozen=True)
class System:
    """Folders of a published system, and the arrays in them by component."""

    folder: Path
    arrays: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def system(fabricated, tmp_path_factory) -> System:
    folder, f = tmp_path_factory.mktemp("published"), fabricated
    unet, (vae, _), text = unet_config(f.UNET, "unet"), vae_config(f.VAE, "vae"), text_config(f.CLIP, "text")
    clip = PureModule.of(lambda rngs: CLIPTextEncoder(text, rngs=rngs))
    arrays = {
        "unet": f.tensors(PureModule.of(lambda rngs: SpatioTemporalUNet(unet, rngs=rngs)), 1),
        "vae": f.tensors(PureModule.of(lambda rngs: TemporalVAE(vae, rngs=rngs)), 2, dtype=np.float16),
        "text": f.tensors(clip, 3),
        "policy": f.tensors(PureModule.of(lambda rngs: VideoFormer(FORMER, rngs=rngs)), 4, "Video_Former.")
        | f.tensors(PureModule.of(lambda rngs: ActionTransformer(ACTION, rngs=rngs)), 5, "model.inner_model.")
        | f.tensors(clip, 6, "TVP_encoder.text_encoder.")
        | f.tensors(clip, 7, "language_goal.clip_rn50.", openai=True),
    }
    f.write_component(folder / "pipeline" / "unet", "diffusion_pytorch_model", arrays["unet"], f.UNET, shards=3)
    f.write_component(folder / "pipeline" / "vae", "diffusion_pytorch_model", arrays["vae"], f.VAE, variant="fp16")
    f.write_component(folder / "clip", "model", arrays["text"], f.CLIP)
    (folder / "pipeline" / "model_index.json").write_text("{}")
    archive = f.Archive()
    unused = {
        "model.inner_model.pos_emb": np.zeros((1, 1 + 12 + 6, 32), np.float32),
        "model.inner_model.goal_emb.0.weight": np.zeros((2, 2), np.float32),
        "model.inner_model.proprio_emb.0.weight": np.zeros((2, 2), np.float32),
        "language_goal.clip_rn50.logit_scale": np.array(4.6, np.float32),
        "language_goal.clip_rn50.visual.conv1.weight": np.zeros((2, 3, 4, 4), np.float32),
        "TVP_encoder.text_encoder.text_model.embeddings.position_ids": np.arange(20)[None],
    }
    archive.write(folder / "policy.pt", {"model": archive.state_dict(arrays["policy"] | unused), "args": f.omegaconf(ARGS)})
    return System(folder, arrays)


@pytest.fixture(scope="module")
def imported(system) -> Path:
    out = system.folder / "imported"
    published = (f"--unet={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}", f"--policy={system.folder / 'policy.pt'}")
    assert main(["convert", "import", *published, f"--out={out}", *SMALL]) == 0
    return out


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> the message of a command that must fail."""

    def run(*arguments) -> str:
        capsys.readouterr()
        assert main(["convert", *map(str, arguments)]) in (1, 2)
        text = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in text
        return text

    return run


# --- what an import gives -------------------------------------------------------------------------------------------------------------


def test_work_directories_hold_the_published_values(imported, system):
    """Every parameter that the stages ask for, bit by bit, in the types of the files."""
    stage = make_stage(from_config_dict(read_metadata(imported / "policy")["config"]))
    wanted = list_tensors(imported / "policy")
    params = load_params(imported / "policy", wanted, stage="policy")
    assert (stage.abstract_trainable() | stage.abstract_frozen()).keys() <= params.keys()
    assert params[SCALING_FACTOR] == np.float32(0.25)
    sources = {
        "unet": ("unet", ""),
        "vae": ("vae", ""),
        "video_former": ("policy", "Video_Former."),
        "action_transformer": ("policy", "model.inner_model."),
        "text": ("policy", "TVP_encoder.text_encoder."),
    }
    for group, (component, prefix) in sources.items():
        names = [name.removeprefix(f"{group}/") for name in params if name.startswith(f"{group}/")]
        for name, value in import_tensors(names, system.arrays[component], prefix).items():
            assert params[f"{group}/{name}"].dtype == value.dtype
            assert np.asarray(params[f"{group}/{name}"]).tobytes() == np.ascontiguousarray(value).tobytes(), name


def test_goal_encoder_splits_and_turns_openai_s_tensors(imported, system):
    params = load_params(imported / "policy", list_tensors(imported / "policy"))
    prefix, theirs = "language_goal.clip_rn50.", system.arrays["policy"]
    fused = theirs[f"{prefix}transformer.resblocks.1.attn.in_proj_weight"]  # rows of query, key, value
    np.testing.assert_array_equal(params["goal_text_encoder/text_model.encoder.layers.1.self_attn.k_proj.kernel"], fused[32:64].T)
    np.testing.assert_array_equal(
        params["goal_text_encoder/text_model.encoder.layers.0.self_attn.v_proj.bias"],
        theirs[f"{prefix}transformer.resblocks.0.attn.in_proj_bias"][64:],
    )
    np.testing.assert_array_equal(
        params["goal_text_encoder/text_projection.kernel"], theirs[f"{prefix}text_projection"]
    )  # x @ projection on both sides
    np.testing.assert_array_equal(
        params["goal_text_encoder/text_model.encoder.layers.1.mlp.fc2.kernel"],
        theirs[f"{prefix}transformer.resblocks.1.mlp.c_proj.weight"].T,
    )


def test_metadata_says_what_the_files_said(imported, system):
    video, policy = read_metadata(imported / "video"), read_metadata(imported / "policy")
    assert (video["stage"], video["step"], video["latent_scaling_factor"]) == ("video", 0, 0.25)
    assert policy["published_args"] == ARGS
    config = from_config_dict(policy["config"])
    assert config.model.former == FORMER
    assert config.model.action == ACTION
    assert (config.model.tap_blocks, config.model.text_length, config.model.n_action_steps) == ((0,), 12, 4)
    assert config.policy_diffusion.noise_schedule.sigma_min == 1.0  # of evaluation; args have training's
    assert config.init.video == str(imported / "video")
    assert policy["data"]["datasets"][0]["action"] == Normalizer.identity(7).to_json()


def test_position_encoding_is_an_option_of_the_video_model(system, tmp_path):
    arguments = (f"--unet={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}", *SMALL)
    assert main(["convert", "import", *arguments, "--position_encode", f"--out={tmp_path / 'out'}"]) == 0
    assert read_metadata(tmp_path / "out" / "video")["config"]["model"]["position_encode"] is True
    assert not (tmp_path / "out" / "policy").exists()


def test_every_tensor_is_accounted_for(imported, system):
    report = json.loads((imported / "report.json").read_text())["reports"]
    assert {kind: len(entry["loaded"]) for kind, entry in report.items()} == {kind: len(a) for kind, a in system.arrays.items()}
    assert all(not entry[fault] for entry in report.values() for fault in ("missing", "unexpected", "wrong_shape", "allowed"))
    assert len(report["policy"]["dropped"]) == 6
    assert report["policy"]["dropped"]["model.inner_model.pos_emb"] == "no forward pass reads it"
    assert report["policy"]["notes"] == []


def test_the_video_model_is_stored_once(imported):
    """Stage policy and stage video share files; each directory is complete."""
    original, again = imported / "video/checkpoints/0/params", imported / "policy/checkpoints/frozen/unet"
    files = [path.relative_to(original) for path in original.rglob("*") if path.is_file()]
    assert files
    assert all((original / file).samefile(again / file) for file in files)


@pytest.mark.medium
def test_video_predictor_gives_the_same_numbers_as_with_the_tensors_themselves(imported, system):
    """A denoised and decoded clip: every weight of the three modules has its share in it."""
    stage = make_stage(from_config_dict(read_metadata(imported / "video")["config"]))
    loaded = load_params(imported / "video", stage.abstract_trainable() | stage.abstract_frozen(), stage="video")
    predictor, direct = stage.predictor, {SCALING_FACTOR: jnp.float32(0.25)}
    for group, module in (("unet", predictor.unet), ("vae", predictor.vae), ("text", predictor.text)):
        tensors = import_tensors(module.abstract, system.arrays[group])
        direct |= with_prefix(group, {name: jnp.asarray(value, jnp.float32) for name, value in tensors.items()})
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    ids, mask = map(jnp.asarray, CLIPTokenizer(12)(["open the drawer"]))

    @jax.jit
    def clip(params):
        condition = predictor.encode_images(params, jnp.asarray(image))
        noisy = jax.random.normal(jax.random.key(0), (1, 4, *condition.shape[1:]))
        states = predictor.encode_text(params, ids, mask)
        return predictor.decode_latents(params, predictor.denoise(params, noisy, jnp.ones(1), condition, states, fps_id=7))

    np.testing.assert_array_equal(clip(loaded), clip(direct))
    assert float(jnp.std(clip(loaded))) > 0.01


def test_imported_directories_are_what_later_stages_take(imported):
    """`load_frozen` of stage video from OUT/vae and of stage policy from OUT/video."""
    for stage_name in ("video", "policy"):
        stage = make_stage(from_config_dict(read_metadata(imported / stage_name)["config"]))
        abstract = stage.abstract_frozen()
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        frozen = stage.load_frozen(dict.fromkeys(abstract, device))
        assert {name: value.shape for name, value in frozen.items()} == {name: spec.shape for name, spec in abstract.items()}


def test_stage_video_starts_from_an_imported_model(imported):
    config = from_config_dict(read_metadata(imported / "video")["config"])
    stage = make_stage(replace(config, init=replace(config.init, video=str(imported / "video"))))
    abstract = stage.abstract_trainable()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    given = stage.load_trainable(dict.fromkeys(abstract, device))
    stored = load_params(imported / "video", abstract, stage="video")
    assert given.keys() == abstract.keys()
    for name, value in given.items():
        assert value.dtype == abstract[name].dtype
        np.testing.assert_array_equal(value, stored[name])
    assert make_stage(replace(config, init=replace(config.init, video=""))).load_trainable({}) is None


@pytest.mark.medium
def test_an_imported_policy_acts(imported):
    from eval.policies import Observations
    from vpp_jax.serving.policy_runner import load_policy, recorded_in

    policy = load_policy(imported / "policy")
    assert policy.metadata.recorded_in == recorded_in(imported / "policy")
    assert policy.metadata.recorded_in["simulator"] == "calvin_pybullet"
    rng = np.random.default_rng(0)
    images = {view: rng.integers(0, 256, (1, 20, 20, 3), np.uint8) for view in ("primary", "wrist")}
    observations = Observations(images=images, proprio=np.zeros((1, 15), np.float32), text=["open the drawer"])
    actions = policy.act(observations, np.zeros(1, np.uint32))
    assert actions.shape == (1, 6, 7)
    assert set(np.unique(actions[..., 6])) <= {-1.0, 1.0}
    assert (policy.metadata.action_horizon, policy.metadata.n_action_steps) == (6, 4)


# --- and back ---------------------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_export_gives_back_every_byte(imported, system, tmp_path):
    """Three shards with their index, float16 under its variant's name, and the text encoder."""
    assert main(["convert", "export", f"--checkpoint={imported / 'video'}", f"--out={tmp_path}"]) == 0
    for folder, source in (("unet", "pipeline/unet"), ("vae", "pipeline/vae"), ("text_encoder", "clip")):
        ours, theirs = files(tmp_path / folder), files(system.folder / source)
        assert ours.keys() == theirs.keys()
        assert ours == theirs


def test_a_policy_goes_out_and_in_again(imported, system, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["convert", "export", f"--checkpoint={imported / 'policy'}", f"--out={first}"]) == 0
    exported = load_file(first / "policy.safetensors")
    assert exported.keys() == system.arrays["policy"].keys()
    assert all(exported[name].tobytes() == value.tobytes() for name, value in system.arrays["policy"].items())
    published = (f"--unet={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}", f"--policy={first}")
    assert main(["convert", "import", *published, f"--out={tmp_path / 'in'}", *SMALL]) == 0
    before, after = (read_metadata(folder / "policy")["config"]["model"] for folder in (imported, tmp_path / "in"))
    assert before == after
    assert main(["convert", "export", f"--checkpoint={tmp_path / 'in' / 'policy'}", f"--out={again}"]) == 0
    assert files(first) == files(again)


def test_a_trained_checkpoint_is_exported_with_a_config_that_is_read_back(micro_config, tmp_path):
    config = micro_config("video")
    stage, rng = make_stage(config), np.random.default_rng(0)
    params = {name: rng.standard_normal(spec.shape).astype(np.float32) for name, spec in stage.abstract_trainable().items()}
    state = TrainState(jnp.int32(4), params, {name: value + 1 for name, value in params.items()}, {})
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", max_to_keep=1)
    checkpoints.save_frozen({name: jnp.zeros(spec.shape, spec.dtype) for name, spec in stage.abstract_frozen().items()})
    checkpoints.save(4, state, {"stage": "video", "config": to_dict(config), "latent_scaling_factor": 0.5}, None)
    checkpoints.close()
    assert main(["convert", "export", f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    exported = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    np.testing.assert_array_equal(exported["conv_in.bias"], np.asarray(state.ema["unet/conv_in.bias"]))
    tree = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert unet_config(tree, "exported") == config.model.unet
    assert vae_config(json.loads((tmp_path / "out" / "vae" / "config.json").read_text()), "exported") == (config.model.vae, 0.5)
    assert text_config(json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text()), "exported") == config.model.text


# --- what does not fit ------------------------------------------------------------------------------------------------------------------


def altered_vae(system, tmp_path, change) -> Path:
    """The VAE's folder with other tensors: change(arrays) edits them."""
    folder = tmp_path / "vae"
    shutil.copytree(system.folder / "pipeline" / "vae", folder)
    arrays = dict(system.arrays["vae"])
    change(arrays)
    save_file(arrays, folder / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    return folder


def test_three_lists_and_what_is_allowed(system, tmp_path, refused):
    def change(arrays):
        del arrays["quant_conv.bias"]
        arrays["quant_conv.weight"] = np.zeros((3, 3), np.float16)
        arrays["surplus.weight"] = np.zeros(2, np.float16)

    folder = altered_vae(system, tmp_path, change)
    text = refused("import", f"--vae={folder}", f"--out={tmp_path / 'out'}")
    assert "1 missing: quant_conv.bias; 1 unexpected: surplus.weight; 1 of another shape or type: quant_conv.weight [3, 3]" in text
    assert not (tmp_path / "out").exists()
    allowed = (r"--allow_missing=quant_conv\.bias", r"--allow_unexpected=surplus\..*")
    text = refused("import", f"--vae={folder}", f"--out={tmp_path / 'out'}", *allowed)
    assert "0 missing; 0 unexpected; 1 of another shape or type" in text


def test_allowed_faults_are_imported_and_reported(system, tmp_path):
    def change(arrays):
        del arrays["quant_conv.bias"]
        arrays["surplus.weight"] = np.zeros(2, np.float16)

    folder = altered_vae(system, tmp_path, change)
    allowed = (r"--allow_missing=quant_conv\.bias", r"--allow_unexpected=surplus\..*")
    assert main(["convert", "import", f"--vae={folder}", f"--out={tmp_path / 'out'}", *allowed]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())["reports"]["vae"]
    assert report["allowed"] == ["quant_conv.bias", "surplus.weight"]
    vae = load_params(tmp_path / "out" / "vae", list_tensors(tmp_path / "out" / "vae"), stage="vae")
    assert not np.asarray(vae["vae/quant_conv.bias"]).any()


def test_image_encoder_of_a_whole_clip_is_dropped_and_the_rest_comes_back(system, fabricated, tmp_path):
    arrays = dict(system.arrays["text"])
    arrays["vision_model.post_layernorm.weight"] = np.ones(3, np.float32)
    arrays["logit_scale"] = np.array(1.0, np.float32)
    arrays["text_model.embeddings.position_ids"] = np.arange(20)[None]
    whole = {"model_type": "clip", "projection_dim": 24, "text_config": {**fabricated.CLIP, "eos_token_id": 2}}
    fabricated.write_component(tmp_path / "clip", "model", arrays, whole)
    pipeline = f"--unet={system.folder / 'pipeline'}"
    assert main(["convert", "import", pipeline, f"--text={tmp_path / 'clip'}", f"--out={tmp_path / 'in'}", *SMALL]) == 0
    report = json.loads((tmp_path / "in" / "report.json").read_text())["reports"]["text"]
    assert sorted(report["dropped"]) == ["logit_scale", "text_model.embeddings.position_ids", "vision_model.post_layernorm.weight"]
    assert from_config_dict(read_metadata(tmp_path / "in" / "video")["config"]).model.text.end_of_text == 49407
    assert main(["convert", "export", f"--checkpoint={tmp_path / 'in' / 'video'}", f"--out={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out/text_encoder/model.safetensors").read_bytes() == (system.folder / "clip/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("component", "change", "problem"),
    [
        ("unet", {"transformer_layers_per_block": 2}, "transformer_layers_per_block is 2"),
        ("unet", {"up_block_types": ["UpBlockSpatioTemporal"]}, "up_block_types"),
        ("unet", {"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ("unet", {"num_attention_heads": [3]}, "does not divide"),
        ("unet", {"layers_per_block": [1, 2]}, "one value for all levels"),
        ("vae", {"_class_name": "AutoencoderKL"}, "_class_name"),
        ("text", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("text", {"model_type": "t5"}, "model_type"),
    ],
)
def test_models_that_cannot_be_expressed(fabricated, component, change, problem):
    from vpp_jax.interop.report import ConversionError

    makers = {"unet": (unet_config, fabricated.UNET), "vae": (vae_config, fabricated.VAE), "text": (text_config, fabricated.CLIP)}
    make, tree = makers[component]
    with pytest.raises(ConversionError, match=problem):
        make({**tree, **change}, "config.json")


def test_published_sizes_are_the_defaults():
    """The published config.json files, of which only these fields matter."""
    heads = {"num_attention_heads": [5, 10, 20, 20], "cross_attention_dim": 1024, "in_channels": 8, "sample_size": 96}
    model = ExperimentConfig().model
    assert unet_config({"_class_name": "UNetSpatioTemporalConditionModel", **heads}, "") == model.unet
    assert vae_config({"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "scaling_factor": 0.18215}, "") == (
        model.vae,
        0.18215,
    )
    assert text_config({"model_type": "clip", "projection_dim": 512, "text_config": {"eos_token_id": 2}}, "") == model.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"block_out_channels": 3}', "fields of other types"),
        ('{"scaling_factor": "x"}', "fields of other types"),
        ('{"scaling_factor": NaN}', "is not JSON: NaN is no number"),
        ("version https://git-lfs.github.com/spec/v1\n", "config.json is a Git LFS pointer"),
        ('{"layers_per_block": null}', "config.json of"),
    ],
)
def test_damaged_config_json(system, tmp_path, refused, text, problem):
    folder = altered_vae(system, tmp_path, lambda arrays: None)
    (folder / "config.json").write_text(text)
    assert problem in refused("import", f"--vae={folder}", f"--out={tmp_path / 'out'}")


def test_types_that_parameters_never_have(system, tmp_path, refused):
    folder = altered_vae(system, tmp_path, lambda arrays: arrays.update({"quant_conv.bias": np.zeros(8, np.int32)}))
    text = refused("import", f"--vae={folder}", f"--out={tmp_path / 'out'}")
    assert "quant_conv.bias int32, expected float32, float16, bfloat16, float64" in text


def test_a_policy_that_does_not_fit_the_video_model_is_refused_before_anything_is_written(system, fabricated, tmp_path, refused):
    """Its features come from two up blocks; this U-Net has one."""
    archive = fabricated.Archive()
    args = {"model": {**ARGS["model"], "extract_layer_idx": 1}}
    tree = {"model": archive.state_dict(system.arrays["policy"]), "args": fabricated.omegaconf(args)}
    policy = archive.write(tmp_path / "policy.pt", tree)
    published = (f"--unet={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}", f"--policy={policy}")
    text = refused("import", *published, f"--out={tmp_path / 'out'}", *SMALL)
    assert "policy.pt: this policy does not fit the video model: tap_blocks is (0, 1), but the U-Net has up blocks 0 to 0" in text
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt"]


def test_paths_and_combinations(system, tmp_path, refused):
    pipeline, out = system.folder / "pipeline", f"--out={tmp_path / 'out'}"
    assert "--unet needs --text" in refused("import", f"--unet={pipeline}", out)
    assert "nothing to import" in refused("import", out)
    assert "give --vae as well" in refused("import", f"--unet={pipeline / 'unet'}", f"--text={system.folder / 'clip'}", out)
    assert "--policy needs --unet" in refused("import", f"--vae={pipeline}", f"--policy={system.folder / 'policy.pt'}", out)
    assert "does not exist" in refused("import", f"--vae={tmp_path / 'nowhere'}", out)
    assert "has none of" in refused("import", f"--vae={system.folder / 'clip'}", out)
    assert "has none of" in refused("import", f"--vae={pipeline}", "--variant=bf16", out)
    assert "'(' is not a regular expression" in refused("import", f"--vae={pipeline}", out, "--allow_unexpected=(")
    assert "exists and is not empty" in refused("export", f"--checkpoint={system.folder}", f"--out={system.folder}")
    assert "exists and is not empty" in refused("import", f"--vae={pipeline}", f"--out={system.folder}")
    assert "did you mean 'image_size'" in refused("import", f"--vae={pipeline}", out, "--config.model.image_siz=3")
    assert not (tmp_path / "out").exists()


def test_a_failed_import_leaves_nothing(system, tmp_path, refused):
    """The file is damaged where only reading finds it out: in the last storage of the policy's archive."""
    content = bytearray((system.folder / "policy.pt").read_bytes())
    last = system.arrays["policy"]["language_goal.clip_rn50.text_projection"].tobytes()
    place = content.find(last[:64])
    content[place + 10] ^= 0xFF
    (tmp_path / "policy.pt").write_bytes(content)
    published = (f"--unet={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}", f"--policy={tmp_path / 'policy.pt'}")
    text = refused("import", *published, f"--out={tmp_path / 'out'}", *SMALL)
    assert "the storage of language_goal.clip_rn50.text_projection is damaged" in text
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt"]


# --- what other programs leave behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(system, tmp_path, refused, value):
    def change(arrays):
        arrays["quant_conv.bias"] = np.array([value] + [0] * 7, np.float16)

    folder = altered_vae(system, tmp_path, change)
    text = refused("import", f"--vae={folder}", f"--out={tmp_path / 'out'}")
    assert "fp16.safetensors: 1 of 8 values of quant_conv.bias are NaN or infinite" in text
    assert not (tmp_path / "out").exists()


OLD_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


def old(name: str) -> str:
    for new, before in OLD_NAMES.items():
        name = name.replace(new, before) if ".attentions." in name else name
    return name


@pytest.mark.parametrize(
    ("rename", "dtype", "note"),
    [
        (lambda name: f"module.{name}", np.float16, "the wrappers' prefixes '_orig_mod.' and 'module.' were removed"),
        (lambda name: f"_orig_mod.module.{name}", np.float16, "the wrappers' prefixes"),
        (lambda name: name.replace("encoder.", "encoder._orig_mod.", 1), np.float16, "the wrappers' prefixes"),
        (old, np.float16, "attention names of older versions of diffusers were mapped"),
        (lambda name: f"module.{old(name)}", np.float16, "attention names of older versions of diffusers were mapped"),
        (lambda name: name, np.float64, "are float64 and are stored as float32"),
    ],
)
def test_names_and_types_of_other_programs_are_mapped_and_reported(system, tmp_path, rename, dtype, note):
    def change(arrays):
        renamed = {rename(name): value.astype(dtype) for name, value in arrays.items()}
        assert dtype == np.float64 or renamed.keys() != arrays.keys()
        arrays.clear()
        arrays |= renamed

    folder = altered_vae(system, tmp_path, change)
    assert main(["convert", "import", f"--vae={folder}", f"--out={tmp_path / 'out'}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())["reports"]["vae"]
    assert any(note in line for line in report["notes"])
    assert not report["allowed"]
    vae = load_params(tmp_path / "out" / "vae", list_tensors(tmp_path / "out" / "vae"), stage="vae")
    wanted = system.arrays["vae"]["decoder.mid_block.attentions.0.to_q.weight"]
    stored = np.asarray(vae["vae/decoder.mid_block.attentions.0.to_q.kernel"])
    assert stored.dtype == (np.float32 if dtype == np.float64 else np.float16)
    np.testing.assert_array_equal(stored.T, wanted.astype(stored.dtype))
    assert main(["convert", "export", f"--checkpoint={tmp_path / 'out' / 'vae'}", f"--out={tmp_path / 'again'}"]) == 0
    assert "decoder.mid_block.attentions.0.to_q.weight" in SafetensorsFile(next((tmp_path / "again").rglob("*.safetensors"))).tensors


def test_a_tensor_that_is_there_twice_is_refused(system, tmp_path, refused):
    folder = altered_vae(system, tmp_path, lambda arrays: arrays.update({"module.quant_conv.bias": arrays["quant_conv.bias"]}))
    text = refused("import", f"--vae={folder}", f"--out={tmp_path / 'out'}")
    assert "module.quant_conv.bias" in text
    assert "are both quant_conv.bias; keep one of them" in text


def test_a_single_file_beside_shards_is_ambiguous(system, tmp_path, refused):
    unet = tmp_path / "unet"
    shutil.copytree(system.folder / "pipeline" / "unet", unet)
    save_file({"stale": np.zeros(1, np.float32)}, unet / "diffusion_pytorch_model.safetensors")
    published = (f"--unet={unet}", f"--vae={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}")
    text = refused("import", *published, f"--out={tmp_path / 'out'}")
    assert "has diffusion_pytorch_model.safetensors and diffusion_pytorch_model.safetensors.index.json, which may differ" in text


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def test_git_lfs_pointers_are_called_so(system, tmp_path, refused):
    folder = altered_vae(system, tmp_path, lambda arrays: None)
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_text(POINTER)
    assert "fp16.safetensors is a Git LFS pointer" in refused("import", f"--vae={folder}", f"--out={tmp_path / 'out'}")
    (tmp_path / "policy.pt").write_text(POINTER)
    published = (f"--unet={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}", f"--policy={tmp_path / 'policy.pt'}")
    assert "policy.pt is a Git LFS pointer" in refused("import", *published, f"--out={tmp_path / 'out'}", *SMALL)
    unet = tmp_path / "unet"
    shutil.copytree(system.folder / "pipeline" / "unet", unet)
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(POINTER)
    published = (f"--unet={unet}", f"--vae={system.folder / 'pipeline'}", f"--text={system.folder / 'clip'}")
    assert "index.json is a Git LFS pointer" in refused("import", *published, f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_json_with_a_byte_order_mark_is_read(system, tmp_path, encoding):
    folder = altered_vae(system, tmp_path, lambda arrays: None)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_bytes(text.encode(encoding))
    assert main(["convert", "import", f"--vae={folder}", f"--out={tmp_path / 'out'}"]) == 0


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "module"])
def test_trainers_put_the_tensors_of_a_policy_under_other_keys(system, fabricated, tmp_path, key):
    archive = fabricated.Archive()
    path = archive.write(tmp_path / "policy.pt", {"epoch": 3, key: archive.state_dict(system.arrays["policy"])})
    assert TorchFile(path).tensors.keys() == system.arrays["policy"].keys()


def test_a_video_of_nan_is_an_error(system, tmp_path, imported):
    generator = load_video_generator(imported / "video")
    name = next(name for name in generator.params if name.startswith("vae/decoder") and name.endswith("bias"))
    generator.params = generator.params | {name: generator.params[name] * np.nan}
    with pytest.raises(VppError, match="has NaN or infinite values"):
        generator.generate(np.zeros((8, 8, 3), np.uint8), "open the drawer")
