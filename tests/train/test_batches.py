"""Which samples make which batch."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from lisa.common.errors import LisaError
from lisa.train.batches import BatchPlan


def test_every_sample_once_per_epoch():
    plan = BatchPlan(7, 3, seed=1)
    visits = [visit for batch in islice(plan.start_at(0), 14) for visit in batch]  # 42 visits: six epochs
    for epoch in range(6):
        assert Counter(visits[7 * epoch : 7 * epoch + 7]) == {epoch * 7 + i: 1 for i in range(7)}
    orders = [tuple(visit % 7 for visit in visits[7 * e : 7 * e + 7]) for e in range(6)]
    assert len(set(orders)) == 6, "every epoch has an order of its own"
    assert plan.epoch(7) == 3.0


def test_a_batch_depends_on_seed_and_number_alone():
    plan = BatchPlan(5, 2, seed=3)
    ahead = list(islice(plan.start_at(0), 20))
    assert list(islice(BatchPlan(5, 2, seed=3).start_at(13), 7)) == ahead[13:]
    assert plan.visits(4) == ahead[4]
    assert list(islice(BatchPlan(5, 2, seed=4).start_at(0), 20)) != ahead


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_global_batch(processes):
    whole = BatchPlan(11, 2 * processes, seed=0)
    parts = [BatchPlan(11, 2, 0, index, processes) for index in range(processes)]
    for number in range(30):
        assert [visit for part in parts for visit in part.visits(number)] == whole.visits(number)
    assert parts[0].epoch(9) == whole.epoch(9)


def test_accumulated_batches_are_the_large_batch():
    whole, half = BatchPlan(9, 4, seed=0), BatchPlan(9, 2, seed=0)
    assert [half.visits(2 * n) + half.visits(2 * n + 1) for n in range(9)] == [whole.visits(n) for n in range(9)]


def test_a_batch_larger_than_the_data_is_full():
    visits = BatchPlan(2, 5, seed=0).visits(1)
    assert len(set(visits)) == 5 and {visit % 2 for visit in visits} == {0, 1}


def test_no_samples():
    with pytest.raises(LisaError, match="no training samples"):
        BatchPlan(0, 1, seed=0)
