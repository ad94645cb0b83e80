"""The tiled search against the whole distance matrix."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.quantizers import build_quantizer, search
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.search import nearest_codes


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return torch.cdist(vectors.double(), codebook.double()).argmin(dim=1)


@given(st.integers(1, 70), st.integers(1, 45), st.integers(1, 9), st.integers(0, 10_000))
def test_equals_brute_force_at_every_size(num_vectors: int, num_codes: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_vectors, width, generator=generator)
    codebook = torch.randn(num_codes, width, generator=generator)
    distances = torch.cdist(vectors.double(), codebook.double())
    chosen = distances.gather(1, nearest_codes(vectors, codebook)[:, None])[:, 0]
    assert torch.allclose(chosen, distances.min(dim=1).values, atol=1e-5)


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize(("codes", "elements"), [(3, 7), (8, 64), (5, 5)])
def test_tiles_that_fit_nothing_evenly_change_nothing(
    monkeypatch: pytest.MonkeyPatch, codes: int, elements: int, width: int
) -> None:
    monkeypatch.setattr(search, "CPU_TILE_WIDE_CODES", codes)
    monkeypatch.setattr(search, "CPU_TILE_CODES", codes)
    monkeypatch.setattr(search, "CPU_TILE_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(31, width, generator=generator), torch.randn(29, width, generator=generator)
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


def test_lowest_index_wins_a_tie_within_and_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CPU_TILE_CODES", 2)
    codebook = torch.tensor([[5.0], [1.0], [1.0], [1.0], [-1.0]])
    assert nearest_codes(torch.tensor([[1.0], [0.0]]), codebook).tolist() == [1, 1]


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.num_elements = max(self.num_elements, result.numel())
        return result


def test_a_quarter_of_a_million_codes_are_never_held_beside_all_vectors() -> None:
    with FakeTensorMode():
        vectors, codebook = torch.empty(8192, 8), torch.empty(262_144, 8)
        with Largest() as largest:
            codes = nearest_codes(vectors, codebook)
    assert codes.shape == (8192,)
    assert largest.num_elements <= max(search.CPU_TILE_ELEMENTS, codebook.numel())


def test_without_entropy_nothing_of_vectors_by_codes_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CPU_TILE_ELEMENTS", 1 << 14)
    monkeypatch.setattr(search, "CPU_TILE_CODES", 1 << 9)
    quantizer = build_quantizer(GradientCodebookConfig(num_codes=4096, cosine=False), 4, seed=0).train()
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Largest() as largest:
        result = quantizer(latent)
        (result.latent.sum() + torch.stack([*result.losses.values()]).sum()).backward()
    assert largest.num_elements <= 4096 * 4 < 512 * 4096


def test_all_negative_similarities_give_a_valid_code() -> None:
    codebook = -torch.eye(3)
    assert nearest_codes(torch.tensor([[1.0, 2.0, 3.0]]), codebook).tolist() == [0]


def test_searches_in_float32_under_autocast() -> None:
    codebook = torch.tensor([[1.0], [1.001]])  # equal in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_codes(torch.tensor([[1.002]]), codebook).tolist() == [1]


def test_no_vectors_give_no_codes() -> None:
    assert nearest_codes(torch.empty(0, 4), torch.randn(8, 4)).shape == (0,)
