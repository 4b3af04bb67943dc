"""Every pair through the same checks, on tiny random weights with non-zero zero modules."""

from __future__ import annotations

import pytest

from conformance.checks import CHECKS
from conformance.table import ROWS, VIDEO_ROWS
from lisa.pairs import pair_names, pair_spec

EVERY = [*ROWS, *VIDEO_ROWS]


def test_every_pair_is_in_the_table():
    for name in pair_names():
        rows = [row for row in EVERY if row.pair == name]
        assert {row.prediction for row in rows} == set(pair_spec(name).predictions), name


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("row", EVERY, ids=str)
def test_conformance(row, name, tmp_path):
    CHECKS[name](row, tmp_path)
