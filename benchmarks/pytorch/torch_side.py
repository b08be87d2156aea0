"""PyTorch's side of `benchmarks/against_pytorch.py`: diffusers' and transformers' modules, and the PyTorch modules of this folder.

Cases as in `jax_side`. `act` does per call what the published code does: both text encoders, the VAE, the U-Net up to the last
tap, the Video Former, and ten denoising calls that run the policy's encoder each time. Its variant `tuned` encodes the instruction
before the call and runs the encoder once, as our side does.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from pytorch.policy import ActionTransformer, Denoiser
from pytorch.sizes import (
    POLICY_TRAINING,
    SCALING_FACTOR,
    VIDEO_TRAINING,
    Prepared,
    experiment,
    inputs,
    tensor,
    video_experiment,
)
from pytorch.video_former import VideoFormer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from vpp_jax.config import ExperimentConfig, ModelConfig


def unet(size: str, shared: dict[str, np.ndarray]) -> Prepared:
    config = experiment(size)
    module, given = make_unet(config.model, last_tap=max(config.model.tap_blocks)), tensors(inputs(config, "sample", "states"))
    ids = torch.tensor([[config.model.fps_id_features, config.model.motion_bucket, 0.0]])
    call = inference(lambda: taps(module, given["sample"], torch.tensor([1.6377701]), given["states"], ids))
    chosen, frames = config.model.tap_blocks, config.model.frames
    outputs = {f"tap {i}": tap.unflatten(0, (-1, frames)).numpy() for i, tap in enumerate(call()) if i in chosen}
    return Prepared({"": call}, outputs)


def vae(size: str, shared: dict[str, np.ndarray]) -> Prepared:
    config = experiment(size)
    module, images = make_vae(config.model), tensors(inputs(config, "images"))["images"]
    call = inference(lambda: encode_images(module, images))
    return Prepared({"": call}, {"latents": call().numpy()})


def former(size: str, shared: dict[str, np.ndarray]) -> Prepared:
    config = experiment(size)
    module, features = make_former(config.model), tensors(inputs(config, "features"))["features"]
    call = inference(lambda: module(features))
    return Prepared({"": call}, {"tokens": call().numpy()})


def act(size: str, shared: dict[str, np.ndarray]) -> Prepared:
    config = experiment(size)
    model, given = config.model, tensors(inputs(config, "images", "video_ids", "video_mask", "goal_ids", "goal_mask") | shared)
    video_text, goal_text, image_encoder = make_text(model, "text"), make_text(model, "goal_text_encoder"), make_vae(model)
    video_model, video_former, policy = make_unet(model, max(model.tap_blocks)), make_former(model), make_policy(model)
    views = len(model.views)
    ids = torch.tensor([[model.fps_id_features, model.motion_bucket, 0.0]]).expand(views, -1)
    level = torch.full((views,), 0.25 * float(np.log(model.feature_sigma)))

    def read() -> tuple[Tensor, Tensor]:
        """The U-Net's text states, one row per view, and the goal vector."""
        ids, mask = (given[name].expand(views, -1) for name in ("video_ids", "video_mask"))
        states = video_text(ids, attention_mask=mask).last_hidden_state
        return torch.cat([states, states], dim=-1), goal_text(given["goal_ids"], attention_mask=given["goal_mask"]).text_embeds

    def chunk(states: Tensor, goal: Tensor, encode_once: bool) -> Tensor:
        condition = encode_images(image_encoder, given["images"])
        sample = torch.cat([given["feature_noise"], condition[:, None].expand(-1, model.frames, -1, -1, -1)], dim=2)
        tapped = taps(video_model, sample, level, states, ids)
        size = tapped[-1].shape[-1]
        large = [functional.interpolate(tapped[i], size=(size, size), mode="nearest") for i in model.tap_blocks]
        features = torch.cat(large, dim=1).flatten(2).transpose(1, 2).unflatten(0, (views, model.frames))  # [v t n c]
        tokens = video_former(features.transpose(0, 1).flatten(1, 2)[None])
        return policy.sample_actions(given["start"], given["sigmas"], tokens, goal, encode_once=encode_once)

    once = inference(read)()
    published = inference(lambda: chunk(*read(), encode_once=False))
    tuned = inference(lambda: chunk(*once, encode_once=True))
    return Prepared({"as published": published, "tuned": tuned}, {"actions": published().numpy()})


