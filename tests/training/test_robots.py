"""One policy, several robots: trained, saved and loaded as in a run, each robot keeps its own units."""

import dataclasses
import json
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricated_robots import write_robot

from data_pipelines.config import DatasetConfig
from data_pipelines.errors import DataError
from data_pipelines.rlds.dataset import RLDSDataset
from eval.policies import Observations
from vpp_jax.cli.main import main
from vpp_jax.common.errors import VppError
from vpp_jax.config import ConfigError, to_dict
from vpp_jax.serving.policy_runner import load_policy
from vpp_jax.training.checkpoint_writing import Checkpoints
from vpp_jax.training.checkpoints import list_tensors, load_params
from vpp_jax.training.loop import _check_data, train
from vpp_jax.training.robots import UnknownRobotError
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec
from vpp_jax.training.state import TrainState
from vpp_jax.training.workdir import Workdir

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def video(micro_config, tmp_path_factory):
    """A work directory of stage video with random parameters."""
    config = micro_config("video")
    stage, rng = make_stage(config), np.random.default_rng(0)
    params = {name: (0.1 * rng.standard_normal(spec.shape)).astype(np.float32) for name, spec in stage.abstract_trainable().items()}
    frozen = {name: jnp.asarray(0.1 * rng.standard_normal(spec.shape), spec.dtype) for name, spec in stage.abstract_frozen().items()}
    directory = tmp_path_factory.mktemp("video")
    checkpoints = Checkpoints(directory / "checkpoints", max_to_keep=1)
    checkpoints.save_frozen(frozen)
    about = {"stage": "video", "config": to_dict(config), "config_hash": "x", "latent_scaling_factor": 0.5}
    checkpoints.save(1, TrainState(jnp.int32(1), params, {}, {}), about, None)
    checkpoints.close()
    return directory


@pytest.fixture(scope="module")
def policy_config(micro_config, video):
    """(paths of datasets) -> configuration of stage policy on them."""

    def configured(*paths, **data):
        config = micro_config("policy")
        members = tuple(DatasetConfig(str(path), path.name) for path in paths)
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, **{"datasets": members, "observation_stride": 2, **data}),
            init=dataclasses.replace(config.init, video=str(video)),
            train=dataclasses.replace(config.train, steps=2),
        )

    return configured


@pytest.fixture(scope="module")
def two_scales(policy_config, tmp_path_factory):
    """The work directory of a policy of two robots, whose actions have scales 1 and 100."""
    root = tmp_path_factory.mktemp("scales")
    paths = [write_robot(root / "small"), write_robot(root / "large", scale=100.0, signed_dimensions=[6])]
    assert train(make_stage(policy_config(*paths)), root / "run").finished
    return root


def observed(count=1):
    rng = np.random.default_rng(3)
    images = {view: rng.integers(0, 255, (count, 40, 50, 3), np.uint8) for view in ("primary", "wrist")}
    return Observations(images, rng.normal(size=(count, 15)).astype(np.float32), ["push it"] * count)


@pytest.mark.parametrize("name", ["small", "large"])
def test_each_robot_gets_its_own_units_back(two_scales, name):
    policy = load_policy(two_scales / "run", robot=name)
    episodes = list(RLDSDataset(two_scales / name))
    for column, normalizer in (("action", policy.robot.action), ("observation/state", policy.robot.proprio)):
        raw = np.concatenate([episode.column(column) for episode in episodes])
        np.testing.assert_allclose(normalizer.forward(raw).std(0), 1, rtol=1e-4)
        np.testing.assert_allclose(normalizer.inverse(normalizer.forward(raw)), raw, rtol=1e-6, atol=1e-6 * np.abs(raw).max())
    about = policy.metadata
    assert (about.robot, about.action_mode, about.statistics_hash) == (name, "relative", policy.robot.statistics_hash)
    chunk = policy.act(observed(), np.zeros(1, np.uint32))
    normalised = policy._act(policy.params, *policy.inputs(observed()), np.zeros(1, np.uint32))
    expected = np.asarray(normalised) * policy.robot.action.scale + policy.robot.action.shift
    np.testing.assert_allclose(chunk[..., :6], expected[..., :6], rtol=1e-6)
    assert (set(np.unique(chunk[..., 6])) <= {-1.0, 1.0}) == (name == "large")


