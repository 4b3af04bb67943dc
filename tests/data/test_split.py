import hashlib
import random

import pytest

from lisa.common.errors import LisaError
from lisa.data.sources import ScenesSource
from lisa.data.split import group_of, held_out_split

KEYS = [f"photo{i:03d}" for i in range(200)]


def held(keys, count, seed=0):
    return {keys[i] for i in held_out_split(keys, count, seed).held_out}


def test_the_split_is_the_stated_rule():
    by_rule = sorted(KEYS, key=lambda k: hashlib.sha256(f"7:{k}".encode()).hexdigest())[:20]
    split = held_out_split(KEYS, 20, seed=7)
    assert [KEYS[i] for i in split.held_out] == by_rule
    assert sorted(split.train + split.held_out) == list(range(200)) and split.unused == ()
    assert held(KEYS, 20, 7) != held(KEYS, 20, 8)


def test_reordering_changes_nothing():
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    assert held(shuffled, 20) == held(KEYS, 20)


def test_adding_samples_never_holds_out_one_that_was_trained_on():
    before = held(KEYS, 20)
    after = held([f"new{i}" for i in range(100)] + KEYS, 20)
    assert after & set(KEYS) <= before
    assert held(KEYS, 30) > before


def test_crops_of_one_picture_are_never_on_both_sides():
    assert group_of("sub/cat__crop012") == "sub/cat" and group_of("cat__crop") == "cat__crop"
    keys = [f"photo{i}__crop{j:03d}" for i in range(10) for j in range(8)]
    split = held_out_split(keys, 12)
    assert len(split.held_out) == 12 and len(split.unused) == 4 and len(split.train) == 64
    groups = [{group_of(keys[i]) for i in part} for part in (split.train, split.held_out + split.unused)]
    assert not groups[0] & groups[1]


def test_shots_of_one_film_are_never_on_both_sides():
    for key in ("film", "film__shot001", "film__shot12__crop003", "film__crop1"):
        assert group_of(f"sub/{key}") == "sub/film"
    assert group_of("film__crop1__shot2") == "film__crop1" and group_of("film__shot1__") == "film__shot1__"
    keys = [f"film{i}__shot{j:03d}" for i in range(6) for j in range(5)]
    split = held_out_split(keys, 7)
    groups = [{group_of(keys[i]) for i in part} for part in (split.train, split.held_out + split.unused)]
    assert not groups[0] & groups[1] and len(groups[1]) == 2


def test_the_two_sides_as_sources():
    source = ScenesSource("edges", count=12)
    train, held_out = held_out_split(source.keys, 3).apply(source)
    assert len(train) == 9 and len(held_out) == 3 and not set(train.keys) & set(held_out.keys)
    assert held_out_split(source.keys, 0).held_out == ()


def test_bad_counts_are_named():
    for count in (200, 500):
        with pytest.raises(LisaError, match=f"holding out {count} of 200 samples .* leaves nothing to train on"):
            held_out_split(KEYS, count)
    with pytest.raises(LisaError, match="1 different pictures"):
        held_out_split(["a__crop1", "a__crop2"], 1)
    with pytest.raises(LisaError, match="must not be negative"):
        held_out_split(KEYS, -1)
    with pytest.raises(LisaError, match="not unique"):
        held_out_split(["a", "a"], 1)
