"""Sizes of a published policy: from the shapes of its tensors; what shapes do not determine, from its `args`, else the configuration.

`args` is the training configuration inside `dp-calvin`-style files, as nested dicts; its group `model` has the arguments of the published
policy class.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax

from vpp_jax.config import ConfigError, ModelConfig
from vpp_jax.interop.published_configs import require_derived
from vpp_jax.interop.report import ConversionError

FORMER, ACTION = "Video_Former.", "model.inner_model."
Tensors = Mapping[str, jax.ShapeDtypeStruct]


def policy_model(tensors: Tensors, args: Any, base: ModelConfig, where: str) -> tuple[ModelConfig, list[str]]:
    """`base` with the sizes of the policy in `tensors`, and notes on where `args` disagrees."""
    args = args if isinstance(args, dict) else {}
    given = args["model"] if isinstance(args.get("model"), dict) else args
    known = {name: given[key] for name, (key, kind) in ARGUMENTS.items() if type(given.get(key)) is kind}
    try:
        former = _former(tensors, known, base)
        action = _action(tensors, known, base, former.frames * former.tokens_per_frame)
    except (KeyError, IndexError, ValueError) as error:
        raise ConversionError(f"{where} does not look like a policy ({FORMER}* and {ACTION}*): {type(error).__name__} {error}") from None
    taps = base.tap_blocks
    if "tap" in known:
        taps = tuple(range(known["tap"] + 1)) if known.get("all_taps", False) else (known["tap"],)
    try:
        model = replace(
            base,
            former=former,
            action=action,
            frames=former.frames,
            tap_blocks=taps,
            n_action_steps=min(base.n_action_steps, action.action_horizon),
            position_encode=known.get("position_encode", base.position_encode),
            text_length=known.get("text_length", base.text_length),
            goal_length=max(base.goal_length, known.get("text_length", 0)),
            feature_schedule_steps=known.get("feature_schedule_steps", base.feature_schedule_steps),
        )
    except ConfigError as error:
        raise ConversionError(f"{where}: this policy does not fit the video model: {error}") from None
    require_derived(former, model.former, where)
    require_derived(action, model.action, where)
    notes = [
        f"args have {ARGUMENTS[name][0]} = {known[name]}, the tensors {value}"
        for name, value in _sizes(model).items()
        if known.get(name, value) not in (value, former.frames * value if name == "latents" else value)
    ]
    if base.position_encode != model.position_encode:
        notes.append(f"position_encode is {model.position_encode} as in args, not {base.position_encode}")
    return model, notes


def policy_arguments(model: ModelConfig) -> dict[str, Any]:
    """The `args` that `policy_model` reads, for a file that contains only tensors."""
    values = _sizes(model) | {
        "text_length": model.text_length,
        "position_encode": model.position_encode,
        "tap": max(model.tap_blocks),
        "all_taps": len(model.tap_blocks) > 1,
        "feature_schedule_steps": model.feature_schedule_steps,
        "action_heads": model.action.heads,
    }
    return {"model": {ARGUMENTS[name][0]: value for name, value in values.items()}}


def _sizes(model: ModelConfig) -> dict[str, Any]:
    """What the shapes of the tensors say, by the names of `ARGUMENTS`."""
    former, action = model.former, model.action
    return {
        "width": action.width,
        "action_dim": action.action_dim,
        "action_horizon": action.action_horizon,
        "depth": former.depth,
        "heads": former.heads,
        "dim_head": former.dim_head,
        "frames": former.frames,
        "latents": former.tokens_per_frame,
        "variant": former.variant,
    }


# Our name -> argument of the published class and its type. The heads of the diffusion policy are no argument there (always 8).
ARGUMENTS: dict[str, tuple[str, type]] = {
    "width": ("latent_dim", int),
    "action_dim": ("action_dim", int),
    "action_horizon": ("action_seq_len", int),
    "depth": ("Former_depth", int),
    "heads": ("Former_heads", int),
    "dim_head": ("Former_dim_head", int),
    "frames": ("Former_num_time_embeds", int),
    "latents": ("num_latents", int),
    "variant": ("use_Former", str),
    "text_length": ("max_length", int),
    "position_encode": ("use_position_encoding", bool),
    "tap": ("extract_layer_idx", int),
    "all_taps": ("use_all_layer", bool),
    "feature_schedule_steps": ("timestep", int),
    "action_heads": ("n_heads", int),
}


def _former(tensors: Tensors, known: Mapping[str, Any], base: ModelConfig):
    if f"{FORMER}latents" not in tensors:
        raise KeyError(f"{FORMER}latents")
    frames, tokens, dim = tensors[f"{FORMER}latents"].shape
    inner = tensors[f"{FORMER}layers.0.0.to_q.weight"].shape[0]
    heads = known.get("heads", base.former.heads)
    return replace(
        base.former,
        variant="3d" if f"{FORMER}layers.0.1.qkv.weight" in tensors else "2d",
        dim=dim,
        depth=_count(tensors, rf"{re.escape(FORMER)}layers\.(\d+)\..*"),
        heads=heads,
        dim_head=inner // heads,
        frames=frames,
        tokens_per_frame=tokens,
        condition_dim=tensors[f"{FORMER}goal_emb.0.weight"].shape[1],
    )


def _action(tensors: Tensors, known: Mapping[str, Any], base: ModelConfig, context: int):
    def shape(name: str) -> tuple[int, ...]:
        return tensors[ACTION + name].shape

    width, token_dim = shape("tok_emb.weight")
    # the unused table of positions has one row for the goal, one per token, one per action
    rows = shape("pos_emb")[1] - 1 - context if f"{ACTION}pos_emb" in tensors else 0
    return replace(
        base.action,
        action_dim=shape("action_emb.weight")[1],
        action_horizon=known.get("action_horizon", rows if rows > 0 else base.action.action_horizon),
        width=width,
        heads=known.get("action_heads", base.action.heads),
        token_dim=token_dim,
        goal_dim=shape("lang_emb.0.weight")[1],
        encoder_layers=_count(tensors, rf"{re.escape(ACTION)}encoder\.blocks\.(\d+)\..*"),
        decoder_layers=_count(tensors, rf"{re.escape(ACTION)}decoder\.blocks\.(\d+)\..*"),
        proprio_dim=shape("proprio_emb.0.weight")[1] if base.action.proprio_dim else 0,
    )


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max(int(match.group(1)) for match in map(re.compile(pattern).fullmatch, names) if match)
