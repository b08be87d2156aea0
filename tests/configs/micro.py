"""The smallest model that has every part, for tests: seconds to compile. `micro_STAGE.py` beside this file are the experiments."""

from ml_collections import ConfigDict

from vpp_jax.config import default_config


def micro(stage: str) -> ConfigDict:
    """32-pixel images, 4 frames, 8 x 8 latents, a U-Net of two levels; data paths are for the command line to set."""
    config = default_config()
    config.stage = stage
    model = config.model
    model.image_size, model.frames, model.views = 32, 4, ("primary", "wrist")
    model.text_length, model.goal_length, model.text_trainable, model.tap_blocks, model.n_action_steps = 12, 16, True, (0,), 4
    model.vae.update(block_out_channels=(8, 8, 16), layers_per_block=1, norm_groups=4)
    model.text.update(width=16, layers=1, heads=2, mlp_width=32, projection_dim=16, max_positions=16)
    model.unet.update(
        block_out_channels=(16, 32),
        attention_levels=(True, False),
        attention_heads=(1, 1),
        layers_per_block=1,
        addition_time_embed_dim=16,
        norm_groups=4,
    )
    model.former.update(dim=16, depth=1, heads=2, dim_head=8, tokens_per_frame=2)
    model.action.update(
        action_horizon=6,
        width=32,
        heads=2,
        encoder_layers=1,
        decoder_layers=1,
        proprio_dim=15,
        causal_cross_attention=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        mlp_dropout=0.0,
    )
    config.data.datasets = ({"path": "", "name": "calvin_mujoco"},)
    config.data.update(batch_size=4, clip_stride=4, clip_start_every=4, observation_stride=6)
    config.vae_training.clip_frames = 4
    config.video_diffusion.noise_schedule.num_sampling_steps = 3
    config.video_diffusion.guidance_max = 1.0
    config.policy_diffusion.update(feature_draws=1, feature_batch=8)
    config.optimizer.learning_rate = 2e-3
    config.train.update(steps=6, log_every=1, eval_every=0, save_every=100, max_to_keep=1, ema_decay=0.9)
    return config
