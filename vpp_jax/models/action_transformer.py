"""Diffusion transformer over action chunks (paper, section 3.4; the network is MDT's, Reuss et al. 2024).

An encoder turns [goal embedding, Video Former tokens, (proprioception)] into context, once per chunk. A decoder with AdaLN
conditioning on the noise level denoises the chunk, once per sampling step. There are no positions anywhere: the causal masks of the
decoder are all that tells action steps apart.

Parameter names are the published ones below `inner_model.`. Published tensors that no forward pass reads are not built: `pos_emb`,
`goal_emb` (a twin of `lang_emb`) and, when proprio_dim is 0, `proprio_emb`. Where proprioception is used, its embedding is trained
(it was published frozen at random values).
"""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vpp_jax import ops
from vpp_jax.common.config_fields import check_ranges, derived, setting
from vpp_jax.common.errors import ConfigError
from vpp_jax.models.attention import Attention
from vpp_jax.models.initialization import normal_linears
from vpp_jax.models.layers import MLP, Identity, LayerNorm, Linear, check_dtype, compute_dtype, sinusoidal_embedding

# kernel [b i o] and bias [b o], one of each per example
RobotAffine = tuple[Array, Array]


@dataclass(frozen=True)
class ActionTransformerConfig:
    """The diffusion policy. The defaults are the published CALVIN policy: 21,520,903 parameters."""

    action_dim: int = setting(7, "numbers per action", at_least=1)
    action_horizon: int = setting(10, "actions per chunk", at_least=1)
    width: int = setting(384, "width of encoder and decoder; MLPs are 4 x width, embeddings have a hidden layer of 2 x width", at_least=4)
    heads: int = setting(8, "attention heads of encoder and decoder", at_least=1)
    encoder_layers: int = setting(4, "layers of the encoder", at_least=1)
    decoder_layers: int = setting(4, "layers of the decoder", at_least=1)
    goal_dim: int = derived(512, "width of the pooled instruction embedding", "model.text.projection_dim")
    token_dim: int = derived(384, "width of the Video Former's tokens", "model.former.dim")
    proprio_dim: int = setting(0, "width of the proprioceptive state; 0 for none", at_least=0)
    robots: int = derived(1, "robots that the policy tells apart", "data.datasets")
    prompt_tokens: int = setting(0, "learnt tokens per robot, in front of the context", at_least=0)
    robot_projections: bool = setting(False, "each robot adds weights of its own to the projections of actions and state")
    rate_token: bool = setting(False, "a token of the context says the robot's control rate")
    causal_cross_attention: bool = setting(
        True, "action i attends to context tokens 0 to i only, as published; off, every action attends to the whole context"
    )
    attention_dropout: float = setting(0.3, "dropout of attention weights", at_least=0, less_than=1)
    residual_dropout: float = setting(0.1, "dropout of attention outputs", at_least=0, less_than=1)
    mlp_dropout: float = setting(0.05, "dropout of MLP outputs", at_least=0, less_than=1)
    init_std: float = setting(0.02, "kernels start from N(0, init_std^2), the AdaLN modulation included; biases from zero", more_than=0)
    dtype: str = compute_dtype()

    @property
    def conditions_on_robot(self) -> bool:
        return bool(self.prompt_tokens) or self.robot_projections or self.rate_token

    def __post_init__(self):
        check_ranges(self)
        if self.width % self.heads or self.width % 2:
            raise ConfigError(f"width is {self.width}, expected an even multiple of heads = {self.heads}")
        check_dtype(self.dtype)


