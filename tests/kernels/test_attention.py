"""attention against torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.kernels.conftest import Array, kernels, relative_error, shifted

# Softmax weights carry the rounding of the scores (2^-24 of their size) and of 2^x (1.5e-7).
BOUND = 1.5e-6


@dataclass
class Case:
    """One attention; q [batch, q_len, heads * head_dim]."""

    q_len: int
    kv_len: int
    head_dim: int
    heads: int = 2
    kv_heads: int = 2
    batch: int = 1
    causal: bool = False
    mask_batch: int = 0
    mask_per_head: bool = False

    def data(self, rng: np.random.Generator) -> dict[str, Array | None]:
        def draw(tokens: int, heads: int) -> Array:
            return rng.standard_normal((self.batch, tokens, heads * self.head_dim), np.float32)

        mask = None
        if self.mask_batch:
            shape = (self.mask_batch, *[self.heads] * self.mask_per_head, self.q_len, self.kv_len)
            mask = rng.standard_normal(shape, np.float32)
            mask[rng.random(mask.shape) < 0.2] = -np.inf
            mask[..., 0] = 0
        return {
            "q": draw(self.q_len, self.heads),
            "k": draw(self.kv_len, self.kv_heads),
            "v": draw(self.kv_len, self.kv_heads),
            "mask": mask,
        }

    def run(self, data: dict[str, Array | None], **options: object) -> Array:
        options.setdefault("scale", self.head_dim**-0.5)
        y: Array = kernels.attention(
            **data, heads=self.heads, kv_heads=self.kv_heads, causal=self.causal, **options
        )
        return y

    def expected(self, data: dict[str, Array | None], scale: float | None = None) -> Array:
        def split(name: str, heads: int) -> torch.Tensor:
            x = torch.from_numpy(data[name]).double()
            return x.view(self.batch, -1, heads, self.head_dim).transpose(1, 2)

        group = self.heads // self.kv_heads
        mask = None if data["mask"] is None else torch.from_numpy(data["mask"]).double()
        if mask is not None and not self.mask_per_head:
            mask = mask[:, None]
        y = F.scaled_dot_product_attention(
            split("q", self.heads),
            split("k", self.kv_heads).repeat_interleave(group, 1),
            split("v", self.kv_heads).repeat_interleave(group, 1),
            attn_mask=mask,
            is_causal=self.causal,
            scale=scale,
        )
        return y.transpose(1, 2).reshape(self.batch, self.q_len, -1).numpy()


CASES = {
    "one token": Case(1, 1, 8),
    "one dimension": Case(5, 7, 1),
    "d 40": Case(70, 70, 40, batch=2),
    "d 64, several key blocks": Case(100, 1100, 64),
    "d 80": Case(33, 65, 80),
    "d 96": Case(14, 31, 96),
    "d 128": Case(50, 200, 128),
    "d 160": Case(64, 64, 160, heads=8, kv_heads=8),
    "d 512, one head": Case(144, 144, 512, heads=1, kv_heads=1),
    "d 33": Case(20, 40, 33),
    "text": Case(200, 77, 40, batch=2),
    "one query": Case(1, 300, 64),
    "one key": Case(30, 1, 64),
    "grouped heads": Case(20, 50, 24, heads=6, kv_heads=2, batch=2),
    "causal": Case(77, 77, 64, causal=True),
    "causal, several blocks": Case(700, 700, 32, causal=True),
    "causal, more queries": Case(90, 40, 16, causal=True),
    "causal, more keys": Case(40, 90, 16, causal=True),
    "mask": Case(50, 60, 32, batch=3, mask_batch=1),
    "mask for each batch element": Case(50, 600, 64, batch=2, mask_batch=2),
    "mask for each head": Case(50, 60, 32, heads=4, batch=2, mask_batch=1, mask_per_head=True),
    "mask for each of both": Case(20, 64, 16, heads=6, batch=3, mask_batch=3, mask_per_head=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_torch(case: Case, isa: str, rng: np.random.Generator) -> None:
    data = case.data(rng)
    expected = case.expected(data)
    assert relative_error(case.run(data, isa=isa, threads=2), expected) <= BOUND


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.kv_len < 300])
def test_the_reference_matches_torch(case: Case, rng: np.random.Generator) -> None:
    data = case.data(rng)
    assert relative_error(case.run(data, isa="reference"), case.expected(data)) <= 2e-7


def test_threads_change_nothing(isa: str, rng: np.random.Generator) -> None:
    for case in (Case(300, 300, 40, heads=3, kv_heads=3), Case(77, 77, 64, causal=True)):
        data = case.data(rng)
        results = [case.run(data, isa=isa, threads=n) for n in (1, 2, 3, 4)]
        assert all(np.array_equal(results[0], other) for other in results[1:])


def test_large_scores(isa: str, rng: np.random.Generator) -> None:
    """Scores of some hundreds: nothing overflows, and the largest one wins."""
    case = Case(40, 600, 64)
    data = case.data(rng)
    found = case.run(data, isa=isa, scale=20.0)
    assert np.isfinite(found).all()
    # A score of 300 is rounded by 300 * 2^-24, and so are the weights.
    assert relative_error(found, case.expected(data, scale=20.0)) <= 5e-5


def test_a_row_with_every_key_masked_is_zero(isa: str, rng: np.random.Generator) -> None:
    case = Case(20, 40, 16, mask_batch=1)
    data = case.data(rng)
    mask = data["mask"]
    assert mask is not None
    mask[0, 3] = -np.inf
    found = case.run(data, isa=isa)
    assert not found[0, 3].any()
    assert np.array_equal(case.run(data, isa="reference")[0, 3], found[0, 3])
    assert np.isfinite(found).all()


def test_keys_masked_in_whole_blocks(isa: str, rng: np.random.Generator) -> None:
    """The running maximum starts at minus infinity for the first key blocks."""
    case = Case(30, 1500, 64, mask_batch=1)
    data = case.data(rng)
    mask = data["mask"]
    assert mask is not None
    mask[:, :, :1400] = -np.inf
    mask[:, :, 1499] = 0
    assert relative_error(case.run(data, isa=isa), case.expected(data)) <= BOUND


def test_memory_of_any_alignment(isa: str, rng: np.random.Generator) -> None:
    case = Case(50, 60, 40, mask_batch=1)
    data = case.data(rng)
    moved = {name: None if x is None else shifted(x) for name, x in data.items()}
    assert np.array_equal(case.run(data, isa=isa), case.run(moved, isa=isa))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_not_a_number_is_not_hidden(name: str, isa: str, rng: np.random.Generator) -> None:
    case = Case(20, 700, 40, heads=1, kv_heads=1)
    data = case.data(rng)
    array = data[name]
    assert array is not None
    array[0, 5, 3] = np.nan
    found = case.run(data, isa=isa)
    assert np.isnan(found[0, 5]).any()
    assert name == "q" or np.isnan(found).any(axis=2).all()
