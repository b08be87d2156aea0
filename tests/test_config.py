"""Configurations: defaults agree, files round-trip, and every mistake is named."""

import dataclasses
import importlib

import pytest
from ml_collections import ConfigDict

from vpp_jax.config import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    check_inputs,
    config_diff,
    config_hash,
    default_config,
    flatten_dict,
    from_config_dict,
    from_json,
    to_dict,
    to_json,
)


def changed(**fields) -> ConfigDict:
    """The default configuration with dotted fields replaced ('__' for '.')."""
    config = default_config()
    for name, value in fields.items():
        group, _, last = name.replace("__", ".").rpartition(".")
        (config[group] if group else config).update({last: value})
    return config


def test_default_config_is_the_default_experiment_and_round_trips():
    assert from_config_dict(default_config()) == ExperimentConfig()
    config = from_config_dict(changed(stage="video", data__datasets=({"path": "a", "views": ["x"]},), model__unet__last_tap=1))
    assert config.data.datasets[0].views == ("x",)
    assert config.model.unet.last_tap == 1
    assert from_json(to_json(config)) == config
    assert from_config_dict(to_dict(config)) == config


def test_every_field_of_every_group_is_in_the_config_dict():
    assert flatten_dict(default_config().to_dict()).keys() == flatten_dict(dataclasses.asdict(ExperimentConfig())).keys()


def test_hash_changes_with_every_field_and_only_then():
    base = ExperimentConfig()
    assert config_hash(base) == config_hash(from_json(to_json(base)))
    others = [dataclasses.replace(base, seed=1), dataclasses.replace(base, train=TrainConfig(steps=7))]
    assert len({config_hash(config) for config in [base, *others]}) == 3
    assert config_hash(base.data) == config_hash(DataConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__stps": 3}, r"unknown configuration key 'train\.stps', did you mean 'steps'\?"),
        ({"model__unet__norm_group": 3}, r"'model\.unet\.norm_group', did you mean 'norm_groups'\?"),
        ({"train__steps": "many"}, r"train\.steps is 'many' \(str\), expected a whole number"),
        ({"train__steps": True}, r"train\.steps is True \(bool\), expected a whole number"),
        ({"train__wandb": 1}, r"train\.wandb is 1 \(int\), expected true or false"),
        ({"train__steps": 1.0}, r"train\.steps is 1\.0 \(float\)"),
        ({"optimizer__learning_rate": float("nan")}, r"optimizer\.learning_rate is nan, expected a finite number"),
        ({"model__views": "primary"}, r"model\.views is 'primary' \(str\), expected a sequence of a text"),
        ({"model__tap_blocks": (0, "1")}, r"model\.tap_blocks\[1\] is '1'"),
        ({"model__vae": 3}, r"model\.vae is 3 \(int\), expected a group of fields"),
        ({"data__datasets": ({"pth": "a"},)}, r"'data\.datasets\[0\]\.pth', did you mean 'path'\?"),
        ({"data__datasets": ({"path": "a", "weight": 0},)}, r"weight is 0"),
        ({"train__steps": 0}, r"train: steps is 0, expected at least 1"),
        ({"train__ema_decay": 1.0}, r"train: ema_decay is 1\.0, expected a number in \[0, 1\)"),
        ({"video_diffusion__conditioning_dropout": 1.5}, r"conditioning_dropout is 1\.5, expected at least 0 and at most 1"),
        ({"video_diffusion__density__kind": "normal"}, r"video_diffusion\.density: sigma density kind 'normal' is unknown"),
        ({"model__unet__norm_groups": 7}, r"model\.unet: norm_groups 7 does not divide"),
        ({"optimizer__schedule": "cosin"}, r"schedule is 'cosin', expected one of constant, cosine, tri_stage, did you mean 'cosine'\?"),
        ({"optimizer__warmup_ratio": 0.7, "optimizer__hold_ratio": 0.7}, r"add up to more than the whole run"),
        ({"optimizer__trainable": ()}, r"nothing would be trained"),
        ({"stage": "vdeo"}, r"stage is 'vdeo', expected one of vae, video, policy, did you mean 'video'\?"),
        ({"mesh__data": 0}, r"mesh is data=0"),
        ({"model__image_size": 100}, r"model\.image_size is 100, expected a multiple of 64"),
        ({"model__text__width": 256}, r"model\.unet\.cross_attention_dim is 1024, but 2 x model\.text\.width is 512"),
        ({"model__text_length": 90, "model__goal_length": 90}, r"model\.text_length is 90, more than"),
        ({"model__goal_length": 90}, r"model\.goal_length is 90, more than"),
        ({"model__goal_length": 10}, r"goal_length is 10, expected at least 20"),
        ({"stage": "video", "data__clip_frames": 8}, r"data\.clip_frames is 8, but model\.frames is 16"),
        ({"stage": "policy", "model__views": ()}, r"model\.views is empty"),
        ({"stage": "policy", "model__views": ("a", "a")}, r"each view may stand there once"),
        (
            {"stage": "policy", "model__n_action_steps": 11},
            r"model\.n_action_steps is 11, more than model\.action\.action_horizon = 10",
        ),
        ({"stage": "policy", "data__action_horizon": 4}, r"data\.action_horizon is 4, but model\.action\.action_horizon is 10"),
        ({"stage": "policy", "model__tap_blocks": (0, 4)}, r"the U-Net has up blocks 0 to 3"),
        ({"stage": "policy", "model__tap_blocks": (1, 2)}, r"condition_dim is 2560, but the channels of tap_blocks \(1, 2\) is 1920"),
        ({"model__tap_blocks": (1, 0)}, r"ascending and each once"),
    ],
)
def test_mistakes_are_named(fields, message):
    tree = default_config().to_dict()
    for name, value in fields.items():
        *groups, last = name.split("__")
        place = tree
        for group in groups:
            place = place[group]
        place[last] = value
    with pytest.raises(ConfigError, match=message):
        from_config_dict(tree)


