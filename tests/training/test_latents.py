"""Stage video from latents computed once: the same loss as from frames, and only with the VAE that made them."""

import dataclasses
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.builders import writer
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.loader import eval_batches
from data_pipelines.rlds import images
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records
from vpp_jax.cli.main import main
from vpp_jax.config import to_dict, to_json
from vpp_jax.functional import Params, with_prefix
from vpp_jax.training.checkpoint_writing import write_imported
from vpp_jax.training.latents import LatentsMismatchError, vae_identity
from vpp_jax.training.stages.video import VideoStage
from vpp_jax.video_predictor import SCALING_FACTOR, VideoPredictor

FACTOR = 0.4


class LinearPredictor(VideoPredictor):
    """A U-Net and a text encoder that compile at once; all else is the real thing."""

    def encode_text(self, params, ids, mask):
        return ids.astype(jnp.float32)[..., None] / 50_000

    def _unet(self, params, scaled_noisy, condition, c_noise, text_states, fps_id, noise_aug_id=0.0, taps=()):
        sample = 0.3 * scaled_noisy + 0.7 * condition[:, None] + text_states.mean((1, 2))[:, None, None, None, None]
        return SimpleNamespace(sample=sample, taps={})


class Stage(VideoStage):
    @cached_property
    def predictor(self):
        return LinearPredictor(self.config.model, self.config.video_diffusion)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Five episodes of random images in two shards, one of them the val split."""
    directory, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    schema = Schema(
        steps={
            "observation/rgb_static": Feature("image", "uint8", (32, 32, 3), "jpeg"),
            "language_instruction": Feature("text"),
            "action": Feature("tensor", "float32", (7,)),
            "is_first": Feature("tensor", "bool"),
        }
    )
    splits = {}
    for split, lengths in (("train", (6, 3, 7)), ("val", (5, 4))):
        payloads = []
        for length in lengths:
            frames = rng.integers(0, 256, (length, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
            payloads.append(
                writer.encode_episode(
                    schema,
                    {
                        "observation/rgb_static": [images.encode_jpeg(frame) for frame in frames],
                        "is_first": np.arange(length) == 0,
                        "language_instruction": [f"do {length}"] * length,
                        "action": rng.normal(size=(length, 7)).astype(np.float32),
                    },
                    {},
                )
            )
        size = write_records(directory / writer.shard_name("calvin_mujoco", split, 0, 1), payloads)
        splits[split] = writer.WrittenSplit((len(lengths),), size)
    writer.write_metadata(directory, schema, "calvin_mujoco", "1.0.0", splits, "test")
    return directory


@pytest.fixture(scope="module")
def smallest(micro_config):
    """Stage video with an even smaller VAE: two levels."""
    config = micro_config("video")
    vae = dataclasses.replace(config.model.vae, block_out_channels=(4, 4), norm_groups=2)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vae=vae))


@pytest.fixture(scope="module")
def predictor(smallest):
    return LinearPredictor(smallest.model, smallest.video_diffusion)


@pytest.fixture(scope="module")
def params(predictor) -> Params:
    """What stage video keeps frozen."""
    return with_prefix("vae", jax.jit(predictor.vae.init)(jax.random.key(0))) | {SCALING_FACTOR: jnp.float32(FACTOR)}


@pytest.fixture(scope="module")
def config(smallest, params, dataset, tmp_path_factory):
    """With a VAE's checkpoint."""
    config, workdir = smallest, tmp_path_factory.mktemp("vae")
    about = {"stage": "vae", "step": 0, "config": to_dict(config), "config_hash": "", "latent_scaling_factor": FACTOR}
    tensors = {name: value for name, value in params.items() if name.startswith("vae/")}
    write_imported(workdir / "checkpoints" / "0", {"params": tensors}, {}, {"metadata": about, "data": {"state": None}})
    data = DataConfig(datasets=(DatasetConfig(str(dataset), views=("primary",)),), batch_size=2, clip_frames=4, clip_stride=2, threads=1)
    return dataclasses.replace(config, data=data, init=dataclasses.replace(config.init, vae=str(workdir)))


@pytest.fixture(scope="module")
def packed(config, dataset, tmp_path_factory):
    """The configuration that reads the latents which `vpp data latents` wrote."""
    directory = tmp_path_factory.mktemp("latents")
    (directory / "config.json").write_text(to_json(config))
    command = [
        "data",
        "latents",
        f"--config={directory / 'config.json'}",
        f"--dataset={dataset}",
        f"--out={directory / 'out'}",
        "--views=primary",
        "--batch=4",
    ]
    assert main(command) == 0
    entry = DatasetConfig(str(directory / "out"), views=("primary",), latents=True)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=(entry,)))


