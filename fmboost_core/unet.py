"""The velocity network of paper Tab. 8: the U-Net of guided diffusion, under its key names.

Every layer comes from an ``operations`` namespace and attention is a function, so that a host can supply its own and
move weights layer by layer. No parameter or buffer lives outside those layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import NetConfig

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q, k, v, heads) -> out, all (B, tokens, heads * head_channels)."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention, softmax(q k^T / sqrt(d)) v, by torch."""
    q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")


def linear_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Linear attention: q normalised over channels, k over tokens, so that k^T v is computed first."""
    q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=heads) for x in (q, k, v))
    q, k = q.softmax(-1) * q.shape[-1] ** -0.5, k.softmax(-2)
    return rearrange(q @ (k.transpose(-1, -2) @ v), "b h l d -> b l (h d)")


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """(B,) times in [0, 1], unscaled -> (B, channels) float32: cosines, then sines."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        parameter.detach().zero_()
    return layer


class _Sequence(nn.Sequential):
    """A sequence that passes the time embedding to the layers that take it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the time shifting and scaling the second norm."""

    def __init__(self, c_in: int, c_out: int, c_emb: int, config: NetConfig, ops: Any, kw: dict[str, Any]) -> None:
        super().__init__()
        self.scale_shift_norm = config.scale_shift_norm
        self.in_layers = nn.Sequential(
            ops.GroupNorm(32, c_in, **kw), nn.SiLU(), ops.Conv2d(c_in, c_out, 3, padding=1, **kw)
        )
        c_time = 2 * c_out if config.scale_shift_norm else c_out
        self.emb_layers = nn.Sequential(nn.SiLU(), ops.Linear(c_emb, c_time, **kw))
        self.out_layers = nn.Sequential(
            ops.GroupNorm(32, c_out, **kw),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            _zero(ops.Conv2d(c_out, c_out, 3, padding=1, **kw)),
        )
        self.skip_connection = nn.Identity() if c_in == c_out else ops.Conv2d(c_in, c_out, 1, **kw)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        time = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        norm, *rest = self.out_layers
        if self.scale_shift_norm:
            scale, shift = time.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + time)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over pixels, on heads * head_channels inner channels.

    The layout ``fm_boosting`` repeats the authors' released code, which views (B, 3*heads*d, L) as (B, heads, L, 3*d)
    without a transpose, so that a token is a strip of one channel. Weights trained that way need it.
    """

    def __init__(self, channels: int, config: NetConfig, attention: Attention, ops: Any, kw: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.layout, self.attention = config.num_heads, config.attention_layout, attention
        inner = config.num_heads * config.head_channels
        self.norm = ops.GroupNorm(32, channels, **kw)
        self.qkv = ops.Conv1d(channels, 3 * inner, 1, **kw)
        self.proj_out = _zero(ops.Conv1d(inner, channels, 1, **kw))

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        qkv = self.qkv(self.norm(rearrange(x, "b c h w -> b c (h w)")))
        if self.layout == "standard":
            # Contiguous: torch otherwise takes the implementation that stores all L x L weights.
            q, k, v = rearrange(qkv, "b (n c) l -> n b l c", n=3).contiguous()
            out = rearrange(self.attention(q, k, v, self.heads), "b l c -> b c l")
        else:
            strips = qkv.reshape(qkv.shape[0], self.heads, height * width, -1)
            q, k, v = rearrange(strips, "b h l (n d) -> n b l (h d)", n=3)
            out = rearrange(self.attention(q, k, v, self.heads), "b l (h d) -> b h l d", h=self.heads)
            out = out.reshape(out.shape[0], -1, height * width)
        return x + rearrange(self.proj_out(out), "b c (h w) -> b c h w", h=height)


class Downsample(nn.Module):
    def __init__(self, channels: int, config: NetConfig, ops: Any, kw: dict[str, Any]) -> None:
        super().__init__()
        strided = config.conv_resample
        self.op = ops.Conv2d(channels, channels, 3, stride=2, padding=1, **kw) if strided else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, config: NetConfig, ops: Any, kw: dict[str, Any]) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1, **kw) if config.conv_resample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class _Pool(nn.Module):
    def __init__(self, c_in: int, c_out: int, factor: int, ops: Any, kw: dict[str, Any]) -> None:
        super().__init__()
        self.down_conv = ops.Conv2d(c_in, c_out, factor, stride=factor, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_conv(x)


class _Unpool(nn.Module):
    def __init__(self, c_in: int, c_out: int, factor: int, ops: Any, kw: dict[str, Any]) -> None:
        super().__init__()
        self.up_conv = ops.ConvTranspose2d(c_in, c_out, factor, stride=factor, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_conv(x)


class UNet(nn.Module):
    """v(t, [x_t, context]): the velocity of the flow at time t (paper Eq. 13).

    A fresh network is the identity flow: its last convolution is zero, unless the network pools. `context_encoder` is
    the network that makes the context, for models that have one; it is a child so that one module holds a model.
    """

    context_encoder: nn.Module | None

    def __init__(
        self,
        config: NetConfig,
        *,
        operations: Any = nn,
        attention: Attention = sdpa,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.context_encoder = config, None
        ops, kw = operations, {"dtype": dtype, "device": device}
        c_emb = 4 * config.model_channels
        width = config.channel_mult[0] * config.model_channels  # of the first and the last layers
        outer = linear_attention if config.linear_attention else attention

        def level(c_in: int, c_out: int, factor: int) -> list[nn.Module]:
            layers: list[nn.Module] = [ResBlock(c_in, c_out, c_emb, config, ops, kw)]
            if factor in config.attention_resolutions:
                layers.append(AttentionBlock(c_out, config, outer, ops, kw))
            return layers

        self.time_embed = nn.Sequential(
            ops.Linear(config.model_channels, c_emb, **kw), nn.SiLU(), ops.Linear(c_emb, c_emb, **kw)
        )
        pooled = config.pool_factor > 1
        if pooled:
            self.pool = _Pool(config.in_channels, width, config.pool_factor, ops, kw)
            self.un_pool = _Unpool(width, config.out_channels, config.pool_factor, ops, kw)
        c, factor = width, 1
        first = ops.Conv2d(width if pooled else config.in_channels, width, 3, padding=1, **kw)
        self.input_blocks = nn.ModuleList([_Sequence(first)])
        skips = [c]
        last = len(config.channel_mult) - 1
        for i, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(_Sequence(*level(c, mult * config.model_channels, factor)))
                c = mult * config.model_channels
                skips.append(c)
            if i < last:
                self.input_blocks.append(_Sequence(Downsample(c, config, ops, kw)))
                skips.append(c)
                factor *= 2
        self.middle_block = _Sequence(
            ResBlock(c, c, c_emb, config, ops, kw),
            AttentionBlock(c, config, attention, ops, kw),
            ResBlock(c, c, c_emb, config, ops, kw),
        )
        self.output_blocks = nn.ModuleList()
        for i, mult in reversed(list(enumerate(config.channel_mult))):
            for j in range(config.num_res_blocks + 1):
                layers = level(c + skips.pop(), mult * config.model_channels, factor)
                c = mult * config.model_channels
                if i > 0 and j == config.num_res_blocks:
                    layers.append(Upsample(c, config, ops, kw))
                    factor //= 2
                self.output_blocks.append(_Sequence(*layers))
        head = ops.Conv2d(width, width if pooled else config.out_channels, 3, padding=1, **kw)
        self.out = nn.Sequential(ops.GroupNorm(32, width, **kw), nn.SiLU(), head if pooled else _zero(head))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x, context (B, C, h, w) with h, w multiples of `config.size_multiple`; t (B,) in [0, 1] -> (B, C, h, w)."""
        emb = self.time_embed(time_embedding(t, self.config.model_channels).to(x.dtype))
        h = torch.cat([x, context], dim=1)
        if self.config.pool_factor > 1:
            h = self.pool(h)
        skips: list[Tensor] = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        h = self.out(h)
        return self.un_pool(h) if self.config.pool_factor > 1 else h
