"""The networks of ESRGAN, Real-ESRGAN compact and SwinIR in torch, written from their papers.

Parameter names are those of the published checkpoints (BasicSR's for ESRGAN). `test_upscalers.py`
compares these classes with those of spandrel where that is installed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def padded(x: Tensor, multiple: int) -> Tensor:
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="reflect")


class Dense(nn.Module):
    """A residual dense block; `plus` adds the shortcuts of ESRGAN+."""

    def __init__(self, width: int, growth: int, plus: bool) -> None:
        super().__init__()
        for i in range(1, 6):
            outputs = width if i == 5 else growth
            setattr(self, f"conv{i}", conv(width + (i - 1) * growth, outputs))
        self.plus = plus
        if plus:
            self.conv1x1 = conv(width, growth, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for i in range(1, 5):
            made = leaky(getattr(self, f"conv{i}")(torch.cat(seen, 1)))
            if self.plus and i == 2:
                made = made + self.conv1x1(x)
            if self.plus and i == 4:
                made = made + seen[2]
            seen.append(made)
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class Three(nn.Module):
    """Three dense blocks within a residual."""

    def __init__(self, *arguments: int) -> None:
        super().__init__()
        for i in (1, 2, 3):
            setattr(self, f"rdb{i}", Dense(*arguments))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class Rrdb(nn.Module):
    def __init__(
        self, width: int, growth: int, blocks: int, doublings: int, unshuffle: int, plus: bool
    ) -> None:
        super().__init__()
        self.unshuffle, self.doublings = unshuffle, doublings
        self.conv_first = conv(3 * unshuffle**2, width)
        self.body = nn.ModuleList([Three(width, growth, plus) for _ in range(blocks)])
        self.conv_body = conv(width, width)
        for i in range(doublings):
            setattr(self, f"conv_up{i + 1}", conv(width, width))
        self.conv_hr, self.conv_last = conv(width, width), conv(width, 3)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        first = self.conv_first(F.pixel_unshuffle(padded(image, self.unshuffle), self.unshuffle))
        x = first
        for block in self.body:
            x = block(x)
        x = first + self.conv_body(x)
        for i in range(self.doublings):
            x = leaky(getattr(self, f"conv_up{i + 1}")(doubled(x)))
        x = self.conv_last(leaky(self.conv_hr(x)))
        scale = 2**self.doublings // self.unshuffle
        return x[:, :, : height * scale, : width * scale]


class Srvgg(nn.Module):
    def __init__(self, width: int, blocks: int, scale: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, width), nn.PReLU(width)]
        for _ in range(blocks):
            layers += [conv(width, width), nn.PReLU(width)]
        self.body = nn.ModuleList([*layers, conv(width, 3 * scale**2)])
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for layer in self.body:
            x = layer(x)
        base = F.interpolate(image, scale_factor=self.scale, mode="nearest")
        return F.pixel_shuffle(x, self.scale) + base


class Attention(nn.Module):
    """Self-attention within windows; the bias depends on the distance of two points."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        points = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        distance = points[:, :, None] - points[:, None, :] + window - 1
        index = distance[0] * (2 * window - 1) + distance[1]
        self.register_buffer("relative_position_index", index)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x [windows, tokens, width]; hidden [windows, tokens, tokens] is true where none is seen."""
        windows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(
            2, 0, 1
        )
        weights = scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(windows, tokens, width))


def part(x: Tensor, window: int) -> Tensor:
    """[N, H, W, C] to [windows, window^2, C]."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window**2, channels)


def join(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    x = windows.reshape(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        if shift:  # published files hold what was computed for the size of the training pictures
            self.register_buffer("attn_mask", torch.zeros(4, window**2, window**2))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, window)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, H, W, C]."""
        n, height, width, _ = x.shape
        # A point sees another of its window unless one of them was rolled in from the far side.
        side = torch.zeros(n, height, width, 1)
        if self.shift:
            side[:, -self.shift :] += 1
            side[:, :, -self.shift :] += 2
        side = part(side, self.window)
        hidden = side != side.transpose(1, 2)
        rolled = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        made = join(self.attn(part(rolled, self.window), hidden), self.window, height, width)
        x = x + torch.roll(made, (self.shift, self.shift), (1, 2))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


def swin_conv(width: int, bottleneck: bool) -> nn.Module:
    if not bottleneck:
        return conv(width, width)
    narrow = width // 4
    layers = conv(width, narrow), conv(narrow, narrow, 1), conv(narrow, width)
    return nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2), layers[2])


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class SwinLayer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, window: int, bottleneck: bool) -> None:
        super().__init__()
        self.residual_group = nn.Module()
        shifts = [window // 2 if i % 2 else 0 for i in range(depth)]
        self.residual_group.blocks = nn.ModuleList(
            [SwinBlock(width, heads, window, shift) for shift in shifts]
        )
        self.conv = swin_conv(width, bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for block in self.residual_group.blocks:
            h = block(h)
        return x + channels_last(self.conv(channels_first(h)))


class SwinIr(nn.Module):
    def __init__(
        self,
        width: int,
        depths: list[int],
        heads: int,
        window: int,
        upsampler: str,
        scale: int,
        bottleneck: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.window, self.upsampler, self.scale = window, upsampler, scale
        self.range = 255.0 if window == 7 else 1.0
        mean = [0.4488, 0.4371, 0.4040] if channels == 3 else [0.0]
        self.mean = torch.tensor(mean).reshape(1, -1, 1, 1)
        self.conv_first = conv(channels, width)
        self.patch_embed = nn.Module()
        self.patch_embed.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            [SwinLayer(width, depth, heads, window, bottleneck) for depth in depths]
        )
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = swin_conv(width, bottleneck)
        inner = 64
        doublings = scale.bit_length() - 1
        if upsampler in ("pixelshuffle", "nearest+conv"):
            self.conv_before_upsample = nn.Sequential(conv(width, inner), nn.LeakyReLU())
        if upsampler == "pixelshuffle":
            factors = [3] if scale == 3 else [2] * doublings
            stages = [(conv(inner, inner * f * f), nn.PixelShuffle(f)) for f in factors]
            self.upsample = nn.Sequential(*[layer for stage in stages for layer in stage])
        elif upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv(width, channels * scale**2), nn.PixelShuffle(scale))
        elif upsampler == "nearest+conv":
            self.ups = [f"conv_up{i + 1}" for i in range(doublings)]
            for name in self.ups:
                setattr(self, name, conv(inner, inner))
            self.conv_hr = conv(inner, inner)
        if upsampler != "pixelshuffledirect":
            self.conv_last = conv(width if upsampler == "" else inner, channels)

    def features(self, x: Tensor) -> Tensor:
        first = self.conv_first(x)
        h = self.patch_embed.norm(channels_last(first))
        for layer in self.layers:
            h = layer(h)
        return first + self.conv_after_body(channels_first(self.norm(h)))

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        x = (padded(image, self.window) - self.mean) * self.range
        h = self.features(x)
        if self.upsampler == "":
            x = x + self.conv_last(h)
        elif self.upsampler == "pixelshuffledirect":
            x = self.upsample(h)
        else:
            h = self.conv_before_upsample(h)
            if self.upsampler == "pixelshuffle":
                h = self.upsample(h)
            else:
                for name in self.ups:
                    h = leaky(getattr(self, name)(doubled(h)))
                h = leaky(self.conv_hr(h))
            x = self.conv_last(h)
        x = x / self.range + self.mean
        return x[:, :, : height * self.scale, : width * self.scale]
