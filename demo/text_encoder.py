"""The text encoder: a small ``CLIPTextModel``, trained on its own and then frozen.

Training it alone is what makes the whole affordable on a CPU: linear heads must read the
caption's facts (shape, colour, background, size word) off every position from the end token on.
Since all later positions are fillers that see the whole text, the denoiser finds the facts in
many places of its context. The heads are thrown away afterwards.

:data:`NARROW` is the encoder of the Stable Diffusion 1 class model. :data:`PAIR` are the two of the
rectified-flow model, which is read as Stable Diffusion 3 is: the context is the state before the last layer
without the last norm, and a projection of the end token's last state is the pooled text. So their heads
read both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from demo import shapes
from demo.tokenizer import LENGTH, encode, load_tokenizer
from demo.training import Clock, Settings, Team, learning_rate, log

WIDTH = 128
"""Width of the context that the denoiser attends to."""

_BATCH = 32
_PEAK_RATE = 2e-3
_NO_SIZE = ""
_SIZE_CLASSES = (_NO_SIZE, "small", "large")
_FACTS = (shapes.SHAPES, tuple(shapes.COLOURS), tuple(shapes.COLOURS), _SIZE_CLASSES)


@dataclass(frozen=True)
class Build:
    """What differs between two encoders."""

    name: str = "text_encoder"
    """Of the folder, and of the log."""
    width: int = WIDTH
    length: int = LENGTH
    """Positions."""
    activation: str = "quick_gelu"
    filler: int | None = None
    """The id that fills a text up; None for the end token."""
    projection: int | None = None
    """Width of the pooled text; None for an encoder whose last states are read."""


NARROW = Build()
PAIR = (
    # Their pooled texts are as wide as those of CLIP-L and OpenCLIP bigG, whose places they take.
    Build("pair_text_encoder", 64, 24, "quick_gelu", None, 768),
    Build("pair_text_encoder_2", 64, 24, "gelu", 0, 1280),
)


def new_model(vocabulary: int, build: Build = NARROW) -> CLIPTextModel:
    """Return the untrained encoder for a vocabulary whose last two ids are start and end."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=build.width,
        intermediate_size=4 * build.width,
        projection_dim=build.projection or build.width,
        num_hidden_layers=3,
        num_attention_heads=build.width // 32,
        max_position_embeddings=build.length,
        hidden_act=build.activation,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return (CLIPTextModelWithProjection if build.projection else CLIPTextModel)(config)


@dataclass(frozen=True)
class Reading:
    """What a denoiser reads."""

    context: Tensor
    """[N, length, width]."""
    pooled: Tensor
    """[N, width or projection]: the end token's state."""


def read(model: CLIPTextModel, ids: Tensor, build: Build = NARROW) -> Reading:
    """Run an encoder over ids [N, length]."""
    output = model(ids, output_hidden_states=True)
    if build.projection:
        return Reading(output.hidden_states[-2], output.text_embeds)
    return Reading(output.last_hidden_state, output.pooler_output)


def _loosely(text: str, rng: random.Random) -> str:
    """Drop an article or the word "background" now and then, as people do."""
    droppable = {"a": 0.15, "an": 0.15, "background": 0.08}
    return " ".join(w for w in text.split() if rng.random() >= droppable.get(w, 0.0))


def _example(rng: random.Random, triples: list[shapes.Triple]) -> tuple[str, list[int]]:
    """Return a random caption and the class of each of its facts."""
    triple = rng.choice(triples)
    size = rng.choice(tuple(shapes.RADII))
    word = rng.choice(shapes.SIZE_WORDS[size])
    text = _loosely(shapes.caption(triple, word, rng.choice(shapes.TEMPLATES)), rng)
    facts = (*triple, size if word else _NO_SIZE)
    return text, [names.index(fact) for names, fact in zip(_FACTS, facts, strict=True)]


def _from_end(ids: Tensor) -> Tensor:
    """Return the mask of the first end token and everything after it, [N, length]."""
    return (ids == ids.max()).cumsum(dim=1) > 0  # the end token has the largest id


