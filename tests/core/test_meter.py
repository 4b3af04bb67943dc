import json
import math

import pytest
import torch

from lisa.common.errors import LisaError
from lisa.core import LearningMeter
from lisa.core.terms import idle_terms


def data(samples=64, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target, prior, controlled, decoded = (torch.randn(samples, 4, 5, 3, generator=generator) for _ in range(4))
    t = torch.rand(samples, generator=generator) * 1000
    return {
        "target": target,
        "prior": prior,
        "controlled": target + 0.7 * (controlled - target),
        "timesteps": t,
        "decoded": 0.4 * (target - prior) + 0.1 * decoded,
    }


def rows(batch: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    return {name: value[index] for name, value in batch.items()}


def expected(batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Method.md's definitions, in one shot."""
    batch = {name: value.double() for name, value in batch.items()}
    residual = batch["target"] - batch["prior"]
    gain = 1 - ((batch["target"] - batch["controlled"]) ** 2).sum() / (residual**2).sum()
    return float(gain), float(1 - ((residual - batch["decoded"]) ** 2).sum() / (residual**2).sum())


def test_streaming_is_one_shot_and_the_definition() -> None:
    batch = data()
    once, streaming = LearningMeter(), LearningMeter()
    once.update(**batch)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    for part in order.split([1, 7, 30, 26]):
        streaming.update(**rows(batch, part))
    gain, r2 = expected(batch)
    for reading in (once.read(), streaming.read()):
        assert reading.control_gain == pytest.approx(gain, rel=1e-6)
        assert reading.decoder_r2 == pytest.approx(r2, rel=1e-6)
        assert reading.count == 64
    for a, b in zip(once.read().by_bin, streaming.read().by_bin, strict=True):
        assert a == pytest.approx(b, rel=1e-6, nan_ok=True)


def test_each_bin_reads_its_own_noise_level() -> None:
    batch = data()
    meter = LearningMeter(bins=4)
    meter.update(**batch)
    for number, reading in enumerate(meter.read().by_bin):
        low, high = 250 * number, 250 * (number + 1)
        inside = (batch["timesteps"] >= low) & (batch["timesteps"] < high)
        gain, r2 = expected(rows(batch, inside))
        expect = {"low": low, "high": high, "count": int(inside.sum()), "control_gain": gain, "decoder_r2": r2}
        assert reading == pytest.approx(expect, rel=1e-6)
        assert 0 < reading["count"] < 64


def test_the_ends_of_the_scale() -> None:
    meter = LearningMeter()
    batch = data(3)
    meter.update(batch["target"], batch["prior"], batch["prior"], batch["timesteps"], batch["target"] - batch["prior"])
    assert meter.read().control_gain == 0.0
    assert meter.read().decoder_r2 == pytest.approx(1.0)
    meter.reset()
    assert math.isnan(meter.read().control_gain)
    meter.update(batch["target"], batch["prior"], batch["target"], batch["timesteps"])
    assert meter.read().control_gain == 1.0
    assert math.isnan(meter.read().decoder_r2)


def test_decoder_r2_is_over_the_samples_that_were_decoded() -> None:
    batch = data()
    meter = LearningMeter()
    first, second = rows(batch, slice(0, 20)), rows(batch, slice(20, None))
    meter.update(**first)
    second.pop("decoded")
    meter.update(**second)
    meter.update(**rows(second, slice(0, 0)))
    idle = idle_terms(second["target"], second["prior"])
    reading = meter.read()
    meter.update(**second, terms=idle)
    assert meter.read().decoder_r2 == reading.decoder_r2 == pytest.approx(expected(first)[1], rel=1e-6)
    assert reading.count == 64


def test_a_broken_sample_is_left_out_and_counted() -> None:
    batch = data()
    batch["controlled"][3, 0, 0, 0] = math.inf
    batch["prior"][5] = math.nan
    batch["decoded"][7] = math.nan
    meter = LearningMeter()
    meter.update(**batch)
    reading = meter.read()
    whole = [i for i in range(64) if i not in (3, 5)]
    assert reading.control_gain == pytest.approx(expected({**rows(batch, whole)})[0], rel=1e-6)
    assert (reading.count, reading.skipped) == (62, 2)
    assert reading.decoder_r2 == pytest.approx(expected(rows(batch, [i for i in whole if i != 7]))[1], rel=1e-6)


def test_half_precision_is_summed_in_full() -> None:
    batch = {name: value.bfloat16() if name != "timesteps" else value for name, value in data(8).items()}
    meter = LearningMeter()
    for _ in range(50):
        meter.update(**batch)
    assert meter.read().control_gain == pytest.approx(expected(batch)[0], rel=1e-5)


def test_checkpoint_json_and_errors() -> None:
    batch = data()
    meter = LearningMeter()
    assert json.loads(json.dumps(meter.read().to_json(), allow_nan=False))["control_gain"] is None
    meter.update(**rows(batch, slice(0, 30)))
    twin = LearningMeter()
    twin.load_state_dict(meter.state_dict())
    for each in (meter, twin):
        each.update(**rows(batch, slice(30, None)))
    assert twin.read() == meter.read()
    as_json = json.loads(json.dumps(twin.read().to_json(), allow_nan=False))
    assert as_json["by_bin"][0]["low"] == 0
    assert as_json["count"] == 64
    with pytest.raises(LisaError, match="bins"):
        LearningMeter(5).load_state_dict(meter.state_dict())
    with pytest.raises(LisaError, match="0 bins"):
        LearningMeter(0)
    with pytest.raises(LisaError, match="different shapes"):
        meter.update(batch["target"], batch["prior"][:3], batch["controlled"], batch["timesteps"])


def test_reading_through_a_reducer_leaves_the_meter_as_it_is() -> None:
    batch = data()
    meter = LearningMeter()
    meter.update(**batch)
    alone = meter.read()
    doubled = meter.read(reduce=lambda sums: sums.mul_(2))
    assert doubled.count == 128
    assert doubled.control_gain == alone.control_gain
    assert meter.read() == alone
    assert meter.read(reduce=lambda sums: 1 / 0, local=True) == alone
