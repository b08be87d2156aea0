"""`config.json` of diffusers and transformers folders <-> our configuration dataclasses.

What a published class has and ours has not is refused by name, never ignored. Both published classes normalise in groups of 32 channels
and have no field for it; smaller models that were trained here carry `norm_num_groups` beside the published fields.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vpp_jax.interop.report import ConversionError
from vpp_jax.models.text_encoder import TextEncoderConfig
from vpp_jax.models.tokenizer import END_OF_TEXT
from vpp_jax.models.video_unet import VideoUNetConfig
from vpp_jax.models.video_vae import VideoVAEConfig

GROUPS = 32
CROSS, PLAIN = "CrossAttn", ""
Json = Mapping[str, Any]


# --- U-Net --------------------------------------------------------------------------------------------------------------------------


def unet_config(tree: Json, where: str) -> VideoUNetConfig:
    """diffusers' UNetSpatioTemporalConditionModel; fields that are absent have its defaults."""
    channels = tuple(tree.get("block_out_channels", (320, 640, 1280, 1280)))
    levels, last = len(channels), len(channels) - 1
    default_down = [f"{CROSS if level < last else PLAIN}DownBlockSpatioTemporal" for level in range(levels)]
    down = list(tree.get("down_block_types", default_down))
    attends = tuple(kind == f"{CROSS}DownBlockSpatioTemporal" for kind in down)
    _require(
        tree,
        where,
        {
            "_class_name": "UNetSpatioTemporalConditionModel",
            "down_block_types": _kinds(attends, "DownBlockSpatioTemporal"),
            "up_block_types": _kinds(attends[::-1], "UpBlockSpatioTemporal"),
            "transformer_layers_per_block": 1,
            "projection_class_embeddings_input_dim": 3 * tree.get("addition_time_embed_dim", 256),
        },
    )
    if len(down) != levels:
        raise ConversionError(f"{where}: {len(down)} down_block_types for {levels} block_out_channels")
    return _made(
        where,
        lambda: VideoUNetConfig(
            in_channels=tree.get("in_channels", 8),
            out_channels=tree.get("out_channels", 4),
            block_out_channels=channels,
            attention_levels=attends,
            layers_per_block=_same(tree, where, "layers_per_block", 2),
            attention_heads=_per_level(tree.get("num_attention_heads", (5, 10, 20, 20)), levels),
            cross_attention_dim=_same(tree, where, "cross_attention_dim", 1024),
            addition_time_embed_dim=tree.get("addition_time_embed_dim", 256),
            norm_groups=tree.get("norm_num_groups", GROUPS),
        ),
    )


def published_unet(config: VideoUNetConfig, frames: int, latent_size: int) -> dict[str, Any]:
    """The inverse. `frames` and `latent_size` are for the reader of the file; nothing is built from them."""
    return {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "addition_time_embed_dim": config.addition_time_embed_dim,
        "block_out_channels": list(config.block_out_channels),
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": _kinds(config.attention_levels, "DownBlockSpatioTemporal"),
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "num_attention_heads": list(config.attention_heads),
        "num_frames": frames,
        "out_channels": config.out_channels,
        "projection_class_embeddings_input_dim": 3 * config.addition_time_embed_dim,
        "sample_size": latent_size,
        "transformer_layers_per_block": 1,
        "up_block_types": _kinds(config.attention_levels[::-1], "UpBlockSpatioTemporal"),
    } | _groups(config.norm_groups)


# --- VAE ----------------------------------------------------------------------------------------------------------------------------


def vae_config(tree: Json, where: str) -> tuple[VideoVAEConfig, float]:
    """diffusers' AutoencoderKLTemporalDecoder -> configuration and scaling factor of the latents."""
    channels = tuple(tree.get("block_out_channels", (64,)))
    _require(
        tree,
        where,
        {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "in_channels": 3,
            "out_channels": 3,
        },
    )
    config = _made(
        where,
        lambda: VideoVAEConfig(
            block_out_channels=channels,
            layers_per_block=tree.get("layers_per_block", 1),
            latent_channels=tree.get("latent_channels", 4),
            norm_groups=tree.get("norm_num_groups", GROUPS),
        ),
    )
    return config, float(tree.get("scaling_factor", 0.18215))


def published_vae(config: VideoVAEConfig, scaling_factor: float, image_size: int) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(config.block_out_channels),
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "out_channels": 3,
        "sample_size": image_size,
        "scaling_factor": scaling_factor,
    } | _groups(config.norm_groups)


# --- text ---------------------------------------------------------------------------------------------------------------------------


def text_config(tree: Json, where: str) -> TextEncoderConfig:
    """transformers' CLIPModel, CLIPTextModel or CLIPTextModelWithProjection; fields that are absent have its defaults."""
    text = tree.get("text_config") or tree
    _require(tree, where, {"model_type": ("clip", "clip_text_model")})
    _require(text, where, {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5})
    vocabulary = text.get("vocab_size", 49408)
    end = text.get("eos_token_id", END_OF_TEXT)
    return _made(
        where,
        lambda: TextEncoderConfig(
            vocab_size=vocabulary,
            width=text.get("hidden_size", 512),
            layers=text.get("num_hidden_layers", 12),
            heads=text.get("num_attention_heads", 8),
            mlp_width=text.get("intermediate_size", 2048),
            max_positions=text.get("max_position_embeddings", 77),
            projection_dim=tree.get("projection_dim", text.get("projection_dim", 512)),
            end_of_text=vocabulary - 1 if end in (2, None) else end,  # 2 is an error of old files, where the largest id is the end token
        ),
    )


def published_text(config: TextEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "bos_token_id": max(config.end_of_text - 1, 0),
        "eos_token_id": config.end_of_text,
        "hidden_act": "quick_gelu",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": config.max_positions,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "projection_dim": config.projection_dim,
        "vocab_size": config.vocab_size,
    }


# --- shared -------------------------------------------------------------------------------------------------------------------------


def _require(tree: Json, where: str, expected: Json) -> None:
    """Fields that are present must have the expected value, or one of a tuple of them."""
    for name, value in expected.items():
        found = tree.get(name)
        allowed = value if isinstance(value, tuple) else (value,)
        every = isinstance(found, list | tuple) and isinstance(value, int) and all(entry == value for entry in found)
        if found is not None and found not in allowed and not every:
            raise ConversionError(f"{where}: {name} is {found!r}, this project can only express {' or '.join(map(repr, allowed))}")


def require_derived(given: Any, resolved: Any, where: str) -> None:
    """ConversionError where a file has another width than follows from the rest of the model; both are of one configuration dataclass."""
    for entry in fields(given):
        source, found, expected = entry.metadata["declaration"].derived_from, getattr(given, entry.name), getattr(resolved, entry.name)
        if source and found != expected:
            raise ConversionError(f"{where}: {entry.name} is {found}, but {source} of the other files makes it {expected}")


def _same(tree: Json, where: str, name: str, default: int) -> int:
    """A number, or the same number for every level."""
    found = tree.get(name, default)
    values = set(found) if isinstance(found, list | tuple) else {found}
    if len(values) != 1:
        raise ConversionError(f"{where}: {name} is {found!r}, this project has one value for all levels")
    return values.pop()


def _per_level(value: Any, levels: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * levels


def _kinds(attends: tuple[bool, ...], kind: str) -> list[str]:
    return [f"{CROSS if attend else PLAIN}{kind}" for attend in attends]


def _groups(groups: int) -> dict[str, int]:
    return {} if groups == GROUPS else {"norm_num_groups": groups}


def _made(where: str, make: Any) -> Any:
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{where}: {error}") from None
