"""Clips from source to batch: shapes, caches, contexts of first frames, and which frames a visit sees."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from lisa.common.errors import LisaError
from lisa.data.cache import ArrayCache
from lisa.data.samples import Sample, content_hash
from lisa.data.sources import MovingScenesSource
from lisa.data.transforms import PairedTransform
from lisa.pairs import Prediction
from lisa.processes.draws import Draws
from lisa.processes.flow import RectifiedFlowProcess
from lisa.train.batches import BatchPlan
from lisa.train.caching import CHUNK, CacheJob, run_jobs
from lisa.train.dataset import EncodedData, batches
from lisa.train.held_out import HeldOutMeter

CPU = torch.device("cpu")
ALL = ("latents", "text", "conditions")
FRAMES, SIZE, FACTOR = 5, 16, 4


class ClipMain:
    """A main network's encoders for clips: means over cells; every second frame, so that f = (F + 1) / 2."""

    family, video, source = "fake", True, "fake"
    latent_channels, condition_latent_channels, latent_factor = 3, 6, FACTOR

    def __init__(self, reads="caption"):
        self.context_reads, self.network = reads, torch.nn.Linear(1, 1)
        self.process = RectifiedFlowProcess()
        self.clips, self.keys = [], []

    def latent_frames(self, frames):
        return (frames + 1) // 2

    def encode_moments(self, pixels):
        assert pixels.dtype == torch.float32 and pixels.shape[1:] == (3, FRAMES, SIZE, SIZE)
        assert -1 <= pixels.min() < pixels.max() <= 1
        self.clips.append(len(pixels))
        mean = torch.nn.functional.avg_pool3d(pixels[:, :, ::2], (1, FACTOR, FACTOR))
        return torch.cat([mean, torch.full_like(mean, 0.01)], 1)

    def encode_condition(self, pixels):
        mean, _ = self.encode_moments(pixels * 2 - 1).chunk(2, 1)
        return torch.cat([mean, -mean], 1)

    def encode_text(self, captions):
        return {"words": torch.tensor([[float(len(caption))] for caption in captions])}

    def encode_frame(self, frames, rate, motion, keys):
        assert frames.shape[1:] == (3, SIZE, SIZE)
        self.keys += keys
        numbers = torch.tensor([float(key[-3:]) for key in keys])
        facts = torch.stack([rate, motion, numbers], 1)
        return {
            "picture": frames.flatten(2).mean(2).bfloat16(),
            "side": frames[..., :4].mean((1, 2, 3)),
            "facts": facts,
        }

    def encode_unconditional(self):
        return {"picture": torch.zeros(1, 3)} if self.context_reads == "frame" else self.encode_text([""])

    def encoder_modules(self, part):
        return [self.network]


