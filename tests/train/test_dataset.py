"""Encoded data: the cache gives what encoding on the way gives, and is keyed by what affects it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from conformance import tiny_sdxl
from lisa.common.errors import LisaError
from lisa.data.sources import ScenesSource
from lisa.data.transforms import PairedTransform
from lisa.pairs import pair_spec
from lisa.train import caching
from lisa.train.batches import BatchPlan
from lisa.train.contexts import FrameContexts
from lisa.train.dataset import EncodedData, batches, modules_hash

ALL = ("latents", "text", "conditions")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def main(sd_small):
    return pair_spec("sd-controlnet").load_main(str(sd_small))


def encode(main, folder, cached=ALL, condition="edges", size=32, seed=5, reads="pixels", say=None, **options):
    transform = PairedTransform((size, size), flip=True, seed=2, **options)
    source = ScenesSource(condition, seed=seed, count=7, size=size)
    return EncodedData(source, main, transform, folder, cached, reads, say=say)


def first(data, count=5, workers=0, start=0):
    return list(islice(batches(data, BatchPlan(len(data), 3, seed=0), start, CPU, workers), count))


def flat(batch):
    values = dataclasses.asdict(batch)
    return {
        "visits": values["visits"],
        **{name: values[name] for name in ("moments", "condition")},
        **{f"{name}.{key}": value for name in ("context", "empty") for key, value in values[name].items()},
    }


def assert_equal(ours, theirs):
    for one, two in zip(ours, theirs, strict=True):
        one, two = flat(one), flat(two)
        assert one.pop("visits") == two.pop("visits") and one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == two[name].dtype, name
            # With several threads, sums depend on how many pictures are encoded together.
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5)
            assert one[name].stride() == two[name].stride(), f"{name}: convolutions round by the layout"


@pytest.mark.parametrize("cached", [ALL, ("latents",), ("text", "conditions")])
def test_cached_equals_uncached(main, tmp_path, cached):
    """Bit for bit, both ways round (flip), over three epochs; a second time from the files alone."""
    expected = first(encode(main, tmp_path, ()), 7)
    assert not any(tmp_path.iterdir())
    assert_equal(first(encode(main, tmp_path, cached), 7), expected)
    assert_equal(first(encode(main, tmp_path, cached), 7), expected)


def test_shapes_and_ranges(main, tmp_path):
    (batch,) = first(encode(main, tmp_path), 1)
    assert batch.moments.shape == (3, 8, 8, 8) and (batch.moments[:, 4:] > 0).all()
    assert batch.condition.shape == (3, 3, 32, 32) and 0 <= batch.condition.min() < batch.condition.max() <= 1
    assert batch.context["encoder_hidden_states"].shape == (3, tiny.WORDS, tiny.TEXT_WIDTH)
    assert batch.empty["encoder_hidden_states"].shape == (1, tiny.WORDS, tiny.TEXT_WIDTH)


def test_image_and_condition_are_mirrored_together(main, tmp_path):
    data = encode(main, tmp_path, ())
    seen = set()
    for epoch in range(4):
        for index in range(7):
            sample, (image, condition) = data.source[index], data.read(index, epoch)
            mirrored = data.transform.flips(index, epoch)
            seen.add(mirrored)
            step = -1 if mirrored else 1
            assert np.array_equal(image, sample.image[:, ::step])
            assert np.array_equal(condition, sample.condition[:, ::step])
    assert seen == {True, False}


def test_each_cache_is_made_anew_only_by_what_affects_it(main, tmp_path, monkeypatch):
    def made(**changes):
        before = set(tmp_path.iterdir())
        encode(main, tmp_path, **changes)
        return sorted(file.stem for folder in set(tmp_path.iterdir()) - before for file in folder.glob("*.npy"))

    every = ["conditions", "encoder_hidden_states", "moments"]
    assert made() == every
    assert made() == []
    assert made(condition="depth") == ["conditions"]
    assert made(size=16) == ["conditions", "moments"]
    assert made(seed=6) == every
    scheduler = main.pipeline.scheduler
    monkeypatch.setattr(main.pipeline, "scheduler", type(scheduler).from_config(scheduler.config, beta_end=0.1))
    main.network.conv_in.weight.data.add_(1)
    assert made() == [], "neither latents nor text depend on the UNet or the schedule"
    main.pipeline.vae.encoder.conv_in.weight.data.add_(1)
    assert made() == ["moments"]
    main.pipeline.text_encoder.get_input_embeddings().weight.data.add_(1)
    assert made() == ["encoder_hidden_states"]


def test_the_same_model_has_the_same_hash_wherever_it_lies(sd_small, tmp_path):
    import shutil

    shutil.copytree(sd_small, tmp_path / "copy")
    load = pair_spec("sd-controlnet").load_main
    one, two = (load(str(path)).encoder_modules("text") for path in (sd_small, tmp_path / "copy"))
    assert modules_hash(one) == modules_hash(two)


def test_batches_start_anywhere(main, tmp_path):
    data = encode(main, tmp_path)
    assert_equal(first(data, 2, start=3), first(data, 5)[3:])


def test_worker_processes_change_nothing(main, tmp_path):
    data = encode(main, tmp_path)
    before = torch.get_rng_state()
    ours = first(data, 3, workers=1)
    assert_equal(ours, first(data, 3))
    assert torch.equal(torch.get_rng_state(), before), "the training's random state is its own"


def test_a_signal_to_the_whole_group_is_left_to_the_training(main, tmp_path):
    """The batch that it waits for must still come, or it could write no checkpoint."""
    data = encode(main, tmp_path, ())
    coming = batches(data, BatchPlan(len(data), 3, seed=0), 0, CPU, 1)
    found = [next(coming)]
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    found += list(islice(coming, 4))
    assert_equal(found, first(data, 5))
    coming.close()
    worker.join(20)
    assert not worker.is_alive(), "it ends with its loader"


@pytest.mark.parametrize("reads", ["captions", "frames"])
def test_workers_that_are_not_forked_need_no_networks(main, tmp_path, reads):
    """As Python 3.14 starts them: what they are given is pickled, which networks may not bear."""
    data = encode(main, tmp_path, ())
    if reads == "frames":
        data._contexts = FrameContexts(main, data.source, data.transform, data._sample, 1, 4)
    main.network.cannot = lambda: None
    try:
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pickle.dumps(main.network)
        theirs = pickle.loads(pickle.dumps(data.read))
    finally:
        del main.network.cannot
    assert theirs.__self__.main is None
    for one, other in zip(theirs(2, 1), data.read(2, 1), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_one_message(main, tmp_path, monkeypatch, workers):
    data = encode(main, tmp_path, ())

    def broken(self, index):
        raise LisaError(f"image {index} is truncated", "Replace it")

    monkeypatch.setattr(ScenesSource, "__getitem__", broken)
    with pytest.raises(LisaError, match=r"^image \d is truncated\. Replace it\.$"):
        first(data, workers=workers)


def test_text_is_encoded_once_for_all_its_arrays(tmp_path, monkeypatch):
    """SDXL's two encoders give two arrays, SD3's three also two: each caption goes through them once."""
    main = pair_spec("sdxl-controlnet").load_main(str(tiny_sdxl.make_folder(tmp_path / "model")))
    encoded, own = [], main.encode_text
    monkeypatch.setattr(main, "encode_text", lambda captions: encoded.extend(captions) or own(captions))
    data = encode(main, tmp_path / "cache", ("text",))
    different = sorted(set(data.captions))
    assert sorted(encoded) == sorted(["", "", *different])  # one to see the shapes, one for dropped captions
    assert set(first(data, 1)[0].context) == {"encoder_hidden_states", "text_embeds"}
    encoded.clear()
    encode(main, tmp_path / "cache", ("text",))
    assert encoded == ["", ""]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_text_is_kept_in_the_type_it_comes_in(sd_small, tmp_path, dtype):
    """Without loss: what training in bfloat16 reads is what its encoders gave, in half of the space."""
    main = pair_spec("sd-controlnet").load_main(str(sd_small))
    main.to(CPU, dtype)
    cached, expected = (first(encode(main, tmp_path, items), 3) for items in (("text",), ()))
    for one, two in zip(cached, expected, strict=True):
        ours, theirs = (batch.context["encoder_hidden_states"] for batch in (one, two))
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs)
    (file,) = tmp_path.glob("*/encoder_hidden_states.npy")
    assert np.load(file).itemsize == dtype.itemsize


@pytest.mark.parametrize(("reads", "cached", "files"), [
    ("latents", ("latents",), ["condition_latents", "moments"]),
    ("pixels", ("latents",), ["moments"]),
    ("latents", ("text",), ["encoder_hidden_states"]),
])  # fmt: skip
def test_latents_of_conditions_are_latents(main, tmp_path, reads, cached, files):
    """Else the autoencoder would run, and stay in memory, at every step."""
    encode(main, tmp_path, cached, reads=reads)
    assert sorted(file.stem for file in tmp_path.glob("*/*.npy")) == files


def test_the_size_of_a_cache_is_told_and_weighed_before(main, tmp_path, monkeypatch):
    said = []
    encode(main, tmp_path / "small", say=said.append)
    assert said == []  # not worth a word
    monkeypatch.setattr(caching, "_LARGE", 10_000)
    monkeypatch.setattr(caching, "_size", str)
    encode(main, tmp_path / "cache", say=said.append)
    size = {file.stem: np.load(file).nbytes for file in (tmp_path / "cache").glob("*/*.npy")}
    names = {"latents": "moments", "conditions": "conditions", "text": "encoder_hidden_states"}
    parts = ", ".join(f"{item} {size[name]}" for item, name in names.items())
    assert said == [f"the cache in '{tmp_path / 'cache'}' will take {sum(size.values())} ({parts})"]
    encode(main, tmp_path / "cache", say=said.append)
    assert len(said) == 1, "what is there is not counted"
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: SimpleNamespace(free=sum(size.values()) - 1))
    encode(main, tmp_path / "cache")
    with pytest.raises(
        LisaError, match=r"are free there\. Leave conditions out of data.cache, .*data.cache_dir"
    ) as caught:
        encode(main, tmp_path / "full")
    assert f"needs {sum(size.values())} more ({parts}); {sum(size.values()) - 1} are free" in str(caught.value)
    assert not (tmp_path / "full").exists()
