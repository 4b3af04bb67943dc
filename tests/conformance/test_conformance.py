"""Every pair through the same checks, on tiny random weights with non-zero zero modules."""

from __future__ import annotations

import pytest

from conformance.checks import CHECKS
from conformance.table import ROWS
from lisa.pairs import pair_names, pair_spec


def test_every_pair_is_in_the_table():
    for name in pair_names():
        assert {row.prediction for row in ROWS if row.pair == name} == set(pair_spec(name).predictions), name


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_conformance(row, name, tmp_path):
    CHECKS[name](row, tmp_path)