class ActionTransformer(nnx.Module):
    """`encode` the conditions, then `decode` noisy actions at a noise level."""

    def __init__(self, config: ActionTransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.width, config.dtype
        self.tok_emb = Linear(config.token_dim, width, dtype=dtype, rngs=rngs)
        self.lang_emb = MLP(config.goal_dim, 2 * width, width, names=("0", "2"), dtype=dtype, rngs=rngs)
        if config.proprio_dim:
            names = ("0", "2")
            self.proprio_emb = MLP(config.proprio_dim, 2 * width, width, activation=jax.nn.mish, names=names, dtype=dtype, rngs=rngs)
        if config.rate_token:
            self.rate_emb = MLP(width, 2 * width, width, activation=jax.nn.mish, names=("1", "3"), dtype=dtype, rngs=rngs)
        # the noise level modulates every layer: embedded in float32 at least, whatever the compute type
        level_type = jnp.promote_types(dtype, jnp.float32)
        self.sigma_emb = MLP(width, 2 * width, width, activation=jax.nn.mish, names=("1", "3"), dtype=level_type, rngs=rngs)
        self.action_emb = Linear(config.action_dim, width, dtype=dtype, rngs=rngs)
        self.action_pred = Linear(width, config.action_dim, dtype=dtype, rngs=rngs)
        self.encoder = _Stack([_EncoderBlock(config, rngs=rngs) for _ in range(config.encoder_layers)], config, rngs=rngs)
        self.decoder = _Stack([_DecoderBlock(config, rngs=rngs) for _ in range(config.decoder_layers)], config, rngs=rngs)
        normal_linears(self, config.init_std, rngs)

    @jax.named_scope("action_transformer.encoder")
    def encode(
        self,
        tokens: Float[Array, "b n d"],
        goal: Float[Array, "b g"],
        proprio: Float[Array, "b p"] | None = None,
        *,
        prompt: Float[Array, "b q w"] | None = None,
        proprio_in: RobotAffine | None = None,
        control_hz: Float[Array, "b"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b m w"]:
        """Conditions -> context of m tokens: the robot's prompt, its rate, goal, Video Former tokens, proprioception.

        `key` enables dropout. proprio_in: what the robot adds to the embedding of its state.
        """
        if (proprio is not None) != bool(self.config.proprio_dim):
            given = "none" if proprio is None else f"shape {proprio.shape}"
            raise ValueError(f"the action transformer is configured with proprio_dim={self.config.proprio_dim}, proprio given: {given}")
        parts = [self.lang_emb(goal)[:, None], self.tok_emb(tokens)]
        if self.config.rate_token:
            if control_hz is None:
                raise ValueError("the action transformer is configured with rate_token, but no control_hz is given")
            parts.insert(0, self.rate_emb(sinusoidal_embedding(jnp.log(control_hz), self.config.width))[:, None])
        if prompt is not None:
            parts.insert(0, prompt.astype(parts[0].dtype))
        if proprio is not None:
            parts.append(_plus(self.proprio_emb(proprio)[:, None], proprio[:, None], proprio_in))
        return self.encoder(jnp.concatenate(parts, axis=1), key=key)

    def decode(
        self,
        noisy_actions: Float[Array, "b k a"],
        sigma: Float[Array, "b"],
        context: Float[Array, "b m w"],
        *,
        action_in: RobotAffine | None = None,
        action_out: RobotAffine | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b k a"]:
        """Network output F, float32 at least, for actions scaled by c_in; EDM preconditioning is applied outside. `key` enables dropout.

        All arguments share the batch: to denoise several samples per observation, repeat the context.
        action_in, action_out: what the robot adds to the projections of its actions.
        """
        return self.decode_modulated(noisy_actions, self.modulations(sigma), context, action_in=action_in, action_out=action_out, key=key)

    @jax.named_scope("action_transformer.modulations")
    def modulations(self, sigma: Float[Array, "b"]) -> Float[Array, "b layers six_w"]:
        """AdaLN modulation by the noise level: shift, scale and gate of self-attention and MLP, per block."""
        level = 0.25 * jnp.log(ops.at_least_float32(sigma))
        condition = self.sigma_emb(sinusoidal_embedding(level, self.config.width, sine_first=True, include_last=True))
        return jnp.stack([cast(_DecoderBlock, block).adaLN_zero(condition) for block in self.decoder.blocks], axis=1)

    @jax.named_scope("action_transformer.decoder")
    def decode_modulated(
        self,
        noisy_actions: Float[Array, "b k a"],
        modulations: Float[Array, "#b layers six_w"],
        context: Float[Array, "b m w"],
        *,
        action_in: RobotAffine | None = None,
        action_out: RobotAffine | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b k a"]:
        """`decode` for a noise level whose `modulations` are known; a batch of one applies to all examples."""
        if self.config.causal_cross_attention:
            # the mask hides everything from token k on: their keys and values need not be projected
            context = context[:, : noisy_actions.shape[1]]
        embedded = _plus(self.action_emb(noisy_actions), noisy_actions, action_in)
        actions = self.decoder(embedded, context, per_block=modulations, key=key)
        return ops.at_least_float32(_plus(self.action_pred(actions), actions, action_out))


def _plus(shared: Float[Array, "b k o"], x: Float[Array, "b k i"], own: RobotAffine | None) -> Float[Array, "b k o"]:
    """A projection of x that all robots share, and what each example's robot adds to it."""
    if own is None:
        return shared
    kernel, bias = (values.astype(shared.dtype) for values in own)
    return shared + jax.vmap(ops.linear)(x.astype(shared.dtype), ops.Affine(kernel, bias))


class _Stack(nnx.Module):
    """Blocks, each called with the same further arguments, its row of `per_block` and its own key, then a layer norm."""

    def __init__(self, blocks: list[nnx.Module], config: ActionTransformerConfig, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(blocks)
        self.ln = LayerNorm(config.width, use_bias=False, dtype=config.dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n w"], *shared: Array, per_block: Float[Array, "#b layers d"] | None = None, key: Key[Array, ""] | None
    ) -> Float[Array, "b n w"]:
        for number, (block, block_key) in enumerate(zip(self.blocks, _split(key, len(self.blocks)), strict=True)):
            own = () if per_block is None else (per_block[:, number],)
            with jax.named_scope(f"blocks.{number}"):
                x = block(x, *shared, *own, key=block_key)
        return self.ln(x)


class _EncoderBlock(nnx.Module):
    def __init__(self, config: ActionTransformerConfig, *, rngs: nnx.Rngs):
        self.residual_dropout = config.residual_dropout
        self.ln_1 = LayerNorm(config.width, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.attn = _attention(config, causal=False, rngs=rngs)
        self.ln_2 = LayerNorm(config.width, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.mlp = _mlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "b m w"], *, key: Key[Array, ""] | None) -> Float[Array, "b m w"]:
        keys = _split(key, 3)
        x = x + ops.dropout(self.attn(self.ln_1(x), key=keys[0]), self.residual_dropout, keys[1])
        return x + self.mlp(self.ln_2(x), key=keys[2])


class _DecoderBlock(nnx.Module):
    """Causal self-attention and MLP, both modulated by the noise level, around an unmodulated, ungated cross-attention."""

    def __init__(self, config: ActionTransformerConfig, *, rngs: nnx.Rngs):
        self.residual_dropout = config.residual_dropout
        self.ln_1 = LayerNorm(config.width, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.attn = _attention(config, causal=True, rngs=rngs)
        self.ln3 = LayerNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.cross_att = _attention(config, causal=config.causal_cross_attention, rngs=rngs)
        self.ln_2 = LayerNorm(config.width, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.mlp = _mlp(config, rngs=rngs)
        self.adaLN_zero = _Modulation(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b k w"], context: Float[Array, "b m w"], modulation: Float[Array, "#b six_w"], *, key: Key[Array, ""] | None
    ) -> Float[Array, "b k w"]:
        keys = _split(key, 5)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation[:, None], 6, axis=-1)
        attended = self.attn(shift_1 + scale_1 * self.ln_1(x), key=keys[0])
        x = x + gate_1 * ops.dropout(attended, self.residual_dropout, keys[1])
        x = x + ops.dropout(self.cross_att(self.ln3(x), context, key=keys[2]), self.residual_dropout, keys[3])
        return x + gate_2 * self.mlp(shift_2 + scale_2 * self.ln_2(x), key=keys[4])


class _Modulation(nnx.Module):
    """SiLU -> Linear -> (shift, scale, gate) of self-attention, then of the MLP. A modulated norm is shift + scale·LN(x), without 1 +."""

    def __init__(self, config: ActionTransformerConfig, *, rngs: nnx.Rngs):
        self.modulation = nnx.List([Identity(), Linear(config.width, 6 * config.width, dtype=config.dtype, rngs=rngs)])

    def __call__(self, condition: Float[Array, "b w"]) -> Float[Array, "b six_w"]:
        return self.modulation[1](ops.silu(condition))


def _attention(config: ActionTransformerConfig, *, causal: bool, rngs: nnx.Rngs) -> Attention:
    return Attention(
        config.width,
        heads=config.heads,
        qkv_bias=True,
        out_bias=False,
        causal=causal,
        dropout_rate=config.attention_dropout,
        names=("query", "key", "value", "c_proj"),
        dtype=config.dtype,
        rngs=rngs,
    )


def _mlp(config: ActionTransformerConfig, *, rngs: nnx.Rngs) -> MLP:
    return MLP(config.width, 4 * config.width, use_bias=False, dropout_rate=config.mlp_dropout, dtype=config.dtype, rngs=rngs)


def _split(key: Key[Array, ""] | None, count: int) -> list[Key[Array, ""] | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))
