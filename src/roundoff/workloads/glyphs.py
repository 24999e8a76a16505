"""`text-to-image`: a diffusion transformer of diffusers that draws letters from their names.

    B 32 images    16 x 16 points, 64 patches of 2 x 2    L 8 words of a caption
    x [B,1,16,16] image in [-1, 1]    e noise    t [B] in [0, 1]    x_t = (1 - t) x + t e

The model is PixArt's: self-attention over patches, cross-attention to the caption. It learns
the velocity e - x of the straight path from an image to noise (flow matching; Lipman et al. 2023).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from roundoff.registry import require
from roundoff.state.random_states import seeded
from roundoff.workloads.protocol import Pictures, Task, Workload, generator_of, needs

__all__ = ["GLYPHS", "captioned"]

PURPOSE = "the workload 'text-to-image'"
BATCH, SIZE, WORDS, WIDTH = 32, 16, 8, 64
FONT_SIZE, BASELINE = 15, 12
NO_CAPTION = 0.1  # the share of images without one, for guidance
FONTS = {
    "DejaVuSans": "SANS",
    "DejaVuSans-Bold": "SANS BOLD",
    "DejaVuSerif": "SERIF",
    "DejaVuSerif-Bold": "SERIF BOLD",
}
LETTERS = "AZ az 09 ΑΡ ΣΩ αω АЯ ая"
SHAPE = {
    "num_attention_heads": 4,
    "attention_head_dim": WIDTH // 4,
    "num_layers": 3,
    "in_channels": 1,
    "out_channels": 1,
    "cross_attention_dim": WIDTH,
    "sample_size": SIZE,
    "patch_size": 2,
    "interpolation_scale": 1,
}


def characters() -> list[str]:
    """Letters and digits of three scripts."""
    return [chr(c) for first, last in LETTERS.split() for c in range(ord(first), ord(last) + 1)]


@cache
def captioned() -> tuple[Tensor, tuple[str, ...]]:
    """All images [n,16,16] in [0, 1] and their captions: the character's name, and the font's."""
    images, captions = zip(*_drawn(), strict=True)
    return torch.stack(images), captions


def _drawn() -> Iterator[tuple[Tensor, str]]:
    matplotlib: Any = require("matplotlib", extra="train", purpose=PURPOSE)
    pillow: Any = require("PIL", extra="train", purpose=PURPOSE)
    require("PIL.ImageDraw", extra="train", purpose=PURPOSE)
    require("PIL.ImageFont", extra="train", purpose=PURPOSE)
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    for file, style in FONTS.items():
        font = pillow.ImageFont.truetype(str(folder / f"{file}.ttf"), FONT_SIZE)
        for character in characters():
            image = pillow.Image.new("L", (SIZE, SIZE))
            drawing = pillow.ImageDraw.Draw(image)
            drawing.text((SIZE / 2, BASELINE), character, fill=255, font=font, anchor="ms")
            points = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            yield points.view(SIZE, SIZE) / 255, f"{unicodedata.name(character)} {style}"


@cache
def _vocabulary() -> dict[str, int]:
    """Numbers of words; 0 is no word, 1 stands for no caption."""
    words = sorted({word for caption in captioned()[1] for word in caption.split()})
    return {word: number for number, word in enumerate(words, 2)}


def _numbers(captions: tuple[str, ...]) -> Tensor:
    """[n,L] words as numbers."""
    known = _vocabulary()
    numbers = torch.zeros(len(captions), WORDS, dtype=torch.long)
    for row, caption in zip(numbers, captions, strict=True):
        said = [known[word] for word in caption.split()][:WORDS]
        row[: len(said)] = torch.tensor(said)
    return numbers


@cache
def _data() -> tuple[Tensor, Tensor]:
    """Images [n,1,16,16] in [-1, 1] and captions [n,L]."""
    images, captions = captioned()
    return images[:, None] * 2 - 1, _numbers(captions)


class Drawer(nn.Module):
    """A transformer, and an embedding of words and places that is trained with it."""

    def __init__(self, transformer: nn.Module, words: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.words = nn.Embedding(words, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(WORDS, WIDTH))

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """The velocity [B,1,16,16] at x and t under captions [B,L]."""
        return self.transformer(
            x,
            encoder_hidden_states=self.words(words) + self.places,
            encoder_attention_mask=(words > 0).to(x.dtype),
            timestep=t * 1000,
        ).sample


def _build(init_seed: int, data_seed: int) -> Task:
    require("diffusers", extra="train", purpose=PURPOSE)
    module: Any = require(
        "diffusers.models.transformers.pixart_transformer_2d", extra="train", purpose=PURPOSE
    )
    with seeded(init_seed):
        model = Drawer(module.PixArtTransformer2DModel(**SHAPE), len(_vocabulary()) + 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    scheduler = LambdaLR(optimizer, _pace)
    return Task(model, optimizer, lambda step: _batch(data_seed, step), _loss, scheduler, _sample)


def _pace(step: int) -> float:
    """Up for 100 steps; from 1000 on down as the root of the step."""
    return min((step + 1) / 100, (1000 / max(step, 1000)) ** 0.5)


Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def _batch(data_seed: int, step: int) -> Batch:
    """Images x, captions, times t, noise e."""
    images, captions = _data()
    generator = generator_of(data_seed, step)
    picked = torch.randint(len(images), (BATCH,), generator=generator)
    words = captions[picked]
    nothing = torch.rand(BATCH, 1, generator=generator) < NO_CAPTION
    words = torch.where(nothing, _no_caption(BATCH), words)
    t = torch.randn(BATCH, generator=generator).sigmoid()
    noise = torch.randn(BATCH, 1, SIZE, SIZE, generator=generator)
    return images[picked], words, t, noise


def _no_caption(count: int) -> Tensor:
    return functional.one_hot(torch.zeros(count, dtype=torch.long), WORDS)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean square of what is missing from the velocity."""
    device = next(model.parameters()).device
    x, words, t, noise = (part.to(device) for part in batch)
    at = t[:, None, None, None]
    return functional.mse_loss(model((1 - at) * x + at * noise, t, words), noise - x)


SAMPLES = tuple(
    f"{unicodedata.name(c)} {style}" for style in ("SANS", "SERIF BOLD") for c in "ARgk58ΔΩλЖДю"
)


@torch.no_grad()
def _sample(model: nn.Module, *, steps: int = 30, guidance: float = 2.0) -> Pictures:
    """Two dozen letters, from the same noise for every model."""
    device = next(model.parameters()).device
    words = torch.cat([_numbers(SAMPLES), _no_caption(len(SAMPLES))]).to(device)
    x = torch.randn(len(SAMPLES), 1, SIZE, SIZE, generator=generator_of(0, 0)).to(device)
    for i in range(steps):
        t = torch.full((len(words),), 1 - i / steps, device=device)
        wanted, free = model(torch.cat([x, x]), t, words).chunk(2)
        x = x - (free + guidance * (wanted - free)) / steps
    return Pictures(((x[:, 0].float().cpu() + 1) / 2).clamp(0, 1), SAMPLES)


GLYPHS = Workload(
    "text-to-image",
    "a diffusion transformer with cross-attention draws letters from their names",
    _build,
    needs("diffusers", "matplotlib"),
)
