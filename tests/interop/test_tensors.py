"""Names and layouts against PyTorch's conventions, written out by hand, and round trips."""

import numpy as np
import pytest

from vpp_jax.functional import PureModule
from vpp_jax.interop.tensors import InteropError, from_published, import_tensors, published_name, published_shape, to_published
from vpp_jax.models.action_transformer import ActionTransformer, ActionTransformerConfig
from vpp_jax.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from vpp_jax.models.video_former import VideoFormer, VideoFormerConfig
from vpp_jax.models.video_unet import SpatioTemporalUNet, VideoUNetConfig
from vpp_jax.models.video_vae import TemporalVAE, VideoVAEConfig


def test_layouts():
    linear = np.arange(6).reshape(2, 3)  # PyTorch: 2 outputs, 3 inputs
    np.testing.assert_array_equal(from_published("proj.kernel", linear), linear.T)
    convolution = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)  # out, in, height, width
    ours = from_published("conv.kernel", convolution)
    assert ours.shape == (5, 7, 3, 2)
    assert ours[4, 6, 2, 1] == convolution[1, 2, 4, 6]
    temporal = np.zeros((8, 4, 3, 1, 1))
    assert from_published("conv.kernel", temporal).shape == (3, 1, 1, 4, 8)
    table = np.zeros((11, 4))
    assert from_published("token_embedding.embedding", table).shape == (11, 4)
    for name, value in (("a.kernel", linear), ("a.kernel", convolution), ("a.kernel", temporal), ("a.embedding", table)):
        here = from_published(name, value)
        np.testing.assert_array_equal(to_published(name, here), value)
        assert published_shape(name, here.shape) == value.shape


def test_import_takes_what_is_asked_for_and_names_what_is_missing():
    published = {"inner.a.weight": np.zeros((2, 3)), "inner.a.bias": np.zeros(2), "other.weight": np.zeros(1)}
    ours = import_tensors(["a.kernel", "a.bias"], published, prefix="inner.")
    assert {name: value.shape for name, value in ours.items()} == {"a.kernel": (3, 2), "a.bias": (2,)}
    with pytest.raises(InteropError, match=r"1 of 2 tensors .* inner\.b\.weight"):
        import_tensors(["a.kernel", "b.scale"], published, prefix="inner.")


MODULES = {
    "unet": (lambda rngs: SpatioTemporalUNet(VideoUNetConfig(), rngs=rngs), "", ()),
    "vae": (lambda rngs: TemporalVAE(VideoVAEConfig(), rngs=rngs), "", ()),
    "clip_text": (lambda rngs: CLIPTextEncoder(TextEncoderConfig(), rngs=rngs), "", ()),
    "video_former": (lambda rngs: VideoFormer(VideoFormerConfig(), rngs=rngs), "", ()),
    "policy": (
        lambda rngs: ActionTransformer(ActionTransformerConfig(), rngs=rngs),
        "inner_model.",
        ("pos_emb", "goal_emb.", "proprio_emb."),  # carried by the published model, read by no forward pass
    ),
}


@pytest.mark.parametrize("module", MODULES)
def test_every_published_tensor_has_its_place(module, published_shapes):
    """Names and shapes of the whole model at size svd against the published lists."""
    build, prefix, unused = MODULES[module]
    published = {name: shape for name, shape in published_shapes(module).items() if not name.removeprefix(prefix).startswith(unused)}
    abstract = PureModule.of(build).abstract
    ours = {prefix + published_name(name): published_shape(name, spec.shape) for name, spec in abstract.items()}
    assert ours == published