def train(settings: Settings, team: Team, build: Build = NARROW) -> None:
    """Train the encoder within the time budget and write it as a transformers folder.

    The stage takes minutes, so it has no checkpoint: an interrupted run starts again.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed + team.rank)
    tokenizer = load_tokenizer(settings.folder)
    model = new_model(len(tokenizer), build).to(settings.device)
    heads = _Heads(build).to(settings.device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    triples = shapes.training_triples()
    clock, step, progress = Clock(settings.minutes), 0, 0.0
    while progress < 1:
        texts, facts = zip(*(_example(rng, triples) for _ in range(_BATCH)), strict=True)
        ids = torch.tensor(_ids(tokenizer, list(texts), build), device=settings.device)
        target = torch.tensor(facts, device=settings.device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(_PEAK_RATE, progress, step)
        optimiser.zero_grad(set_to_none=True)
        loss = heads.loss(read(model, ids, build), ids, target)
        loss.backward()  # type: ignore[no-untyped-call]
        progress = team.average_gradients(parameters, clock.spent) / clock.budget
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if team.leads and step % 50 == 0:
            log(settings.folder, build.name, step=step, spent=clock.spent, loss=loss.item())
    if team.leads:
        accuracy = _held_out_accuracy(model, heads, settings, build)
        log(settings.folder, build.name, step=step, held_out=accuracy)
        model.save_pretrained(settings.folder / build.name)


def _ids(tokenizer: CLIPTokenizer, texts: list[str], build: Build) -> list[list[int]]:
    return encode(tokenizer, texts, build.length, build.filler)


class _Heads(nn.Module):
    """Linear maps from what a denoiser reads to the facts, one set for each thing that it reads."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.context = nn.ModuleList([nn.Linear(build.width, len(names)) for names in _FACTS])
        self.pooled = nn.ModuleList(
            [nn.Linear(build.projection, len(names)) for names in _FACTS if build.projection]
        )

    def loss(self, reading: Reading, ids: Tensor, target: Tensor) -> Tensor:
        """Return the sum of all cross-entropies."""
        where = _from_end(ids)
        owner = where.nonzero()[:, 0]
        pairs = [(h(reading.context[where]), target[owner, i]) for i, h in enumerate(self.context)]
        pairs += [(h(reading.pooled), target[:, i]) for i, h in enumerate(self.pooled)]
        return torch.stack([functional.cross_entropy(*pair) for pair in pairs]).sum()

    def are_right(self, reading: Reading, ids: Tensor, target: Tensor) -> Tensor:
        """Return which texts have all facts read right at the end token (and off the pooled text)."""
        ends = _from_end(ids).int().argmax(dim=1)
        at_end = reading.context[torch.arange(len(ids)), ends]
        sets = [[h(at_end) for h in self.context], [h(reading.pooled) for h in self.pooled]]
        guesses = [torch.stack([x.argmax(dim=1) for x in s], dim=1) for s in sets if s]
        return torch.stack([(guess == target).all(dim=1) for guess in guesses]).all(dim=0)


@torch.no_grad()
def _held_out_accuracy(
    model: CLIPTextModel, heads: _Heads, settings: Settings, build: Build
) -> float:
    """Return the part of never-trained captions whose facts are all read right."""
    rng = random.Random(11)
    examples = [_example(rng, shapes.held_out_triples()) for _ in range(500)]
    ids = _ids(load_tokenizer(settings.folder), [text for text, _ in examples], build)
    tokens = torch.tensor(ids, device=settings.device)
    target = torch.tensor([facts for _, facts in examples], device=settings.device)
    right = heads.are_right(read(model.eval(), tokens, build), tokens, target)
    return float(right.float().mean())


def load_text_encoder(folder: Path, build: Build = NARROW) -> CLIPTextModel:
    """Load the trained encoder from the stage's folder."""
    kind = CLIPTextModelWithProjection if build.projection else CLIPTextModel
    model: CLIPTextModel = kind.from_pretrained(folder / build.name)
    return model.eval()


@torch.no_grad()
def read_texts(folder: Path, texts: list[str], build: Build = NARROW) -> Reading:
    """Return what a denoiser reads of texts, float16."""
    tokenizer, model = load_tokenizer(folder), load_text_encoder(folder, build)
    parts = []
    for start in range(0, len(texts), 128):
        ids = torch.tensor(_ids(tokenizer, texts[start : start + 128], build))
        parts.append(read(model, ids, build))
    return Reading(
        torch.cat([part.context for part in parts]).half(),
        torch.cat([part.pooled for part in parts]).half(),
    )