class LongClips:
    """Clips of 12 frames that tell their numbers in red, of which a sample has five."""

    name = "long"

    def __init__(self, count=3):
        self.keys = [f"long-{i:03d}" for i in range(count)]
        self.captions = self.keys
        self.fingerprint = content_hash("long", count)

    def part_fingerprint(self, part):
        return content_hash("long", part)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return self.window(index, self.spare(index) // 2)

    def spare(self, index):
        return 12 - FRAMES

    def window(self, index, start):
        clip = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
        clip[..., 0] = np.arange(start, start + FRAMES)[:, None, None]
        clip[..., 1] = index
        clip[:, :, : SIZE // 2, 2] = 255
        return Sample(self.keys[index], clip, clip, "", rate=12.0 + index, motion=None if index else 30.0)


def encode(main, folder, cached=ALL, source=None, reads="pixels", flip=True, windows=False):
    source = source or MovingScenesSource("edges", seed=2, count=4, size=SIZE, frames=FRAMES)
    transform = PairedTransform((SIZE, SIZE), flip=flip, seed=1, windows=windows)
    return EncodedData(source, main, transform, folder, cached, reads)


def first(data, count=5, workers=0):
    return list(islice(batches(data, BatchPlan(len(data), 3, seed=0), 0, CPU, workers), count))


def flat(batch):
    empty = {f"empty {name}": value for name, value in batch.empty.items()}
    return {"moments": batch.moments, "condition": batch.condition, **batch.context, **empty}


def assert_equal(ours, theirs):
    for one, two in zip(ours, theirs, strict=True):
        assert one.visits == two.visits
        one, two = flat(one), flat(two)
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert value.dtype == two[name].dtype, name
            torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", ["caption", "frame"])
@pytest.mark.parametrize("reads", ["pixels", "latents"])
@pytest.mark.parametrize("cached", [ALL, ("latents",), ("text",), ("conditions",)])
def test_cached_equals_uncached(tmp_path, context, reads, cached):
    """Both ways round (flip), over several epochs; a second time from the files alone."""
    expected = first(encode(ClipMain(context), tmp_path, (), reads=reads), 6)
    assert not any(tmp_path.iterdir())
    torch.manual_seed(0)  # the fake's weights are its cache key
    main = ClipMain(context)
    assert_equal(first(encode(main, tmp_path, cached, reads=reads), 6), expected)
    main.clips, main.keys = [], []
    data = encode(main, tmp_path, cached, reads=reads)
    assert_equal(first(data, 6), expected)
    if cached == ALL:
        # One row tells the shapes; the rest came from the files.
        assert main.clips == [] and len(main.keys) == (2 if context == "frame" else 0)


def test_shapes(tmp_path):
    (batch,) = first(encode(ClipMain("frame"), tmp_path), 1)
    assert batch.moments.shape == (3, 6, 3, 4, 4) and batch.moments.is_contiguous()
    assert (
        batch.condition.shape == (3, 3, FRAMES, SIZE, SIZE) and 0 <= batch.condition.min() < batch.condition.max() <= 1
    )
    assert batch.context["picture"].shape == (3, 3) and batch.context["picture"].dtype == torch.bfloat16
    assert batch.context["facts"].tolist() == [[8.0, 127.0, visit % 4] for visit in batch.visits]
    assert list(batch.empty) == ["picture"], "the rest is the same in the unconditional pass"
    (batch,) = first(encode(ClipMain(), tmp_path, reads="latents"), 1)
    assert batch.condition.shape == (3, 6, 3, 4, 4) and batch.context["words"].shape == (3, 1)


class Counted(LongClips):
    """Tells which clips are read, in order; may break at one."""

    def __init__(self, count, broken=None):
        super().__init__(count)
        self.read, self.broken = [], broken

    def window(self, index, start):
        if index == self.broken:
            raise KeyboardInterrupt
        self.read.append(index)
        return super().window(index, start)


def test_every_clip_is_read_once_for_all_caches(tmp_path):
    """Latents, conditions and contexts, mirrored ones as well; after an interruption from where it was."""

    def cache(folder, source):
        source.read.clear()
        torch.manual_seed(0)  # the fake's weights are its cache key
        return encode(ClipMain("frame"), tmp_path / folder, source=source)

    chunk = CHUNK // FRAMES
    whole = Counted(2 * chunk + 1)
    expected = first(cache("whole", whole))
    assert whole.read == [0, *range(len(whole))], "the first one also tells how many frames there are"

    broken = Counted(len(whole), broken=chunk + 1)
    with pytest.raises(KeyboardInterrupt):
        cache("halves", broken)
    broken.broken = None
    assert_equal(first(cache("halves", broken)), expected)
    assert sorted({*broken.read} - {0}) == [*range(chunk, len(whole))], "the first chunk of all caches was there"


def test_a_cache_that_fails_leaves_the_others_resumable_and_no_lock(tmp_path):
    rows, full = [], [True]

    def count(part):
        rows.append(part.start)
        return {"numbers": np.arange(part.start, part.stop)}

    def fail(part):
        if full[0] and part.start:
            raise OSError(errno.ENOSPC, "no space left")
        return count(part)

    def build():
        jobs = {
            name: CacheJob(ArrayCache(tmp_path, name), {"numbers": ((6,), np.int64)}, each, chunk=2)
            for name, each in (("first", count), ("second", fail))
        }
        return run_jobs(jobs, tmp_path)

    with pytest.raises(LisaError, match="no space"):
        build()
    assert rows == [0, 0, 2]
    full[0] = False
    with ThreadPoolExecutor(1) as elsewhere:
        arrays = elsewhere.submit(build).result(timeout=30)
    assert rows == [0, 0, 2, 2, 4, 4], "what was done is not done again"
    assert all(np.array_equal(arrays[name]["numbers"], np.arange(6)) for name in ("first", "second"))


def test_clips_are_encoded_few_at_a_time(tmp_path):
    main = ClipMain()
    encode(main, tmp_path, ("latents",), flip=False)
    assert main.clips == [3, 1], "three clips of five frames are about as much as sixteen pictures"


@pytest.mark.parametrize("cached", [(), ALL])
def test_clip_condition_and_first_frame_are_mirrored_together(tmp_path, cached):
    data = encode(ClipMain("frame"), tmp_path, cached, LongClips())
    seen = set()
    for batch in first(data, 6):
        for row, visit in enumerate(batch.visits):
            epoch, index = divmod(visit, 3)
            mirrored = data.transform.flips(index, epoch)
            seen.add(mirrored)
            blue, bright = (batch.moments[row, 2], batch.condition[row, 2]) if not mirrored else (
                batch.moments[row, 2].flip(-1), batch.condition[row, 2].flip(-1)
            )  # fmt: skip
            assert (blue[..., :2] > 0.9).all() and (blue[..., 2:] < -0.9).all()
            assert (bright[..., :8] == 1).all() and (bright[..., 8:] == 0).all()
            assert (batch.context["side"][row] > -0.7) == (not mirrored)
            assert batch.context["facts"][row].tolist() == [12.0 + index, 127.0 if index else 30.0, index]
    assert seen == {True, False}


def begins(batch):
    """The numbers of the first frames, as the conditions tell them."""
    return [round(float(each[0, 0].max() * 255)) for each in batch.condition]


@pytest.mark.parametrize(
    ("context", "cached", "varies"),
    [
        ("caption", (), True),
        ("caption", ("text",), True),
        ("frame", ("text",), False),
        ("caption", ("latents",), False),
        ("caption", ("conditions",), False),
    ],
)
def test_every_visit_sees_another_window_unless_something_is_cached(tmp_path, context, cached, varies):
    data = encode(ClipMain(context), tmp_path, cached, LongClips(), flip=False, windows=True)
    seen = {index: [] for index in range(3)}
    for batch in first(data, 8):
        for visit, begin in zip(batch.visits, begins(batch), strict=True):
            epoch, index = divmod(visit, 3)
            assert begin == (data.transform.start(index, epoch, 7) if varies else 3)
            seen[index].append(begin)
            if not cached:  # the latent's first frame is the condition's
                assert round(float((batch.moments[0, 0, 0, 0, 0] + 1) * 127.5)) == begins(batch)[0]
    assert all((len(set(starts)) > 4) == varies for starts in seen.values())


def test_worker_processes_change_nothing(tmp_path):
    data = encode(ClipMain("frame"), tmp_path, (), LongClips(), windows=True)
    assert_equal(first(data, 2, workers=1), first(data, 2))


def test_held_out_clips_are_read_like_pictures(tmp_path):
    """Each with its own context and its own or another clip's condition; and a perfect network gains everything."""
    data = encode(ClipMain("frame"), tmp_path, source=LongClips(4), flip=False)
    right, shuffled = [], []

    def predictions(inputs, conditions):
        assert inputs.x_t.shape[1:] == (3, 3, 4, 4) and inputs.t.shape == inputs.x_t.shape[:1]
        return [predict(inputs, *each) for each in zip(conditions, (right, shuffled), strict=True)]

    def predict(inputs, condition, seen):
        assert condition.shape[1:] == (3, FRAMES, SIZE, SIZE)
        own = inputs.context["facts"][:, 2]
        given = condition[:, 1, 0, 0, 0] * 255
        seen.extend(zip(own.round().tolist(), given.round().tolist(), strict=True))
        prior = torch.zeros_like(inputs.x_t)
        x0, _ = torch.from_numpy(data._moments[own.long().numpy(), 0]).chunk(2, 1)
        t = inputs.t.reshape(-1, 1, 1, 1, 1)
        target = (inputs.x_t - x0) / t  # the noise minus the clip, up to the posterior's small deviation
        fits = (own == given.round()).reshape(-1, 1, 1, 1, 1)
        return Prediction(torch.where(fits, target, prior), prior)

    module = torch.nn.Linear(1, 1)
    pair = SimpleNamespace(main=data.main, predictions=predictions, side=SimpleNamespace(module=module, callee=module))
    meter = HeldOutMeter(pair, None, None, data, Draws(0), 2, 3, Accelerator(cpu=True))
    gap = meter.read(0)
    assert gap.control_gain.value > 0.9 and gap.gap.value > 0.9
    assert len(right) == len(shuffled) == 8
    assert all(own == given for own, given in right) and all(own != given for own, given in shuffled)
    again = meter.read(1)
    assert (again.gap, again.control_gain) == (gap.gap, gap.control_gain)


def test_another_extractor_is_another_cache(tmp_path):
    """It changes what the image encoder reads, and is none of its weights."""
    kept = []
    for mean in (0.5, 0.5, 0.4):
        torch.manual_seed(0)
        main = ClipMain("frame")
        extractor = SimpleNamespace(to_dict=lambda mean=mean: {"image_mean": [mean] * 3})
        main.pipeline = SimpleNamespace(feature_extractor=extractor)
        encode(main, tmp_path, ("text",))
        kept.append(len(list(tmp_path.iterdir())))
    assert kept[0] == kept[1] and kept[2] > kept[1]