def test_without_a_name_or_with_a_wrong_one_nothing_is_loaded(two_scales, tmp_path, capsys):
    with pytest.raises(UnknownRobotError, match=r"trained on 2 robots \(small, large\): choose one with --robot=NAME"):
        load_policy(two_scales / "run")
    with pytest.raises(UnknownRobotError, match=r"not trained on a robot 'larg', did you mean 'large'\?; it knows small, large"):
        load_policy(two_scales / "run", robot="larg")
    place = f"--checkpoint={two_scales / 'run'}"
    assert main(["eval", "calvin", place, f"--out={tmp_path / 'e'}", "--sequences=1"]) == 1
    assert main(["convert", "export", place, f"--out={tmp_path / 'none'}"]) == 1
    assert " ".join(capsys.readouterr().err.split()).count("choose one with --robot=NAME") == 2
    assert main(["convert", "export", place, f"--out={tmp_path / 'out'}", "--robot=large"]) == 0
    written = json.loads((tmp_path / "out" / "robot.json").read_text())
    assert (written["spec"]["name"], min(written["action"]["scale"]) > 50) == ("large", True)


def test_acting_reads_the_checkpoint_and_not_the_registry(policy_config, tmp_path, monkeypatch):
    path = write_robot(tmp_path / "calvin_mujoco", action_mode="absolute")
    assert train(make_stage(policy_config(path)), tmp_path / "run").finished
    (path / "robot.json").unlink()
    monkeypatch.setattr("data_pipelines.openx.registry.REGISTRY", {})
    policy = load_policy(tmp_path / "run")
    assert (policy.metadata.robot, policy.metadata.action_mode) == ("calvin_mujoco", "absolute")
    assert np.isfinite(policy.act(observed(), np.zeros(1, np.uint32))).all()


def test_a_run_does_not_resume_on_another_description(policy_config, tmp_path):
    path = write_robot(tmp_path / "arm")
    config = policy_config(path)
    assert train(make_stage(config), tmp_path / "run").finished
    tree = json.loads((path / "robot.json").read_text())
    (path / "robot.json").write_text(json.dumps(tree | {"cameras": {"primary": "observation/wrist", "wrist": "observation/primary"}}))
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    with pytest.raises(ConfigError, match=r"robot 'arm' was described otherwise: cameras\.primary was 'observation/primary'"):
        train(make_stage(longer), tmp_path / "run")


def test_a_run_does_not_resume_on_other_shards(tmp_path):
    def metadata(fingerprint):
        return {"datasets": [{"robot": {"name": "arm"}, "fingerprint": fingerprint}]}

    with closing(Workdir(tmp_path)) as place:
        _check_data(place, metadata("a"), metadata("a"))
        with pytest.raises(ConfigError, match="on other shards of 'arm'"):
            _check_data(place, metadata("a"), metadata("b"))


def test_names_of_robots_differ(policy_config, tmp_path):
    with pytest.raises(ConfigError, match="has calvin_mujoco more than once"):
        policy_config(tmp_path / "a" / "calvin_mujoco", tmp_path / "b" / "calvin_mujoco")


# --- robots that differ ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robots(policy_config, tmp_path_factory):
    """(directory, configuration) of an arm with two cameras, a hand of 18 numbers without state, and an arm with another camera."""
    root = tmp_path_factory.mktemp("robots")
    paths = [
        write_robot(root / "arm"),
        write_robot(root / "hand", action_width=18, state_width=0, scale=10.0, views=("primary",), control_hz=5),
        write_robot(root / "other", action_width=8, state_width=4, views=("primary", "top"), control_hz=20),
    ]
    return root, with_robots(policy_config(*paths, action_seconds=0.4))


@pytest.fixture(scope="module")
def trained(robots):
    """The work directory of a policy of these."""
    root, config = robots
    assert train(make_stage(config), root / "run").finished
    return root / "run"


def with_robots(config, **action):
    """The configuration with room for 18 numbers and three views, and everything that conditions on robots."""
    options = {"action_dim": 18, "prompt_tokens": 2, "robot_projections": True, "rate_token": True} | action
    widened = dataclasses.replace(config.model.action, **options)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, views=("primary", "wrist", "top"), action=widened))


def batch_of(root, name, config, rows=2):
    """One batch of a robot, with images; nothing cached."""
    live = dataclasses.replace(config, policy_diffusion=dataclasses.replace(config.policy_diffusion, feature_draws=0))
    stage = make_stage(live)
    source = stage.source("train", {}, root, name)
    examples = [source[index] for index in range(rows)]
    return stage, {key: jnp.asarray(np.stack([example[key] for example in examples])) for key in examples[0]}


