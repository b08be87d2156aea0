"""FLOPs of a training step as MFU counts them, and the time they take at the peak of the devices."""

from dataclasses import dataclass, replace

import pytest

from configs import svd_calvin_video
from vpp_jax.aot.mfu import ideal_step_s
from vpp_jax.aot.program import model_flops
from vpp_jax.config import from_config_dict
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec

pytestmark = pytest.mark.slow  # tracing a step takes seconds


@dataclass
class Device:
    device_kind: str


def test_a_clip_of_the_published_size_costs_18_tflop():
    """The figure of docs/measurements/tpu_compile.md, from the shipped configuration, whose blocks are rematerialised."""
    config = from_config_dict(svd_calvin_video.get_config())
    assert config.model.unet.remat == "blocks"
    assert model_flops(config, "train") == pytest.approx(18.05e12, rel=1e-3)


def test_time_at_the_peak_of_all_devices(micro_config):
    config = micro_config("video")
    expected = config.data.batch_size * model_flops(config, "train") / (197e12 + 459e12)
    assert ideal_step_s(config, [Device("TPU v5 lite"), Device("TPU v5")]) == pytest.approx(expected)
    parts = replace(config, train=replace(config.train, grad_accum_steps=2))
    assert ideal_step_s(parts, [Device("TPU v5 lite"), Device("TPU v5")]) == pytest.approx(expected)


def test_unknown_devices_have_no_peak(micro_config):
    assert ideal_step_s(micro_config("video"), [Device("TPU v5 lite"), Device("cpu")]) is None


def test_recomputation_and_frozen_kernels_do_not_count(micro_config):
    config = micro_config("video")
    everything = replace(config, model=replace(config.model, unet=replace(config.model.unet, remat="everything")))
    assert model_flops(everything, "train") == model_flops(config, "train")
    frozen = replace(config, optimizer=replace(config.optimizer, frozen=(r"unet/up_blocks.*",)))
    assert model_flops(frozen, "train") < model_flops(config, "train")


def test_cached_features_cost_no_video_model(micro_config):
    cached = micro_config("policy")
    assert cached.policy_diffusion.feature_draws == 1
    fresh = replace(cached, policy_diffusion=replace(cached.policy_diffusion, feature_draws=0))
    assert model_flops(cached, "train") < 0.5 * model_flops(fresh, "train")
    frames, positions, channels = make_stage(cached).policy.predictor.feature_shape
    assert example_spec(cached)["features"].shape == (frames, len(cached.model.views) * positions, channels)
