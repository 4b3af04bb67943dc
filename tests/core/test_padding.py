import pytest
import torch

from lisa.common.errors import LisaError
from lisa.core.padding import padded, unpadded

SEQUENCES = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (2, 5, 1)]


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])  # caches hold float masks
def test_what_is_padded_comes_back(kind) -> None:
    tensor, mask = padded(SEQUENCES, 5)
    assert tensor.shape == (3, 5, 3) and mask.sum(dim=1).tolist() == [2, 5, 1]
    assert tensor[~mask].abs().sum() == 0
    for ours, theirs in zip(unpadded(tensor, mask.to(kind)), SEQUENCES, strict=True):
        assert torch.equal(ours, theirs)


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(LisaError, match="a sequence of 5 does not fit into 4"):
        padded(SEQUENCES, 4)
