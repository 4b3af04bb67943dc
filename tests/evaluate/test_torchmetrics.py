"""What is worked out here by a formula of a line has the values of the field's library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex
from torchmetrics.classification import BinaryF1Score
from torchmetrics.image import PeakSignalNoiseRatio

import tiny_readers
from lisa.cli.common import quiet_libraries
from lisa.data.samples import Sample
from lisa.evaluate import extras
from lisa.evaluate.metrics import edge_f1, miou, psnr_ssim
from lisa.evaluate.pooled import pooled

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("of_truth", "of_made"), [(0.3, 0.6), (0.0, 0.5), (0.5, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_exact_f1(of_truth, of_made):
    truth, made = RNG.random((24, 20)) < of_truth, RNG.random((24, 20)) < of_made
    theirs = BinaryF1Score()(torch.from_numpy(made).long(), torch.from_numpy(truth).long())
    assert edge_f1.exact(truth, made) == pytest.approx(float(theirs))


def test_miou_of_a_set():
    """Over all pixels of all pictures; void ones are no part of it."""
    classes, void = 4, 255
    truths, mades = RNG.integers(0, classes, (2, 3, 16, 16))
    truths[:, :2] = void
    theirs = JaccardIndex(task="multiclass", num_classes=classes, ignore_index=void)
    theirs.update(torch.from_numpy(mades), torch.from_numpy(truths))
    counts = [miou.counts(truth, made, classes, void) for truth, made in zip(truths, mades, strict=True)]
    assert pooled(counts).value == pytest.approx(float(theirs.compute()))


def test_psnr():
    truth, made = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    theirs = PeakSignalNoiseRatio(data_range=255.0)(torch.from_numpy(made).float(), torch.from_numpy(truth).float())
    assert psnr_ssim.psnr(truth, made) == pytest.approx(float(theirs), rel=1e-5)


def test_clip_score(tmp_path):
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPModel, CLIPProcessor

    quiet_libraries()
    folder = tiny_readers.clip(tmp_path / "clip")
    pictures = [RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(4)]
    samples = [Sample(str(i), picture, None, chr(97 + i)) for i, picture in enumerate(pictures)]
    ready, missing = extras.prepare(["clip_score"], str(folder))
    assert missing == {}
    ours = ready["clip_score"].run(pictures, samples).values

    class Model(CLIPModel):
        """torchmetrics 1.9 wants vectors, transformers 5 gives an object that holds them."""

        def get_image_features(self, *args, **kwargs):
            return vectors(super().get_image_features(*args, **kwargs))

        def get_text_features(self, *args, **kwargs):
            return vectors(super().get_text_features(*args, **kwargs))

    def vectors(found):
        return getattr(found, "pooler_output", found)

    def model():
        return Model.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)

    for value, picture, sample in zip(ours, pictures, samples, strict=True):
        theirs = clip_score(torch.from_numpy(picture).permute(2, 0, 1), sample.caption, model)
        assert value == pytest.approx(float(theirs), abs=1e-3)
