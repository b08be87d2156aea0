"""CLIP's text transformer (Radford et al. 2021), with Hugging Face's parameter names.

Pre-norm blocks with causal attention and quick-GELU. The published system passes the padding mask, so padding is never attended to; its
own output vectors are still computed, and the video model attends to all of them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from vpp_jax.common.config_fields import check_ranges, setting
from vpp_jax.common.errors import ConfigError
from vpp_jax.models.attention import Attention
from vpp_jax.models.layers import MLP, LayerNorm, Linear, check_dtype, compute_dtype
from vpp_jax.models.tokenizer import END_OF_TEXT, VOCABULARY_SIZE


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP's text transformer. The defaults are ViT-B/32's: 63,428,096 parameters."""

    vocab_size: int = setting(VOCABULARY_SIZE, "tokens of the vocabulary", at_least=1)
    width: int = setting(512, "width of the hidden states", at_least=1)
    layers: int = setting(12, "transformer layers", at_least=1)
    heads: int = setting(8, "attention heads", at_least=1)
    mlp_width: int = setting(2048, "hidden width of the MLPs", at_least=1)
    max_positions: int = setting(77, "tokens that there are position embeddings for", at_least=1)
    projection_dim: int = setting(512, "width of the pooled embedding", at_least=1)
    end_of_text: int = setting(END_OF_TEXT, "token whose first occurrence is pooled", at_least=0)
    dtype: str = compute_dtype()

    def __post_init__(self):
        check_ranges(self)
        if self.width % self.heads:
            raise ConfigError(f"width is {self.width}, expected a multiple of heads = {self.heads}")
        if self.end_of_text >= self.vocab_size:
            raise ConfigError(f"end_of_text is {self.end_of_text}, expected less than vocab_size = {self.vocab_size}")
        check_dtype(self.dtype)


@struct.dataclass
class TextOutput:
    """hidden: states after the final layer norm. pooled: projection of the state at the end-of-text token, not normalised."""

    hidden: Float[Array, "b l w"]
    pooled: Float[Array, "b p"]


class CLIPTextEncoder(nnx.Module):
    """Token ids and mask -> TextOutput."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.text_model = _TextModel(config, rngs=rngs)
        self.text_projection = Linear(config.width, config.projection_dim, use_bias=False, dtype=config.dtype, rngs=rngs)
        _redraw(self, config, rngs)

    @jax.named_scope("text")
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> TextOutput:
        """mask: True on real tokens (start, text and end), False on padding."""
        if ids.shape[1] > self.config.max_positions:
            raise ValueError(f"text of {ids.shape[1]} tokens is longer than the encoder's {self.config.max_positions} positions")
        hidden = self.text_model(ids, mask)
        # padding repeats the end-of-text token: argmax returns the first one, the end of the text
        end = jnp.argmax(ids == self.config.end_of_text, axis=1)
        pooled = self.text_projection(jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0])
        return TextOutput(hidden, pooled)


class _Embeddings(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Embed:
            init = nnx.initializers.normal(0.02)
            return nnx.Embed(rows, config.width, embedding_init=init, dtype=jnp.dtype(config.dtype), rngs=rngs)

        self.token_embedding = table(config.vocab_size)
        self.position_embedding = table(config.max_positions)

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l w"]:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))


class _TextModel(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        self.embeddings = _Embeddings(config, rngs=rngs)
        self.encoder = _Encoder(config, rngs=rngs)
        self.final_layer_norm = LayerNorm(config.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l w"]:
        return self.final_layer_norm(self.encoder(self.embeddings(ids), mask))


class _Encoder(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([_Block(config, rngs=rngs) for _ in range(config.layers)])

    def __call__(self, x: Float[Array, "b l w"], mask: Bool[Array, "b l"]) -> Float[Array, "b l w"]:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class _Block(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, config.dtype
        self.layer_norm1 = LayerNorm(width, dtype=dtype, rngs=rngs)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = Attention(width, heads=config.heads, qkv_bias=True, causal=True, names=names, dtype=dtype, rngs=rngs)
        self.layer_norm2 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, config.mlp_width, activation=_quick_gelu, names=("fc1", "fc2"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b l w"], mask: Bool[Array, "b l"]) -> Float[Array, "b l w"]:
        x = x + self.self_attn(self.layer_norm1(x), mask=mask[:, None, :])
        return x + self.mlp(self.layer_norm2(x))


def _quick_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return x * jax.nn.sigmoid(1.702 * x)


def _redraw(model: CLIPTextEncoder, config: TextEncoderConfig, rngs: nnx.Rngs) -> None:
    """CLIP's initialisation: residual branches are scaled down with depth, biases are zero."""
    narrow, branch = config.width**-0.5, (2 * config.layers) ** -0.5
    stds = {
        "q_proj": narrow * branch,
        "k_proj": narrow * branch,
        "v_proj": narrow * branch,
        "out_proj": narrow,
        "fc1": (2 * config.width) ** -0.5,
        "fc2": narrow * branch,
        "text_projection": narrow,
    }
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            module.kernel[...] = stds[str(path[-1])] * jax.random.normal(rngs.params(), module.kernel[...].shape)
