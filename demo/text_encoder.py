"""The text encoder: a small ``CLIPTextModel``, trained on its own and then frozen.

Training it alone is what makes the whole affordable on a CPU: linear heads must read the
caption's facts (shape, colour, background, size word) off every position from the end token on.
Since all later positions are fillers that see the whole text, the denoiser finds the facts in
many places of its context. The heads are thrown away afterwards.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

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


def new_model(vocabulary: int) -> CLIPTextModel:
    """Return the untrained encoder for a vocabulary whose last two ids are start and end."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


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


def _from_end(ids: Tensor, end: int) -> Tensor:
    """Return the mask of the first end token and everything after it, [N, LENGTH]."""
    return (ids == end).cumsum(dim=1) > 0


def train(settings: Settings, team: Team) -> None:
    """Train the encoder within the time budget and write it as a transformers folder.

    The stage takes minutes, so it has no checkpoint: an interrupted run starts again.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed + team.rank)
    tokenizer = load_tokenizer(settings.folder)
    model = new_model(len(tokenizer)).to(settings.device)
    heads = nn.ModuleList([nn.Linear(WIDTH, len(names)) for names in _FACTS]).to(settings.device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    triples = shapes.training_triples()
    clock, step, progress = Clock(settings.minutes), 0, 0.0
    while progress < 1:
        texts, facts = zip(*(_example(rng, triples) for _ in range(_BATCH)), strict=True)
        ids = torch.tensor(encode(tokenizer, list(texts)), device=settings.device)
        target = torch.tensor(facts, device=settings.device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(_PEAK_RATE, progress, step)
        optimiser.zero_grad(set_to_none=True)
        loss = _loss(model, heads, ids, target)
        loss.backward()  # type: ignore[no-untyped-call]
        progress = team.average_gradients(parameters, clock.spent) / clock.budget
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if team.leads and step % 50 == 0:
            log(settings.folder, "text", step=step, spent=clock.spent, loss=loss.item())
    if team.leads:
        accuracy = _held_out_accuracy(model, heads, settings)
        log(settings.folder, "text", step=step, held_out=accuracy)
        model.save_pretrained(settings.folder / "text_encoder")


def _loss(model: CLIPTextModel, heads: nn.ModuleList, ids: Tensor, target: Tensor) -> Tensor:
    where = _from_end(ids, model.config.eos_token_id)
    hidden = model(ids).last_hidden_state[where]
    owner = where.nonzero()[:, 0]
    losses = [functional.cross_entropy(h(hidden), target[owner, i]) for i, h in enumerate(heads)]
    return torch.stack(losses).sum()


@torch.no_grad()
def _held_out_accuracy(model: CLIPTextModel, heads: nn.ModuleList, settings: Settings) -> float:
    """Return the part of never-trained captions whose facts are all read right at the end token."""
    rng = random.Random(11)
    examples = [_example(rng, shapes.held_out_triples()) for _ in range(500)]
    ids = encode(load_tokenizer(settings.folder), [text for text, _ in examples])
    tokens = torch.tensor(ids, device=settings.device)
    target = torch.tensor([facts for _, facts in examples], device=settings.device)
    hidden = model.eval()(tokens).last_hidden_state
    first = _from_end(tokens, model.config.eos_token_id).int().argmax(dim=1)
    pooled = hidden[torch.arange(len(first)), first]
    guesses = torch.stack([head(pooled).argmax(dim=1) for head in heads], dim=1)
    return float((guesses == target).all(dim=1).float().mean())


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """Load the trained encoder from the stage's folder."""
    model: CLIPTextModel = CLIPTextModel.from_pretrained(folder / "text_encoder")
    return model.eval()


@torch.no_grad()
def contexts_of(folder: Path, texts: list[str]) -> Tensor:
    """Return the contexts of texts as the denoiser sees them, float16 [N, LENGTH, WIDTH]."""
    tokenizer, model = load_tokenizer(folder), load_text_encoder(folder)
    parts = []
    for start in range(0, len(texts), 128):
        ids = torch.tensor(encode(tokenizer, texts[start : start + 128]))
        parts.append(model(ids).last_hidden_state.half())
    return torch.cat(parts)