def train_policy(size: str, shared: dict[str, np.ndarray]) -> Prepared:
    config = experiment(size)
    given, rows = tensors(inputs(config, *POLICY_TRAINING)), config.data.batch_size
    video_former, policy, goal_text = make_former(config.model), make_policy(config.model), make_text(config.model, "goal_text_encoder")
    ids, mask = given["goal_ids"].expand(rows, -1), given["goal_mask"].expand(rows, -1)
    density = config.policy_diffusion.density
    low, high = (torch.sigmoid((torch.tensor(s).log() - density.loc) / density.scale) for s in (density.sigma_min, density.sigma_max))

    def loss(sigma: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            goal = goal_text(ids, attention_mask=mask).text_embeds
        return policy.loss(given["actions"], noise, sigma, video_former(given["batch_features"]), goal)

    named = [*video_former.named_parameters("video_former"), *policy.inner_model.named_parameters("action_transformer")]
    outputs = loss_and_gradients(loss(given["action_sigma"], given["action_noise"]), named)
    policy.train()
    video_former.train()
    optimizer = adamw(config, named)

    def step() -> None:
        share = low + (high - low) * torch.rand(rows)
        sigma = torch.exp(density.scale * torch.logit(share) + density.loc)
        optimizer.zero_grad()
        loss(sigma, torch.randn_like(given["actions"])).backward()
        optimizer.step()

    return Prepared({"": step}, outputs)


def train_video(size: str, shared: dict[str, np.ndarray]) -> Prepared:
    config = video_experiment(size)
    module, given = make_unet(config.model), tensors(inputs(config, *VIDEO_TRAINING))
    latents, states = given["latents"], given["states"]
    condition = (latents[:, :1] / SCALING_FACTOR).expand_as(latents)
    ids = torch.tensor([[config.model.fps_id_train, config.model.motion_bucket, 0.0]])

    def loss(sigma: Tensor, noise: Tensor) -> Tensor:
        """Error of the denoised latents, weighted by (σ² + 1)/σ²."""
        wide = sigma[:, None, None, None, None]
        noisy, total = latents + wide * noise, wide**2 + 1
        output = module(torch.cat([noisy / total.sqrt(), condition], dim=2), sigma.log() / 4, states, ids).sample
        denoised = noisy / total - wide / total.sqrt() * output
        return ((denoised - latents) ** 2 * total / wide**2).mean()

    named = list(module.named_parameters("unet"))
    outputs = loss_and_gradients(loss(given["latent_sigma"], given["latent_noise"]), named)
    outputs = {name: np.asarray(value if name == "loss" else np.linalg.norm(value)) for name, value in outputs.items()}
    module.train()
    optimizer = adamw(config, named)

    def step() -> None:
        optimizer.zero_grad()
        loss(torch.exp(0.7 + 1.6 * torch.randn(1)), torch.randn_like(latents)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.grad_clip)
        optimizer.step()

    return Prepared({"": step}, outputs)


# --- the modules ----------------------------------------------------------------------------------------------------------------------


def make_unet(model: ModelConfig, last_tap: int | None = None) -> UNetSpatioTemporalConditionModel:
    """With `last_tap`, the blocks that no tap needs are thrown away before they take memory."""
    unet, attends = model.unet, model.unet.attention_levels
    with torch.device("meta"):
        module = UNetSpatioTemporalConditionModel(
            in_channels=unet.in_channels,
            out_channels=unet.out_channels,
            block_out_channels=unet.block_out_channels,
            down_block_types=tuple("CrossAttnDownBlockSpatioTemporal" if a else "DownBlockSpatioTemporal" for a in attends),
            up_block_types=tuple("CrossAttnUpBlockSpatioTemporal" if a else "UpBlockSpatioTemporal" for a in attends[::-1]),
            layers_per_block=unet.layers_per_block,
            num_attention_heads=unet.attention_heads,
            cross_attention_dim=unet.cross_attention_dim,
            addition_time_embed_dim=unet.addition_time_embed_dim,
            num_frames=model.frames,
            projection_class_embeddings_input_dim=3 * unet.addition_time_embed_dim,
        )
    if last_tap is not None:
        module.up_blocks = module.up_blocks[: last_tap + 1]
        del module.conv_norm_out, module.conv_out
    return filled(module.to_empty(device="cpu"), "unet")


def make_vae(model: ModelConfig) -> AutoencoderKLTemporalDecoder:
    """Without its decoder, which acting never runs."""
    vae = model.vae
    with torch.device("meta"):
        module = AutoencoderKLTemporalDecoder(
            block_out_channels=vae.block_out_channels,
            down_block_types=("DownEncoderBlock2D",) * len(vae.block_out_channels),
            layers_per_block=vae.layers_per_block,
            latent_channels=vae.latent_channels,
        )
    del module.decoder
    return filled(module.to_empty(device="cpu"), "vae")


def make_text(model: ModelConfig, group: str) -> CLIPTextModelWithProjection:
    text = model.text
    config = CLIPTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        intermediate_size=text.mlp_width,
        projection_dim=text.projection_dim,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=text.max_positions,
        hidden_act="quick_gelu",
        bos_token_id=text.end_of_text - 1,
        eos_token_id=text.end_of_text,
        pad_token_id=text.end_of_text,
    )
    return filled(CLIPTextModelWithProjection(config), group)


