"""The sharding table: complete for every published model, and what it does where sizes do not divide."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vpp_jax.config import ConfigError, MeshConfig, ModelConfig
from vpp_jax.functional import PureModule, with_prefix
from vpp_jax.models.action_transformer import ActionTransformer
from vpp_jax.models.text_encoder import CLIPTextEncoder
from vpp_jax.models.video_former import VideoFormer
from vpp_jax.models.video_unet import SpatioTemporalUNet
from vpp_jax.models.video_vae import TemporalVAE
from vpp_jax.parallel.mesh import axis_sizes, make_mesh
from vpp_jax.parallel.partition import PartitionError, decide, like_params, partition

SIZES = {"data": 2, "fsdp": 8, "tensor": 2}


@pytest.fixture(scope="module")
def published():
    """Every parameter of size svd, abstract."""
    model = ModelConfig()
    modules = {
        "unet": (SpatioTemporalUNet, model.unet),
        "vae": (TemporalVAE, model.vae),
        "text": (CLIPTextEncoder, model.text),
        "video_former": (VideoFormer, model.former),
        "action_transformer": (ActionTransformer, model.action),
    }
    params = {"latents/scaling_factor": jax.ShapeDtypeStruct((), jnp.float32)}
    for prefix, (kind, config) in modules.items():
        params |= with_prefix(prefix, PureModule.of(lambda rngs, kind=kind, config=config: kind(config, rngs=rngs)).abstract)
    return params


@pytest.mark.medium
def test_published_models_are_covered_and_really_split(published):
    decisions = decide(published, SIZES, min_size_to_shard=0)
    assert decisions.keys() == published.keys()
    whole = [name for name, value in published.items() if value.size > 65_536 and "fsdp" not in decisions[name].spec]
    # 20 x 77 x 512 and the like would be worth splitting, these are not: 77 positions, 8- and 3-channel convolutions
    assert all(published[name].size < 200_000 for name in whole), whole
    for name, decision in decisions.items():
        for size, axis in zip(published[name].shape, decision.spec, strict=False):
            assert axis is None or size % SIZES[axis] == 0, name
    per_device = sum(
        value.size / np.prod([SIZES[axis] for axis in decisions[name].spec if axis is not None]) for name, value in published.items()
    )
    total = sum(value.size for value in published.values())
    assert per_device < 1.1 * total / SIZES["fsdp"]


def spec(name, shape, min_size_to_shard=0, **sizes):
    decision = decide({name: jax.ShapeDtypeStruct(shape, jnp.float32)}, {"data": 1, "fsdp": 1, "tensor": 1} | sizes, min_size_to_shard)[
        name
    ]
    return decision.spec, decision.note


@pytest.mark.parametrize(
    ("name", "shape", "sizes", "expected"),
    [
        ("unet/attn1.to_q.kernel", (320, 320), {"fsdp": 4, "tensor": 2}, P("fsdp", "tensor")),
        ("unet/attn1.to_out.0.kernel", (320, 320), {"fsdp": 4, "tensor": 2}, P("tensor", "fsdp")),
        ("unet/ff.net.0.proj.kernel", (320, 2560), {"fsdp": 4, "tensor": 2}, P("fsdp", "tensor")),
        ("unet/ff.net.2.kernel", (1280, 320), {"fsdp": 4, "tensor": 2}, P("tensor", "fsdp")),
        ("unet/temporal_res_block.conv1.kernel", (3, 1, 1, 320, 640), {"fsdp": 4}, P(None, None, None, None, "fsdp")),
        ("unet/conv_out.kernel", (3, 3, 320, 4), {"fsdp": 8}, P(None, None, "fsdp")),  # 4 output channels: the inputs are split
        ("vae/time_conv_out.kernel", (3, 1, 1, 3, 3), {"fsdp": 8}, P()),
        ("action_transformer/cross_att.key.kernel", (30, 31), {"fsdp": 2, "tensor": 2}, P("fsdp")),
        ("unet/norm1.scale", (320,), {"fsdp": 4}, P()),
    ],
)
def test_specs(name, shape, sizes, expected):
    assert spec(name, shape, **sizes)[0] == expected


def test_departures_are_noted():
    assert spec("unet/conv_out.kernel", (3, 3, 320, 4), fsdp=8)[1] == "fsdp=8 does not divide 4, moved"
    assert spec("action_transformer/cross_att.key.kernel", (30, 31), tensor=2)[1] == "tensor=2 does not divide 31, unsharded"
    assert spec("unet/attn1.to_q.kernel", (320, 320), min_size_to_shard=1 << 20, fsdp=4) == (P(), "small")


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(PartitionError, match=r"1 parameter\(s\) match no rule .*unet/mystery"):
        spec("unet/mystery", (4,))


def test_mesh_sizes():
    assert axis_sizes(MeshConfig(-1, 2, 1), 8) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert axis_sizes(MeshConfig(2, -1, 2), 8) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ConfigError, match=r"mesh data=-1, fsdp=3, tensor=1 does not fit 8 device\(s\)"):
        axis_sizes(MeshConfig(-1, 3, 1), 8)
    with pytest.raises(ConfigError, match="at most one -1"):
        MeshConfig(-1, -1, 1)


def test_only_data_runs_between_slices():
    """Two slices of 2 x 2 chips, as JAX describes them."""
    chips = [
        SimpleNamespace(id=4 * index + 2 * y + x, slice_index=index, coords=(x, y, 0), core_on_chip=0)
        for index, y, x in itertools.product(range(2), repeat=3)
    ]
    for chip in chips:
        chip.platform, chip.device_kind, chip.process_index = "tpu", "TPU v5 lite", chip.slice_index
    with pytest.raises(ConfigError, match=r"mesh data=1, fsdp=8, tensor=1 on 2 slices of 4 chips: .* e\.g\. data=-1,fsdp=4"):
        make_mesh(MeshConfig(1, 8, 1), chips)
    with pytest.raises(ConfigError, match="data=1"):
        make_mesh(MeshConfig(-1, 4, 2), chips)


def test_optimizer_state_follows_its_parameters():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = {"net/a.kernel": jnp.ones((4, 4)), "net/a.bias": jnp.ones(4)}
    shardings = partition(params, mesh, min_size_to_shard=0)
    tree = like_params([{"mu": params, "count": jnp.zeros(())}], shardings, mesh)
    assert tree[0]["mu"] == shardings
    assert tree[0]["count"].spec == P()
