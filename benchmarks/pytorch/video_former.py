"""The Video Former as a plain PyTorch module: the reference for equality and speed of the JAX one.

Parameter names and shapes are the published ones, so that a state dict of either side fits the other. Straightforward on purpose:
attention is `scaled_dot_product_attention` on projected keys and values, frames and positions are folded into the batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class VideoFormer(nn.Module):
    """Features [b t n c] -> tokens [b t·tokens_per_frame dim], frame-major. `temporal=False` is the 2D variant."""

    def __init__(
        self, *, dim=384, depth=6, heads=8, dim_head=64, frames=16, tokens_per_frame=14, condition_dim=2560, temporal: bool = True
    ):
        super().__init__()
        self.temporal = temporal
        self.latents = nn.Parameter(torch.randn(frames, tokens_per_frame, dim))
        self.time_pos_emb = nn.Parameter(torch.randn(frames, 1, dim))
        self.goal_emb = nn.Sequential(nn.Linear(condition_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.layers = nn.ModuleList()
        for _ in range(depth):
            parts = [PerceiverAttention(dim, heads, dim_head), _feed_forward(dim)]
            if temporal:
                parts.insert(1, TemporalAttention(dim, heads))
            self.layers.append(nn.ModuleList(parts))
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor) -> Tensor:
        batch, frames = features.shape[:2]
        media = (self.goal_emb(features) + self.time_pos_emb).flatten(0, 1)  # [b·t n d]
        tokens = self.latents.expand(batch, -1, -1, -1).flatten(0, 1)  # [b·t m d]
        for spatial, *temporal, feed_forward in self.layers:
            tokens = tokens + spatial(media, tokens)
            for attention in temporal:  # without a norm in front, as published
                series = tokens.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1)  # [b·m t d]
                series = series + attention(series)
                tokens = series.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)
            tokens = tokens + feed_forward(tokens)
        return self.norm(tokens.reshape(batch, -1, tokens.shape[-1]))


class LinearFormer(nn.Module):
    """The ablation's variant: one projection of every feature token, nothing pooled: [b t n c] -> [b t·n d]."""

    def __init__(self, *, dim=384, condition_dim=2560):
        super().__init__()
        self.proj = nn.Linear(condition_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features).flatten(1, 2)


class PerceiverAttention(nn.Module):
    """Latents [b n d] attend to media [b m d] and to themselves, both normalised; no biases."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads = heads
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, heads * dim_head, bias=False) for _ in range(3))
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        context = torch.cat([self.norm_media(media), latents], dim=1)
        return self.to_out(attend(self.to_q(latents), self.to_k(context), self.to_v(context), self.heads))


class TemporalAttention(nn.Module):
    """Self-attention of [b t d] with one projection for query, key and value."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1), self.heads))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of [b n h·c] arrays whose last axis is the concatenation of the heads."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False))