def make_former(model: ModelConfig) -> VideoFormer:
    former = model.former
    shape = {name: getattr(former, name) for name in ("dim", "depth", "heads", "dim_head", "frames", "tokens_per_frame", "condition_dim")}
    return filled(VideoFormer(**shape), "video_former")


def make_policy(model: ModelConfig) -> Denoiser:
    names = ("action_dim", "width", "heads", "encoder_layers", "decoder_layers", "goal_dim", "token_dim", "causal_cross_attention")
    rates = ("attention_dropout", "residual_dropout", "mlp_dropout")
    return Denoiser(filled(ActionTransformer(**{name: getattr(model.action, name) for name in names + rates}), "action_transformer")).eval()


def filled(module: nn.Module, group: str) -> nn.Module:
    """The same weights as on the other side, in evaluation mode."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(tensor(f"{group}/{name}", tuple(parameter.shape))))
    return module.eval()


def taps(unet: UNetSpatioTemporalConditionModel, sample: Tensor, level: Tensor, states: Tensor, ids: Tensor) -> list[Tensor]:
    """The U-Net's forward pass up to its last up block; the output of every up block [b·t c h w]. `sample` [b t c h w]."""
    frames = sample.shape[1]
    time = unet.time_embedding(unet.time_proj(level))
    time = time + unet.add_embedding(unet.add_time_proj(ids.flatten()).unflatten(0, (len(ids), -1)).flatten(1))
    shared = {"temb": time.repeat_interleave(frames, 0), "image_only_indicator": torch.zeros(sample.shape[:2])}
    text = {"encoder_hidden_states": states.repeat_interleave(frames, 0)}

    x = unet.conv_in(sample.flatten(0, 1))
    skips = (x,)
    for block in unet.down_blocks:
        x, more = block(hidden_states=x, **shared, **(text if getattr(block, "has_cross_attention", False) else {}))
        skips += more
    x = unet.mid_block(hidden_states=x, **shared, **text)
    outputs = []
    for block in unet.up_blocks:
        count = len(block.resnets)
        used, skips = skips[-count:], skips[:-count]
        x = block(hidden_states=x, res_hidden_states_tuple=used, **shared, **(text if getattr(block, "has_cross_attention", False) else {}))
        outputs.append(x)
    return outputs


def encode_images(vae: AutoencoderKLTemporalDecoder, images: Tensor) -> Tensor:
    """uint8 [n 3 h w] -> the posterior's mode."""
    return vae.encode(images.float() / 127.5 - 1).latent_dist.mode()


# --- measuring ------------------------------------------------------------------------------------------------------------------------


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def inference(function: Callable[[], Any]) -> Callable[[], Any]:
    return torch.inference_mode()(function)


def adamw(config: ExperimentConfig, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
    o = config.optimizer
    return torch.optim.AdamW([p for _, p in named], lr=o.learning_rate, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True)


def loss_and_gradients(loss: Tensor, named: list[tuple[str, nn.Parameter]]) -> dict[str, np.ndarray]:
    loss.backward()
    gradients = {name.replace(".", "/", 1): parameter.grad.numpy().copy() for name, parameter in named if parameter.grad is not None}
    return {"loss": loss.detach().numpy()} | gradients


CASES = {"unet": unet, "vae": vae, "former": former, "act": act, "train_policy": train_policy, "train_video": train_video}