def test_latents_are_the_posterior_of_every_frame(predictor, params, packed, dataset):
    posterior = jax.jit(predictor.posterior)
    for split in ("train", "val"):
        for episode, latents in zip(RLDSDataset(dataset, split), RLDSDataset(packed.data.datasets[0].path, split), strict=True):
            length = len(episode)
            frames = np.stack([episode.frame("observation/rgb_static", min(step, length - 1)) for step in range(8)])  # one shape
            mean, logvar = (values[:length] for values in posterior(params, frames))
            np.testing.assert_allclose(latents.column("observation/rgb_static_latent_mean"), mean, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(latents.column("observation/rgb_static_latent_logvar"), logvar, rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(latents.column("action"), episode.column("action"))


def test_loss_from_latents_is_the_loss_from_frames(params, config, packed):
    losses = {}
    for name, chosen in (("frames", config), ("latents", packed)):
        stage = Stage(chosen)
        source = stage.source("train", params, Path())
        loss = jax.jit(stage.loss)
        keys = [jax.random.key(seed) for seed in range(4)]
        batches = [{key: jnp.asarray(value) for key, value in batch.items() if key != "valid"} for batch in eval_batches(source, 2)]
        assert ("video" in batches[0]) == (name == "frames")
        losses[name] = np.array([loss({}, params, batch, key)[0] for batch, key in zip(batches, keys, strict=False)])
        assert float(stage.loss_weight(batches[0])) == 2
    assert np.ptp(losses["frames"]) > 0.01
    # float16 keeps 11 bits: 2^-11 of the latents, about twice that of their squares
    np.testing.assert_allclose(losses["latents"], losses["frames"], rtol=2e-3)


def test_another_vae_is_refused(params, packed, capsys):
    identity = vae_identity(packed.model.vae, params)
    other = params | {"vae/quant_conv.bias": params["vae/quant_conv.bias"].at[0].add(1e-3)}
    message = f"its latents are of VAE {identity}, but init.vae={packed.init.vae} is VAE {vae_identity(packed.model.vae, other)}"
    with pytest.raises(LatentsMismatchError, match=message):
        Stage(packed).source("train", other, Path())
    Path(packed.init.vae, "config.json").write_text(to_json(packed))
    assert main(["data", "latents", "--identity", f"--config={packed.init.vae}/config.json"]) == 0
    assert capsys.readouterr().out.strip() == identity


def test_identity_is_of_the_encoder(params, config):
    vae = config.model.vae
    identity = vae_identity(vae, params)
    kernel = "vae/encoder.conv_in.kernel"
    swapped = params[kernel].reshape(-1).at[jnp.array([0, 1])].set(params[kernel].reshape(-1)[jnp.array([1, 0])])
    for changed in (
        params | {kernel: params[kernel].at[0, 0, 0, 0].multiply(-1)},
        params | {kernel: swapped.reshape(params[kernel].shape)},
        {name: value for name, value in params.items() if name != "vae/quant_conv.bias"},
    ):
        assert vae_identity(vae, changed) != identity
    assert vae_identity(dataclasses.replace(vae, norm_groups=4), params) != identity
    decoder = next(name for name in params if name.startswith("vae/decoder."))
    for same in (params | {decoder: params[decoder] + 1}, dict(reversed(params.items()))):
        assert vae_identity(vae, same) == identity
    assert vae_identity(dataclasses.replace(vae, dtype="bfloat16"), params) == identity


def test_plots_of_latents(params, packed, tmp_path):
    stage = Stage(packed)
    batch = {name: value for name, value in next(eval_batches(stage.source("val", params, Path()), 2)).items() if name != "valid"}
    stage.plot_batch(batch, tmp_path / "first_batch.png")
    on_device = jax.tree.map(jnp.asarray, batch)
    stage.plot_predictions({}, params, on_device, jax.random.key(0), tmp_path / "preview.png")
    shown = stage.preview({}, params, on_device, jax.random.key(0))
    assert shown["true"].shape == shown["predicted"].shape == (2, 4, 32, 32, 3)
    assert np.asarray(shown["true"]).std() > 0
    assert (tmp_path / "first_batch.png").stat().st_size > 200
    assert (tmp_path / "preview.png").stat().st_size > 200