def test_whole_numbers_are_accepted_for_numbers_and_lists_for_tuples():
    config = from_config_dict({"optimizer": {"learning_rate": 1, "betas": [0, 0.5]}})
    assert config.optimizer == OptimizerConfig(learning_rate=1.0, betas=(0.0, 0.5))
    assert type(config.optimizer.learning_rate) is float


def test_what_a_stage_needs_from_outside():
    config = from_config_dict(changed(stage="video"))
    with pytest.raises(ConfigError, match=r"--config\.data\.datasets\[0\]\.path=DIR"):
        check_inputs(config)
    config = from_config_dict(changed(stage="video", data__datasets=({"path": "a"},)))
    with pytest.raises(ConfigError, match=r"--config\.init\.vae=DIR"):
        check_inputs(config)
    config = from_config_dict(changed(stage="policy", data__datasets=({"path": "a"},)))
    with pytest.raises(ConfigError, match=r"--config\.init\.video=DIR"):
        check_inputs(config)
    check_inputs(from_config_dict(changed(data__datasets=({"path": "a"},))))


def test_differences_leave_out_what_does_not_change_a_run():
    old = ExperimentConfig()
    new = dataclasses.replace(old, seed=4, train=TrainConfig(steps=5, max_to_keep=9, ema_decay=0.5), mesh=MeshConfig(fsdp=4, data=2))
    assert config_diff(old, new) == {"seed": (0, 4), "train.ema_decay": (0.999, 0.5)}


def test_the_unet_of_a_policy_stops_at_its_last_tap():
    model = ModelConfig()
    assert model.unet_up_to(1) == dataclasses.replace(model.unet, last_tap=1)
    assert model.unet_up_to(None) is model.unet


def test_the_configuration_files_are_valid(project):
    files = sorted(path.stem for path in (project / "configs").glob("[!_]*_*.py"))
    assert files
    for name in files:
        module = importlib.import_module(f"configs.{name}")
        config = from_config_dict(module.get_config())
        assert from_json(to_json(config)) == config
        assert "vpp train" in module.__doc__, f"configs/{name}.py does not say its command"


@pytest.mark.parametrize(("earlier", "now"), [(True, "blocks"), (False, "none")])
def test_checkpoints_from_when_remat_was_a_bool_are_read(earlier, now):
    assert from_config_dict({"model": {"unet": {"remat": earlier}}}).model.unet.remat == now
