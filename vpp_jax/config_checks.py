"""Rules between the groups of an experiment's configuration, and what a run needs from outside."""

import math
from typing import Any

from vpp_jax.common.errors import ConfigError, nearest


def check_experiment(config: Any) -> None:
    """Rules between the groups of an ExperimentConfig."""
    model, data = config.model, config.data
    multiple = model.vae.downscale * 2 ** (len(model.unet.block_out_channels) - 1)
    if model.image_size % multiple:
        raise ConfigError(
            f"model.image_size is {model.image_size}, expected a multiple of {multiple} (VAE and U-Net halve it "
            f"{int(math.log2(multiple))} times)"
        )
    for name in ("text_length", "goal_length"):
        if getattr(model, name) > model.text.max_positions:
            positions = model.text.max_positions
            raise ConfigError(f"model.{name} is {getattr(model, name)}, more than model.text.max_positions = {positions}")
    if data.batch_size % config.train.grad_accum_steps:
        raise ConfigError(
            f"train.grad_accum_steps is {config.train.grad_accum_steps}, which does not divide data.batch_size = {data.batch_size}"
        )
    if config.video_diffusion.condition_noise and any(entry.latents for entry in data.datasets):
        raise ConfigError(
            "video_diffusion.condition_noise is added to images, but data.datasets are read as latents: leave it empty, or read images"
        )
    if config.lora.rank and config.stage != "video":
        raise ConfigError(f"lora.rank is {config.lora.rank} in stage {config.stage}: adapters are for the U-Net of stage video")
    _check_evaluators(config)
    if config.stage == "policy":
        _check_policy(model)
        if data.empty_instructions == "keep":
            raise ConfigError("data.empty_instructions is keep, but a policy follows instructions: set it to filter")
        _check_robots(data)


def _check_evaluators(config: Any) -> None:
    names = [entry.name for entry in config.data.datasets]
    for number, entry in enumerate(config.train.evaluators):
        where = f"train.evaluators[{number}]"
        if entry.dataset and entry.dataset not in names and not config.data.mixture:  # whose members are known once it is expanded
            raise ConfigError(
                f"{where}.dataset is '{entry.dataset}', which is not one of data.datasets ({', '.join(names) or 'none'})"
                + nearest(entry.dataset, names)
            )
        if entry.kind == "action_mse" and config.stage != "policy":
            raise ConfigError(f"{where}.kind is action_mse, but stage {config.stage} predicts no actions")
        if entry in config.train.evaluators[:number]:
            raise ConfigError(f"{where} is the same as an earlier one")
    if config.train.keep_best and not (config.train.eval_every or any(entry.every for entry in config.train.evaluators)):
        raise ConfigError(f"train.keep_best is '{config.train.keep_best}', but nothing is evaluated: set train.eval_every")


def _check_robots(data: Any) -> None:
    names = [entry.name for entry in data.datasets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"data.datasets has {', '.join(twice)} more than once: a policy knows its robots by name. Give each entry a name of its own, "
            "and say in `robot` which row or file describes it"
        )


def _check_policy(model: Any) -> None:
    if not model.views:
        raise ConfigError("model.views is empty: a policy needs at least one camera, e.g. ('primary', 'wrist')")
    if len(set(model.views)) != len(model.views):
        raise ConfigError(f"model.views is {model.views}: each view may stand there once")
    horizon = model.action.action_horizon
    if model.n_action_steps > horizon:
        raise ConfigError(f"model.n_action_steps is {model.n_action_steps}, more than model.action.action_horizon = {horizon}")


def check_inputs(config: Any) -> None:
    """What a training run needs from outside: data, and the checkpoints of the stages before it."""
    if not config.data.datasets or not all(entry.path for entry in config.data.datasets):
        raise ConfigError(
            "data.datasets names no dataset directory; set it in the configuration file or with --config.data.datasets[0].path=DIR"
        )
    if config.stage == "video" and not config.init.vae:
        raise ConfigError("stage video needs a trained VAE: set init.vae to the work directory of stage vae (--config.init.vae=DIR)")
    if config.lora.rank and not config.init.video:
        raise ConfigError(
            "lora.rank is set, but there is no model to adapt: set init.video to the work directory of a stage video "
            "(--config.init.video=DIR)"
        )
    if config.stage == "policy" and not (config.init.video or config.init.policy):
        raise ConfigError(
            "stage policy needs a trained video model: set init.video to the work directory of stage video (--config.init.video=DIR), or "
            "init.policy to that of a policy to start from"
        )
