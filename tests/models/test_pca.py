"""Principal components: the error on digits for a growing number of them, against the eigenvalues of their covariance."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from opticus.data.open import open_data
from opticus.models.classical._pca import PrincipalComponents
from opticus.structures import DataError, UsageError


def digits(split: str, count: int) -> torch.Tensor:
    data = open_data("digits", split)
    return torch.stack([data[i].picture.pixels[::3, ::3].flatten() for i in range(count)]).double() / 255


def test_the_error_is_the_sum_of_the_eigenvalues_left_out() -> None:
    rows = digits("train", 300)
    fitted = PrincipalComponents(40).fit(rows)
    values = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)).flip(0)
    for k in (1, 5, 20, 40):
        assert fitted.error(rows, k) == pytest.approx(float(values[k:].sum()) / rows.shape[1], rel=1e-9)


def test_more_components_lose_less_on_unseen_digits() -> None:
    fitted, held = PrincipalComponents(40).fit(digits("train", 300)), digits("test", 100)
    errors = [fitted.error(held, k) for k in (0, 2, 10, 40)]
    assert all(a > 1.2 * b for a, b in pairwise(errors))
    assert fitted.encode(held).shape == (100, 40)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(DataError, match="do not hold 9 components"):
        PrincipalComponents(9).fit(torch.zeros(5, 20))
    with pytest.raises(UsageError, match="call fit first"):
        PrincipalComponents(2).encode(torch.zeros(5, 20))
