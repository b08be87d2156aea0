"""Configurations: defaults agree, files round-trip, and every mistake is named."""

import dataclasses
import importlib

import pytest
from ml_collections import ConfigDict

from data_pipelines.builders.calvin_recorded import CalvinRecordedRecipe
from data_pipelines.config import DatasetConfig
from data_pipelines.openx.registry import REGISTRY
from vpp_jax.cli.config_help import PAGE, reference_page
from vpp_jax.common.config_fields import ANNOUNCED, FIXED, FREE, settings
from vpp_jax.common.json_values import flatten_dict
from vpp_jax.config import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    InitConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    VideoDiffusionConfig,
    check_inputs,
    config_diff,
    config_hash,
    default_config,
    from_config_dict,
    from_json,
    on_resume,
    to_config_dict,
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
    config = from_config_dict(changed(stage="video", data__datasets=({"path": "a", "views": ["x"]},)))
    assert config.data.datasets[0].views == ("x",)
    assert from_json(to_json(config)) == config
    assert from_config_dict(to_dict(config)) == config


def test_every_field_of_every_group_is_in_the_config_dict():
    names = {entry.name for entry in settings(ExperimentConfig()) if "[" not in entry.name}
    assert flatten_dict(default_config().to_dict()).keys() == names


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
        ({"train__steps": "many"}, r"train\.steps is 'many' \(str\), expected int"),
        ({"train__steps": True}, r"train\.steps is True \(bool\), expected int"),
        ({"train__wandb": 1}, r"train\.wandb is 1 \(int\), expected bool"),
        ({"train__steps": 1.0}, r"train\.steps is 1\.0 \(float\)"),
        ({"optimizer__learning_rate": float("nan")}, r"optimizer\.learning_rate is nan, expected a finite number"),
        ({"model__views": "primary"}, r"model\.views is 'primary' \(str\), expected sequence of str"),
        ({"model__tap_blocks": (0, "1")}, r"model\.tap_blocks\[1\] is '1'"),
        ({"model__vae": 3}, r"model\.vae is 3 \(int\), expected a group of fields"),
        ({"data__datasets": ({"pth": "a"},)}, r"'data\.datasets\[0\]\.pth', did you mean 'path'\?"),
        ({"data__datasets": ({"path": "a", "weight": 0},)}, r"data\.datasets\[0\]\.weight is 0\.0, expected more than 0"),
        ({"train__steps": 0}, r"train\.steps is 0, expected at least 1"),
        ({"train__ema_decay": 1.0}, r"train\.ema_decay is 1\.0, expected at least 0 and less than 1"),
        ({"video_diffusion__conditioning_dropout": 1.5}, r"conditioning_dropout is 1\.5, expected at least 0 and at most 1"),
        (
            {"video_diffusion__density__kind": "normal"},
            r"video_diffusion\.density\.kind is 'normal', expected one of lognormal.*, did you mean 'lognormal'",
        ),
        ({"model__unet__norm_groups": 7}, r"model\.unet: norm_groups 7 does not divide"),
        (
            {"optimizer__schedule": "cosin"},
            r"schedule is 'cosin', expected one of constant, cosine, .*, did you mean 'cosine'\?",
        ),
        ({"optimizer__warmup_ratio": 0.7, "optimizer__hold_ratio": 0.7}, r"add up to more than the whole run"),
        ({"optimizer__trainable": ()}, r"nothing would be trained"),
        ({"stage": "vdeo"}, r"stage is 'vdeo', expected one of vae, video, policy, did you mean 'video'\?"),
        ({"mesh__data": 0}, r"mesh is data=0"),
        ({"model__image_size": 100}, r"model\.image_size is 100, expected a multiple of 64"),
        ({"model__unet__in_channels": 8}, r"model\.unet\.in_channels cannot be set: it follows from model\.vae\.latent_channels"),
        ({"model__former__condition_dim": 1}, r"it follows from model\.tap_blocks and model\.unet\.block_out_channels\. Set that"),
        ({"model__text_length": 90, "model__goal_length": 90}, r"model\.text_length is 90, more than"),
        ({"model__goal_length": 90}, r"model\.goal_length is 90, more than"),
        ({"model__goal_length": 10}, r"goal_length is 10, expected at least text_length = 20"),
        (
            {"data__clip_frames": 8},
            r"data\.clip_frames cannot be set: it follows from model\.frames \(stage vae: vae_training\.clip_frames\)",
        ),
        ({"stage": "policy", "model__views": ()}, r"model\.views is empty"),
        ({"stage": "policy", "model__views": ("a", "a")}, r"each view may stand there once"),
        (
            {"stage": "policy", "model__n_action_steps": 11},
            r"model\.n_action_steps is 11, more than model\.action\.action_horizon = 10",
        ),
        ({"data__action_horizon": 4}, r"data\.action_horizon cannot be set: it follows from model\.action\.action_horizon"),
        ({"model__tap_blocks": (0, 4)}, r"the U-Net has up blocks 0 to 3"),
        ({"model__tap_blocks": (1, 0)}, r"ascending and each once"),
    ],
)
def test_mistakes_are_named(fields, message):
    tree = default_config().to_dict()
    for name, value in fields.items():
        *groups_above, last = name.split("__")
        place = tree
        for above in groups_above:
            place = place[above]
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


def test_what_changed_and_what_it_may_do_on_resume():
    old = ExperimentConfig()
    new = dataclasses.replace(old, seed=4, train=TrainConfig(steps=5, max_to_keep=9), mesh=MeshConfig(data=2))
    changed = config_diff(old, new)
    assert changed == {"seed": (0, 4), "train.steps": (100_000, 5), "train.max_to_keep": (2, 9), "mesh.data": (-1, 2)}
    assert {name: on_resume(name) for name in changed} == {
        "seed": FIXED,
        "train.steps": ANNOUNCED,
        "train.max_to_keep": FREE,
        "mesh.data": ANNOUNCED,
    }


