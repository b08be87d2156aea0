"""Model sizes, shared by the experiments: the same classes everywhere, only widths and resolutions differ.

`default_config()` is size `svd`, the published model; `tiny` trains on two CPU cores.
"""

from ml_collections import ConfigDict


def set_tiny(config: ConfigDict, views: tuple[str, ...] = ("primary", "wrist")) -> None:
    """32-pixel images, 8 frames, 8 x 8 latents of 8 channels; every part of the published architecture is there."""
    model = config.model
    model.image_size, model.frames, model.views = 32, 8, views
    model.text_length, model.goal_length, model.text_trainable = 20, 20, True  # there is no pretrained text encoder at this width
    model.fps_id_features = model.fps_id_train
    model.tap_blocks = (0,)
    model.fixed_feature_noise = True  # a small policy and a short training cannot average fresh noise away
    # groups of at least four channels, as published: one channel per group would take every image's mean colour away
    # 8 numbers per 4 x 4 pixels where 4 per 8 x 8 are published: a VAE of a minute or two blurs an arm that it must press into fewer
    model.vae.update(block_out_channels=(16, 32, 32), layers_per_block=1, latent_channels=8, norm_groups=4)
    model.text.update(width=64, layers=2, heads=2, mlp_width=128, projection_dim=64)
    model.unet.update(
        block_out_channels=(48, 64),
        attention_levels=(False, True),
        attention_heads=(1, 2),
        layers_per_block=1,
        addition_time_embed_dim=32,
        norm_groups=8,
    )
    model.former.update(dim=48, depth=2, heads=2, dim_head=24, tokens_per_frame=4)
    # proprioception and full cross-attention: the published policy has neither, but it has a pretrained video model
    model.action.update(
        action_horizon=10,
        width=96,
        heads=3,
        encoder_layers=2,
        decoder_layers=3,
        proprio_dim=15,
        causal_cross_attention=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        mlp_dropout=0.0,
        init_std=0.1,
    )
