"""The diffusion policy as plain PyTorch modules: network, EDM wrapper and DDIM loop, compared with the JAX ones for equality and speed.

Parameter names and shapes are the published ones (without the tensors that no forward pass reads). The published sampler runs the
encoder again in every denoising step although its input never changes; `sample_actions(encode_once=True)` does not.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ActionTransformer(nn.Module):
    """Encoder of the conditions and AdaLN decoder of a noisy action chunk [b k a]. `goal` [b g], `tokens` [b n d], `proprio` [b p]."""

    def __init__(
        self,
        *,
        action_dim=7,
        width=384,
        heads=8,
        encoder_layers=4,
        decoder_layers=4,
        goal_dim=512,
        token_dim=384,
        proprio_dim=0,
        causal_cross_attention=True,
        attention_dropout=0.3,
        residual_dropout=0.1,
        mlp_dropout=0.05,
    ):
        super().__init__()
        rates = (attention_dropout, residual_dropout, mlp_dropout)
        self.tok_emb = nn.Linear(token_dim, width)
        self.lang_emb = nn.Sequential(nn.Linear(goal_dim, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        if proprio_dim:
            self.proprio_emb = nn.Sequential(nn.Linear(proprio_dim, 2 * width), nn.Mish(), nn.Linear(2 * width, width))
        self.sigma_emb = nn.Sequential(Sinusoid(width), nn.Linear(width, 2 * width), nn.Mish(), nn.Linear(2 * width, width))
        self.action_emb = nn.Linear(action_dim, width)
        self.action_pred = nn.Linear(width, action_dim)
        self.encoder = Stack([EncoderBlock(width, heads, *rates) for _ in range(encoder_layers)], width)
        self.decoder = Stack([DecoderBlock(width, heads, *rates, causal_cross_attention) for _ in range(decoder_layers)], width)

    def encode(self, tokens: Tensor, goal: Tensor, proprio: Tensor | None = None) -> Tensor:
        parts = [self.lang_emb(goal)[:, None], self.tok_emb(tokens)]
        if proprio is not None:
            parts.append(self.proprio_emb(proprio)[:, None])
        return self.encoder(torch.cat(parts, dim=1))

    def decode(self, noisy: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        condition = self.sigma_emb(sigma.log() / 4)[:, None]
        return self.action_pred(self.decoder(self.action_emb(noisy), condition, context))


class Denoiser(nn.Module):
    """EDM's preconditioning around the network, which is named `inner_model` as in the published state dict."""

    def __init__(self, inner_model: ActionTransformer, sigma_data: float = 0.5):
        super().__init__()
        self.inner_model, self.sigma_data = inner_model, sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in, each [b 1 1]."""
        sigma = sigma[:, None, None]
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt()

    def denoise(self, noisy: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        c_skip, c_out, c_in = self.coefficients(sigma)
        return c_skip * noisy + c_out * self.inner_model.decode(c_in * noisy, sigma, context)

    def forward(self, noisy: Tensor, sigma: Tensor, *conditions: Tensor | None) -> Tensor:
        """One denoising call as published: the encoder included."""
        return self.denoise(noisy, sigma, self.inner_model.encode(*conditions))

    def loss(self, actions: Tensor, noise: Tensor, sigma: Tensor, *conditions: Tensor | None) -> Tensor:
        """Mean squared error of the network's output against the exact one."""
        noisy = actions + sigma[:, None, None] * noise
        c_skip, c_out, c_in = self.coefficients(sigma)
        output = self.inner_model.decode(c_in * noisy, sigma, self.inner_model.encode(*conditions))
        return functional.mse_loss(output, (actions - c_skip * noisy) / c_out)

    def sample_actions(self, start: Tensor, sigmas: Tensor, *conditions: Tensor | None, encode_once: bool = False) -> Tensor:
        """DDIM down `sigmas`, whose last value is 0, from `start` [b k a] at sigmas[0]."""
        context = self.inner_model.encode(*conditions) if encode_once else None
        x = start
        for sigma, following in itertools.pairwise(sigmas):
            level = sigma.expand(len(x))
            denoised = self.denoise(x, level, context) if encode_once else self(x, level, *conditions)
            ratio = following / sigma
            x = ratio * x + (1 - ratio) * denoised
        return x


class Sinusoid(nn.Module):
    """[b] -> [sin, cos] [b d] with frequencies from 1 to 1/10000, both included."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.register_buffer("frequency", torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1)), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        angles = values[:, None] * self.frequency
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Stack(nn.Module):
    """Blocks, then a layer norm without bias."""

    def __init__(self, blocks: list[nn.Module], width: int):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.ln = nn.LayerNorm(width, bias=False)

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, *conditions)
        return self.ln(x)


class EncoderBlock(nn.Module):
    """Full self-attention and MLP, both pre-normed and residual."""

    def __init__(self, width: int, heads: int, attention_dropout: float, residual_dropout: float, mlp_dropout: float):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads, attention_dropout, residual_dropout, causal=False)
        self.mlp = FeedForward(width, mlp_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class DecoderBlock(nn.Module):
    """Causal self-attention and MLP, modulated and gated by the noise level, around a cross-attention that is neither."""

    def __init__(
        self, width: int, heads: int, attention_dropout: float, residual_dropout: float, mlp_dropout: float, causal_cross_attention: bool
    ):
        super().__init__()
        self.ln_1, self.ln3, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width), nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads, attention_dropout, residual_dropout, causal=True)
        self.cross_att = Attention(width, heads, attention_dropout, residual_dropout, causal=causal_cross_attention)
        self.mlp = FeedForward(width, mlp_dropout)
        self.adaLN_zero = Modulation(width)

    def forward(self, x: Tensor, condition: Tensor, context: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_zero(condition)
        x = x + gate_1 * self.attn(shift_1 + scale_1 * self.ln_1(x))
        x = x + self.cross_att(self.ln3(x), context)
        return x + gate_2 * self.mlp(shift_2 + scale_2 * self.ln_2(x))


class Attention(nn.Module):
    """Attention of x [b n w] to a context [b m w]. Causal: query i sees keys 0…i, also where m is not n (PyTorch's `is_causal`)."""

    def __init__(self, width: int, heads: int, attention_dropout: float, residual_dropout: float, *, causal: bool):
        super().__init__()
        self.heads, self.causal, self.attention_dropout = heads, causal, attention_dropout
        self.key, self.query, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.residual_dropout = nn.Dropout(residual_dropout)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.query(x), self.key(context), self.value(context)))
        rate = self.attention_dropout if self.training else 0.0
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=self.causal)
        return self.residual_dropout(self.c_proj(out.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear maps without bias around a GELU."""

    def __init__(self, width: int, rate: float):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(functional.gelu(self.c_fc(x))))


class Modulation(nn.Module):
    """[b 1 w] -> shift, scale and gate of self-attention, then of the MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.modulation(condition).chunk(6, dim=-1)