def test_what_a_run_may_change_of_its_datasets_and_its_learning_rate():
    """Moved files and more tolerant reading continue a run, another dataset is another one. The past decides about the learning rate."""
    data = DataConfig(datasets=(DatasetConfig("here", "calvin"),), on_bad_record="fail")
    old = ExperimentConfig(data=data)
    moved = dataclasses.replace(data, datasets=(DatasetConfig("there", "bridge_dataset"),), on_bad_record="skip", read_attempts=9)
    new = dataclasses.replace(old, data=moved, init=InitConfig(vae="elsewhere"), optimizer=OptimizerConfig(schedule="cosine"))
    assert {name: on_resume(name) for name in config_diff(old, new)} == {
        "data.datasets[0].path": ANNOUNCED,
        "data.datasets[0].name": FIXED,
        "data.on_bad_record": ANNOUNCED,
        "data.read_attempts": FREE,
        "init.vae": ANNOUNCED,
        "optimizer.schedule": ANNOUNCED,
    }
    another = dataclasses.replace(old, data=DataConfig(datasets=(*data.datasets, DatasetConfig("b"))))
    assert config_diff(old, another) == {"data.datasets": (1, 2)}
    assert on_resume("data.datasets") is FIXED


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        ({"dataset": "calvn"}, r"dataset is 'calvn', which is not one of data\.datasets \(calvin\), did you mean 'calvin'"),
        ({"kind": "action_mse"}, "stage vae predicts no actions"),
        ({"split": "test"}, r"split is 'test', expected one of train, val"),
        ({"kind": "los"}, r"kind is 'los', expected one of loss, preview, action_mse, did you mean 'loss'"),
    ],
)
def test_evaluators_are_checked_by_name(evaluator, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed(data__datasets=({"path": "a", "name": "calvin"},), train__evaluators=(evaluator,)))


def test_the_best_checkpoint_needs_an_evaluation():
    with pytest.raises(ConfigError, match=r"keep_best is 'loss', but nothing is evaluated"):
        from_config_dict(changed(train__keep_best="loss", train__eval_every=0))
    assert from_config_dict(changed(train__keep_best="loss", train__eval_every=0, train__evaluators=({"every": 2},)))


def test_the_reference_page_is_up_to_date(project):
    assert PAGE.read_text() == reference_page(), "python -m vpp_jax.cli.config_help writes it anew"


def test_every_field_is_described():
    for entry in settings(ExperimentConfig()):
        assert entry.declaration.description, entry.name
        assert entry.value is None or entry.declaration.allows(entry.value), entry.name


def test_the_unet_of_a_policy_stops_at_its_last_tap():
    model = ModelConfig()
    assert model.unet_up_to(1) == dataclasses.replace(model.unet, last_tap=1)
    assert model.unet_up_to(None) is model.unet


def test_the_published_configurations_read_what_data_build_calvin_writes():
    for stage in ("video", "policy"):
        config = from_config_dict(importlib.import_module(f"configs.svd_calvin_{stage}").get_config())
        assert [entry.name for entry in config.data.datasets] == [CalvinRecordedRecipe.name]
    assert CalvinRecordedRecipe.name in REGISTRY


def test_published_variants_differ_only_where_the_released_code_does():
    def load(name):
        return from_config_dict(importlib.import_module(f"configs.{name}").get_config())

    changed = config_diff(load("svd_calvin_video"), load("svd_calvin_video_published"))
    assert {name: new for name, (_, new) in changed.items() if name not in ("data.datasets", "mesh.fsdp")} == {
        "data.mixture": "vpp_released",
        "data.batch_size": 48,
        "data.antialias": False,
        "video_diffusion.preview_guidance_max": 7.5,
        "train.ema_decay": 0.0,
        "train.eval_batches": 32,
        "train.save_every": 20_000,
    }
    changed = config_diff(load("svd_calvin_policy"), load("svd_calvin_policy_published"))
    epoch = 696_473 // 112
    assert {name: new for name, (_, new) in changed.items() if name != "mesh.fsdp"} == {
        "data.batch_size": 112,
        "train.steps": 50 * epoch,
        "train.ema_decay": 0.0,
        "train.eval_every": epoch,
        "train.save_every": epoch,
    }


def test_fields_of_the_noise_on_the_given_frame_are_checked():
    with pytest.raises(ConfigError, match=r"condition_noise is \(1\.0,\), expected the mean"):
        VideoDiffusionConfig(condition_noise=(1.0,))
    with pytest.raises(ConfigError, match=r"guidance_min is 4\.0, expected at most preview_guidance_max = 2\.0"):
        VideoDiffusionConfig(guidance_min=4.0, guidance_max=5.0, preview_guidance_max=2.0)
    tree = to_config_dict(ExperimentConfig(stage="video")).to_dict()
    tree["video_diffusion"]["condition_noise"] = (-3.0, 0.5)
    tree["data"]["datasets"] = ({"path": "x", "latents": True},)
    with pytest.raises(ConfigError, match="read as latents"):
        from_config_dict(tree)


def test_the_configuration_files_are_valid(project):
    files = sorted(path.stem for path in (project / "configs").glob("[!_]*_*.py"))
    assert files
    for name in files:
        module = importlib.import_module(f"configs.{name}")
        config = from_config_dict(module.get_config())
        assert from_json(to_json(config)) == config
        assert "vpp train" in module.__doc__, f"configs/{name}.py does not say its command"
