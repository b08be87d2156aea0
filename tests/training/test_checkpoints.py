"""Parameters that later stages load from a checkpoint, and the errors if they do not match."""

import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.training.checkpoint_writing import Checkpoints
from vpp_jax.training.checkpoints import CheckpointError, load_params, locate, read_metadata
from vpp_jax.training.packing import PACK_UP_TO, flatten, index_of, pack, packed_lengths, unflatten, unpack
from vpp_jax.training.state import Trainer

STEP = 3


@pytest.fixture(scope="module")
def saved(toy, tmp_path_factory):
    """A work directory with one checkpoint, and what was put into it."""
    workdir = tmp_path_factory.mktemp("saved")
    stage = toy.ToyStage(toy.toy_config())
    state = jax.jit(Trainer(stage).init)(jax.random.key(1))
    state = jax.tree.map(lambda value: value, state)
    ema = {name: value + 1 for name, value in state.params.items()}
    state = type(state)(jnp.int32(STEP), state.params, ema, state.opt_state)
    frozen = {"vae/lift.kernel": jnp.full((16, 16), 3.0), "latents/scaling_factor": jnp.float32(0.18215)}
    checkpoints = Checkpoints(workdir / "checkpoints", max_to_keep=1)
    checkpoints.save_frozen(frozen)
    checkpoints.save(STEP, state, {"stage": "vae", "latent_scaling_factor": 0.5}, {"next_index": 24})
    checkpoints.close()
    return workdir, state, frozen


def specs(params):
    return {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in params.items()}


@pytest.mark.parametrize("item", ["ema", "params"])
def test_one_item_comes_back_equal(saved, item):
    workdir, state, _ = saved
    expected = getattr(state, item)
    loaded = load_params(workdir, specs(expected), item=item, stage="vae")
    assert list(loaded) == list(expected)
    assert all(np.array_equal(loaded[name], expected[name]) for name in expected)


def test_names_of_two_items_and_part_of_the_model(saved):
    workdir, state, frozen = saved
    wanted = {"head/last.kernel": state.ema["head/last.kernel"], "latents/scaling_factor": frozen["latents/scaling_factor"]}
    loaded = load_params(workdir / "checkpoints" / str(STEP), specs(wanted))
    assert all(np.array_equal(loaded[name], wanted[name]) for name in wanted)


def test_types_of_the_caller_are_kept(saved):
    workdir, state, _ = saved
    wanted = {name: jax.ShapeDtypeStruct(value.shape, jnp.bfloat16) for name, value in state.ema.items()}
    loaded = load_params(workdir, wanted)
    assert all(loaded[name].dtype == jnp.bfloat16 for name in wanted)  # both the packed and the large ones
    assert all(np.array_equal(loaded[name], state.ema[name].astype(jnp.bfloat16)) for name in wanted)


def test_metadata_and_data_state(saved):
    workdir, _, _ = saved
    metadata = read_metadata(workdir)
    assert (metadata["step"], metadata["stage"], metadata["latent_scaling_factor"]) == (STEP, "vae", 0.5)
    checkpoints = Checkpoints(workdir / "checkpoints", max_to_keep=1)
    assert checkpoints.data_state(STEP) == {"next_index": 24}
    checkpoints.close()


def test_errors_say_what_is_there(saved, tmp_path):
    workdir, state, _ = saved
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is not a checkpoint: expected a work directory"):
        locate(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 8 \(has 3\)"):
        locate(workdir, 8)
    with pytest.raises(CheckpointError, match=r"holds stage vae, expected video; set --config\.init\.video"):
        load_params(workdir, specs(state.ema), stage="video")
    wanted = specs(state.ema) | {name: jax.ShapeDtypeStruct((9,), jnp.float32) for name in ("head/last.bias", "head/more.bias")}
    lists = r"1 missing: head/more\.bias; 0 unexpected; 1 wrong shape: head/last\.bias \(4,\), expected \(9,\)"
    with pytest.raises(CheckpointError, match=lists):
        load_params(workdir, wanted)


def test_a_run_without_average_gives_its_parameters(toy, tmp_path):
    state = jax.jit(Trainer(toy.ToyStage(toy.toy_config(ema_decay=0.0))).init)(jax.random.key(0))
    checkpoints = Checkpoints(tmp_path, max_to_keep=1)
    checkpoints.save(1, state, {"stage": "vae"}, None)
    checkpoints.close()
    loaded = load_params(tmp_path, specs(state.params), item="ema")
    assert all(np.array_equal(loaded[name], state.params[name]) for name in loaded)


def test_what_is_saved_does_not_change_while_training_continues(toy, tmp_path):
    """Files are written in the background, from copies: the arrays themselves are donated to the next step."""
    state = jax.jit(Trainer(toy.ToyStage(toy.toy_config())).init)(jax.random.key(0))
    expected = {name: np.array(value) for name, value in state.params.items()}
    checkpoints = Checkpoints(tmp_path, max_to_keep=1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda value: value * 0 - 7, tree), donate_argnums=0)
    checkpoints.save(1, state, {"stage": "vae"}, None)
    for _ in range(20):
        state = overwrite(state)
    jax.block_until_ready(state)
    checkpoints.close()
    loaded = load_params(tmp_path, specs(expected), item="params")
    assert all(np.array_equal(loaded[name], expected[name]) for name in expected)


def test_packing_round_trip():
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": np.int32(7),
        "c": jnp.ones((2, 0, 3)),
        "d": jnp.arange(5, dtype=jnp.bfloat16),
        "e": {"f": np.zeros(PACK_UP_TO + 1, np.float32), "g": np.arange(4, dtype=np.int32)},
    }
    leaves = flatten(tree)
    packed, index = pack(leaves), index_of(leaves)
    assert list(packed["large"]) == ["e|f"]
    lengths = {kind: len(vector) for kind, vector in packed["packed"].items()}
    assert lengths == packed_lengths(index) == {"float32": 12, "int32": 5, "bfloat16": 5}
    back = unflatten(tree, packed["large"] | unpack(index, packed["packed"], leaves))
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y) and np.asarray(x).dtype == np.asarray(y).dtype, tree, back))
    assert set(unpack(index, packed["packed"], ["d"])) == {"d"}


def test_saving_many_small_tensors_is_cheap(toy, tmp_path):
    """600 tensors, four times: one by one Orbax takes about 5 s of CPU time for them, packed 0.3 s."""
    state = jax.jit(Trainer(toy.ToyStage(toy.toy_config())).init)(jax.random.key(0))
    params = {f"net/layers.{index}.kernel": jnp.ones((3, 3, 16, 16)) for index in range(600)}
    state = type(state)(state.step, params, params, {"mu": params, "nu": params})
    checkpoints = Checkpoints(tmp_path, max_to_keep=1)
    checkpoints.save(1, state, {"stage": "vae"}, None)
    checkpoints.wait()
    begin = time.process_time()
    checkpoints.save(2, state, {"stage": "vae"}, None)
    checkpoints.close()
    assert time.process_time() - begin < 1.5
    shutil.rmtree(tmp_path)