def test_examples_have_one_shape_and_say_what_is_padding(robots):
    root, config = robots
    spec = example_spec(dataclasses.replace(config, policy_diffusion=dataclasses.replace(config.policy_diffusion, feature_draws=0)))
    seen = {}
    for name in ("arm", "hand", "other"):
        _, batch = batch_of(root, name, config)
        assert {key: (value.shape[1:], value.dtype) for key, value in batch.items()} == {k: (s.shape, s.dtype) for k, s in spec.items()}
        own = np.asarray(batch["action_dims"][0])
        assert not batch["action"][..., ~own].any()
        seen[name] = (
            batch["robot"][0].item(),
            batch["control_hz"][0].item(),
            own.sum().item(),
            batch["view_mask"][0].tolist(),
            batch["action_mask"][0].sum().item(),  # 0.4 s
        )
    assert seen == {
        "arm": (0, 10.0, 7, [True, True, False], 4),
        "hand": (1, 5.0, 18, [True, False, False], 2),
        "other": (2, 20.0, 8, [True, False, True], 6),
    }


@pytest.fixture(scope="module")
def params(robots):
    """Random parameters, none of them zero, of the trainable groups; and predictive features of two observations."""
    config = robots[1]
    rng, stage = np.random.default_rng(1), make_stage(config)
    made = {name: jnp.asarray(0.2 * rng.standard_normal(spec.shape), jnp.float32) for name, spec in stage.abstract_trainable().items()}
    shape = example_spec(config)["features"].shape
    return made, jnp.asarray(rng.standard_normal((2, *shape)), jnp.float32)


@pytest.mark.parametrize(("name", "own", "absent"), [("arm", 7, [2]), ("hand", 18, [1, 2]), ("other", 8, [1])])
def test_what_a_robot_lacks_gets_no_gradient_and_leaks_nothing(robots, params, name, own, absent):
    root, config = robots
    stage, batch = batch_of(root, name, config)
    made, features = params
    batch = {key: value for key, value in batch.items() if not key.startswith("images/")}
    tokens = features.shape[2] // 3

    def loss(made, features, action):
        given = (batch[key] for key in ("text_ids", "text_mask", "proprio"))
        mask, whose = batch["action_mask"], stage.embodiment(batch)
        return stage.policy.loss(made, features, *given, action, mask, jax.random.key(0), training=False, embodiment=whose)[0]

    value, (of_params, of_features, of_action) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(made, features, batch["action"])
    number = int(batch["robot"][0])
    for view in range(3):
        part = np.asarray(of_features[:, :, view * tokens : (view + 1) * tokens])
        assert (np.abs(part).max() == 0) == (view in absent)
    assert not np.asarray(of_action[..., own:]).any()
    assert not np.asarray(of_params["action_transformer/action_emb.kernel"][own:]).any()
    assert not np.asarray(of_params["action_transformer/action_pred.kernel"][:, own:]).any()
    for key, gradient in of_params.items():
        if key.startswith("robots/"):
            others = np.delete(np.asarray(gradient), number, 0)
            assert not others.any(), key
            assert np.asarray(gradient[number]).any() or (name == "hand" and key == "robots/proprio_in.kernel")
    for view in absent:  # whatever is there
        features = features.at[:, :, view * tokens : (view + 1) * tokens].set(1e3)
    changed = jax.jit(loss)(made, features, batch["action"].at[..., own:].set(5.0))
    np.testing.assert_array_equal(changed, jax.jit(loss)(made, params[1], batch["action"]))
    assert np.isfinite(value)


