import math

import pytest

from lisa.common.errors import LisaError
from lisa.core import make_schedule, schedule_names
from lisa.core.schedule import WeightSchedule


def test_constant_is_the_reference_and_the_default() -> None:
    schedule = make_schedule()
    assert [schedule.weight(step) for step in (0, 10, 10**6)] == [0.2] * 3
    schedule.observe(5, True, 0.0)
    assert not schedule.finished


def test_cosine_falls_to_nothing_and_is_then_finished() -> None:
    schedule = make_schedule("cosine", 0.4, 100)
    assert schedule.weight(0) == 0.4
    assert schedule.weight(25) == pytest.approx(0.4 * (0.5 + math.sqrt(0.5) / 2))
    assert schedule.weight(50) == pytest.approx(0.2)
    assert 0 < schedule.weight(99) < 1e-3
    assert not schedule.finished
    assert schedule.weight(100) == schedule.weight(500) == 0
    assert schedule.finished


def run(schedule: WeightSchedule, readings: list[tuple[bool, float]]) -> int | None:
    """The number of the reading that finished it."""
    for number, (onset, gap) in enumerate(readings):
        assert schedule.weight(number) == 0.2
        schedule.observe(number, onset, gap)
        if schedule.finished:
            assert schedule.weight(number + 1) == 0
            return number
    return None


def test_until_done_never_ends_before_the_onset() -> None:
    flat = [(False, 0.0)] * 50
    assert run(make_schedule("until-done"), flat) is None
    # A plateau before the onset does not count towards the patience after it.
    assert run(make_schedule("until-done"), [*flat, (True, 0.1), (True, 0.1), (True, 0.1), (True, 0.1)]) == 53


def test_until_done_ends_when_the_gap_has_stopped_rising() -> None:
    rising = [(True, 0.05 * k) for k in range(6)]
    assert run(make_schedule("until-done"), rising) is None
    assert run(make_schedule("until-done"), [*rising, (True, 0.2), (True, 0.251), (True, 0.24)]) == 8
    with_relapse = [*rising, (True, 0.2), (True, 0.2), (True, 0.3), (True, 0.3), (True, 0.3), (True, 0.3)]
    assert run(make_schedule("until-done"), with_relapse) == 11
    assert run(make_schedule("until-done", patience=1), [*rising, (True, 0.2)]) == 6
    slow = [(True, 0.01 * k) for k in range(9)]
    assert run(make_schedule("until-done", min_delta=0.05), slow) == 3


def test_until_done_is_off_for_good() -> None:
    schedule = make_schedule("until-done", patience=1)
    assert run(schedule, [(True, 0.3), (True, 0.2)]) == 1
    schedule.observe(10, True, 0.9)
    schedule.observe(11, False, 0.9)
    assert schedule.finished
    assert schedule.weight(12) == 0


def test_a_reading_that_was_not_taken_or_is_heard_again_does_not_count() -> None:
    schedule = make_schedule("until-done", patience=2)
    schedule.observe(0, True, 0.3)
    for _ in range(5):
        schedule.observe(1, True, 0.2)
        schedule.observe(2 + _, True, math.nan)
    assert not schedule.finished
    schedule.observe(10, True, 0.2)
    assert schedule.finished


def test_a_checkpoint_in_the_middle_changes_nothing() -> None:
    readings = [(False, 0.0), (True, 0.1), (True, 0.2), (True, 0.2), (True, 0.2), (True, 0.2)]
    ended = run(make_schedule("until-done"), readings)
    for cut in range(len(readings)):
        schedule = make_schedule("until-done")
        for number, reading in enumerate(readings):
            if number == cut:
                state = schedule.state_dict()
                schedule = make_schedule("until-done")
                schedule.load_state_dict(state)
            schedule.observe(number, *reading)
            assert schedule.finished == (number >= ended)
    finished = make_schedule("cosine", total_steps=3)
    finished.weight(3)
    twin = make_schedule("cosine", total_steps=3)
    twin.load_state_dict(finished.state_dict())
    assert twin.finished


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("linear",), {}, "unknown schedule 'linear'.*constant, cosine, until-done"),
        (("cosine",), {}, "total_steps"),
        (("cosine", 0.2, 0), {}, "over 0 steps"),
        (("constant", -1.0), {}, "weight of"),
        (("until-done",), {"patience": 0}, "patience=0"),
        (("until-done",), {"min_delta": math.nan}, "min_delta=nan"),
        (("constant",), {"patience": 2}, r"does not take the options \['patience'\]"),
    ],
)
def test_bad_arguments(arguments, options, message) -> None:
    assert schedule_names() == ("constant", "cosine", "until-done")
    with pytest.raises(LisaError, match=message):
        make_schedule(*arguments, **options)
