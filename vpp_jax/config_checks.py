"""How a tree of plain values becomes frozen dataclasses, and which values are refused.

Strict on purpose: a bool is not an int, a misspelt name is an error that offers the nearest valid one, and rules that span several
fields are checked before anything is built.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vpp_jax.common.errors import VppError, nearest


class ConfigError(VppError, ValueError):
    """A configuration that cannot be used."""


# --- building ---------------------------------------------------------------------------------------------------------------------


def build(kind: type, tree: Any, path: str = "") -> Any:
    """A dataclass of type `kind` from a mapping; `path` is its dotted name, for errors.

    A `kind` whose fields have changed says in `from_earlier` what earlier versions wrote.
    """
    where = path or "the configuration"
    if not isinstance(tree, Mapping | ConfigDict):
        raise ConfigError(f"{where} is {_show(tree)}, expected a group of fields: {', '.join(_field_types(kind))}")
    if hasattr(kind, "from_earlier"):
        tree = kind.from_earlier(tree)
    known = _field_types(kind)
    for name in tree:
        if name not in known:
            raise ConfigError(unknown_name(f"{path}.{name}" if path else str(name), kind, str(name)))
    values = {name: _convert(known[name], tree[name], f"{path}.{name}" if path else name) for name in tree}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path and not str(error).startswith(path) else str(error)) from None
    except ValueError as error:  # the dataclasses of models, diffusion and data raise their own
        raise ConfigError(f"{where}: {error}" if path and not str(error).startswith(path) else str(error)) from None


def unknown_name(full_name: str, kind: type, name: str) -> str:
    """Message for a field `name` that dataclass `kind` does not have."""
    hint = nearest(name, _field_types(kind))
    return f"unknown configuration key '{full_name}'{hint or '.'} Valid here: {', '.join(sorted(_field_types(kind)))}"


def resolve_path(kind: type, dotted: str) -> None:
    """Checks that `dotted`, e.g. 'data.datasets[0].path', names a field below dataclass `kind`; ConfigError otherwise."""
    seen = ""
    for part in dotted.split("."):
        name, _, index = part.partition("[")
        full = f"{seen}.{name}" if seen else name
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"unknown configuration key '{dotted}': '{seen}' is a single value, it has no fields")
        types_here = _field_types(kind)
        if name not in types_here:
            raise ConfigError(unknown_name(full, kind, name))
        kind = types_here[name]
        if index:
            if typing.get_origin(kind) is not tuple:
                raise ConfigError(f"configuration key '{full}' is not a sequence, so '{part}' does not exist")
            kind = typing.get_args(kind)[0]
        seen = full


def optional_fields(kind: type, path: str = "") -> list[tuple[str, type]]:
    """(dotted name, type) of every field below dataclass `kind` that may be None."""
    found = []
    for name, expected in _field_types(kind).items():
        if dataclasses.is_dataclass(expected):
            found += optional_fields(expected, f"{path}{name}.")
        elif type(None) in typing.get_args(expected):
            found.append((path + name, _without_none(expected)))
    return found


def _without_none(kind: Any) -> Any:
    return next(option for option in typing.get_args(kind) if option is not type(None))


def _field_types(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}


def _convert(expected: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(expected):
        return build(expected, value, path)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {_show(value)}, expected a sequence of {_name(arguments[0])}")
        return tuple(_convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(_without_none(expected), value, path)
    if expected is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise ConfigError(f"{path} is {value}, expected a finite number")
        return float(value)
    if type(value) is not expected:
        raise ConfigError(f"{path} is {_show(value)}, expected {_name(expected)}")
    return value


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


# --- ranges -----------------------------------------------------------------------------------------------------------------------


def at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f"{name} is {getattr(config, name)}, expected at least {least}")


def within(config: Any, name: str, low: float, high: float, open_low: bool = False) -> None:
    value = getattr(config, name)
    if not (low < value if open_low else low <= value) or not value <= high:
        least = f"{'more than' if open_low else 'at least'} {low:g}"
        raise ConfigError(f"{name} is {value}, expected {least}" + (f" and at most {high:g}" if math.isfinite(high) else ""))


def one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in allowed:
        raise ConfigError(f"{name} is '{value}', expected one of {', '.join(allowed)}{nearest(value, allowed)}")


# --- fields that must agree -------------------------------------------------------------------------------------------------------


def check_experiment(config: Any) -> None:
    """Rules between the groups of an ExperimentConfig."""
    model, data = config.model, config.data
    unet, vae, action = model.unet, model.vae, model.action
    _equal("model.unet.in_channels", unet.in_channels, "2 x model.vae.latent_channels", 2 * vae.latent_channels)
    _equal("model.unet.out_channels", unet.out_channels, "model.vae.latent_channels", vae.latent_channels)
    _equal("model.unet.cross_attention_dim", unet.cross_attention_dim, "2 x model.text.width", 2 * model.text.width)
    if config.stage != "vae":  # the VAE learns from clips of any length
        _equal("data.clip_frames", data.clip_frames, "model.frames", model.frames)
    multiple = vae.downscale * 2 ** (len(unet.block_out_channels) - 1)
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
    if config.lora.rank and config.stage != "video":
        raise ConfigError(f"lora.rank is {config.lora.rank} in stage {config.stage}: adapters are for the U-Net of stage video")
    if config.stage == "policy":
        _check_policy(model, data, unet, action)


def _check_policy(model: Any, data: Any, unet: Any, action: Any) -> None:
    if not model.views:
        raise ConfigError("model.views is empty: a policy needs at least one camera, e.g. ('primary', 'wrist')")
    if len(set(model.views)) != len(model.views):
        raise ConfigError(f"model.views is {model.views}: each view may stand there once")
    levels = len(unet.block_out_channels)
    if max(model.tap_blocks) >= levels or min(model.tap_blocks) < 0:
        raise ConfigError(f"model.tap_blocks is {model.tap_blocks}, but the U-Net has up blocks 0 to {levels - 1}")
    channels = sum(unet.block_out_channels[levels - 1 - block] for block in model.tap_blocks)
    _equal("model.former.condition_dim", model.former.condition_dim, f"the channels of tap_blocks {model.tap_blocks}", channels)
    _equal("model.former.frames", model.former.frames, "model.frames", model.frames)
    _equal("model.action.token_dim", action.token_dim, "model.former.dim", model.former.dim)
    _equal("model.action.goal_dim", action.goal_dim, "model.text.projection_dim", model.text.projection_dim)
    _equal("data.action_horizon", data.action_horizon, "model.action.action_horizon", action.action_horizon)
    if model.n_action_steps > action.action_horizon:
        raise ConfigError(
            f"model.n_action_steps is {model.n_action_steps}, more than model.action.action_horizon = {action.action_horizon}"
        )


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
    if config.stage == "policy" and not config.init.video:
        raise ConfigError(
            "stage policy needs a trained video model: set init.video to the work directory of stage video (--config.init.video=DIR)"
        )


def _equal(name: str, value: int, other: str, expected: int) -> None:
    if value != expected:
        raise ConfigError(f"{name} is {value}, but {other} is {expected}; they must be equal")