def test_a_batch_of_several_robots_is_the_mean_over_what_counts(robots, params):
    root, config = robots
    made, features = params
    batches, losses, weights = [], [], []
    keys = jax.random.split(jax.random.key(0), 6)
    for number, name in enumerate(("arm", "hand", "other")):
        stage, batch = batch_of(root, name, config)
        batch = {key: value for key, value in batch.items() if not key.startswith("images/")} | {"features": features}
        batches.append(batch)
        losses.append(float(stage.loss(made, {}, batch, keys[2 * number : 2 * number + 2], training=False)[0]))
        weights.append(float(stage.loss_weight(batch)))
    together = {key: jnp.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    assert weights == [2 * 4 * 7, 2 * 2 * 18, 2 * 6 * 8]
    whole = float(stage.loss(made, {}, together, keys, training=False)[0])
    np.testing.assert_allclose(whole, np.average(losses, weights=weights), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "views", "width", "state", "steps"),
    [("arm", ("primary", "wrist"), 7, 15, 4), ("hand", ("primary",), 18, 0, 2), ("other", ("primary", "top"), 8, 4, 6)],
)
def test_each_robot_acts_in_its_own_width_with_its_own_views(trained, name, views, width, state, steps):
    policy = load_policy(trained, robot=name)
    about = policy.metadata
    assert (tuple(about.views), about.action_dim, about.proprio_dim, about.action_horizon) == (views, width, state, steps)
    rng = np.random.default_rng(0)
    images = {view: rng.integers(0, 255, (2, 40, 50, 3), np.uint8) for view in views}
    observations = Observations(images, rng.normal(size=(2, state)).astype(np.float32), ["push it", "open the drawer"])
    chunk = policy.act(observations, np.arange(2, dtype=np.uint32))
    assert chunk.shape == (2, steps, width)
    assert np.isfinite(chunk).all()


def test_a_robot_wider_than_the_model_and_a_view_nobody_has(policy_config, robots):
    config = policy_config(*(robots[0] / name for name in ("arm", "hand")))
    with pytest.raises(DataError, match=r"the action of 'hand' has 18 numbers, but model\.action\.action_dim is 7"):
        make_stage(with_robots(config, action_dim=7))._observations(config.data, "train")
    with pytest.raises(DataError, match=r"no dataset has the views top of the policy .*correct model\.views"):
        make_stage(with_robots(config))._observations(config.data, "train")


# --- starting from a policy -----------------------------------------------------------------------------------------------------------


def test_a_new_robot_trains_its_own_parameters_alone(robots, trained, policy_config, tmp_path):
    new = with_robots(policy_config(write_robot(tmp_path / "new", action_width=9, state_width=3, views=("wrist",))))
    new = dataclasses.replace(new, model=dataclasses.replace(new.model, views=("wrist",)))
    init = dataclasses.replace(new.init, video="", policy=str(trained))
    optimizer = dataclasses.replace(new.optimizer, trainable=("robots/.*",))
    assert train(make_stage(dataclasses.replace(new, init=init, optimizer=optimizer)), tmp_path / "run").finished
    names = {name: spec for name, spec in list_tensors(tmp_path / "run").items() if not name.startswith("robots/")}
    before, after = load_params(trained, names), load_params(tmp_path / "run", names)
    for name in names:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    prompt = {"robots/prompt": list_tensors(tmp_path / "run")["robots/prompt"]}
    assert prompt["robots/prompt"].shape[0] == 1
    fresh = make_stage(dataclasses.replace(new, init=init))._robot_rows(str(trained))["robots/prompt"]
    assert np.abs(np.asarray(load_params(tmp_path / "run", prompt)["robots/prompt"]) - fresh).max() > 1e-4
    policy = load_policy(tmp_path / "run")
    observations = Observations({"wrist": np.zeros((1, 32, 32, 3), np.uint8)}, np.zeros((1, 3), np.float32), ["push it"])
    assert policy.act(observations, np.zeros(1, np.uint32)).shape == (1, 6, 9)


def test_known_robots_keep_what_was_learnt_of_them(robots, trained, policy_config, tmp_path):
    root, _ = robots
    config = with_robots(policy_config(write_robot(tmp_path / "new"), root / "hand"))
    config = dataclasses.replace(config, init=dataclasses.replace(config.init, policy=str(trained)))
    stage = make_stage(config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = stage.load_trainable(dict.fromkeys(stage.abstract_trainable(), device))
    learnt = load_params(trained, {name: spec for name, spec in list_tensors(trained).items() if name.startswith("robots/")})
    for name, rows in learnt.items():
        np.testing.assert_array_equal(params[name][1], rows[1])  # the hand's number is 1 in both
        assert params[name].shape == (2, *rows.shape[1:])
    assert not np.array_equal(params["robots/prompt"][0], learnt["robots/prompt"][0])
    wider = dataclasses.replace(config.model.action, action_dim=20)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, action=wider))
    with pytest.raises(VppError, match=r"action_transformer/action_emb\.kernel"):
        make_stage(other).load_trainable(dict.fromkeys(stage.abstract_trainable(), device))
