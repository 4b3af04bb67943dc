"""lisa analyse on clips: frames side by side, and a whole analysis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import lisa
import runs
from conformance import tiny_animatediff, tiny_svd, tiny_wan
from lisa.build.analysis.features import _as_film
from lisa.build.analysis.film import film, picture_film
from lisa.common.runfolder import RunFolder
from lisa.core.frames import fold
from lisa.pairs import pair_spec
from lisa.sides.base import SideOptions
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings, save_settings

FRAMES = 5


def test_frames_lie_side_by_side():
    clips = torch.randn(2, 4, 3, 5, 6)
    strips = film(clips)
    assert strips.shape == (2, 4, 5, 18)
    for frame in range(3):
        assert torch.equal(strips[..., 6 * frame : 6 * frame + 6], clips[:, :, frame])
    assert film(clips[:, :, 0]) is not None and torch.equal(film(clips[:, :, 0]), clips[:, :, 0])


def test_features_of_every_kind_become_the_same_strips():
    """Maps of clips, maps of frames, and tokens in the order (t, h, w)."""
    clips, x_t = torch.randn(2, 7, 3, 4, 6), torch.empty(2, 4, 3, 8, 12)
    expected = film(clips)
    for feature in (clips, fold(clips), clips.flatten(2).transpose(1, 2)):
        assert torch.equal(_as_film(feature, x_t, "layer"), expected)
    assert torch.equal(_as_film(clips[:, :, 0], x_t[:, :, 0], "layer"), clips[:, :, 0])


def test_pictures_for_latent_frames_are_means_of_their_frames():
    clip = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 6), dtype=np.uint8)
    whole, few = picture_film(clip, 5), picture_film(clip, 2)
    assert whole.shape == (2, 15, 6) and few.shape == (2, 6, 6)
    assert all(np.array_equal(whole[:, 3 * n : 3 * n + 3], clip[n]) for n in range(5))
    assert np.array_equal(few[:, :3], clip[0])
    np.testing.assert_allclose(few[:, 3:], clip[1:].mean(0), atol=0.5)


#: Pair -> its tiny model, latent frames of the clips, and the side network's size where it can be chosen.
FAMILIES = {
    "wan-vace": (tiny_wan.make_folder, 2, SideOptions(depth=2)),
    "svd-controlnet": (tiny_svd.make_folder, FRAMES, SideOptions()),
    "animatediff-controlnet": (tiny_animatediff.make_folder, FRAMES, SideOptions()),
}


def random_run(root, pair, model, options, seed=0):
    """A random side network in a run folder."""
    clips = {"data__source": "moving-scenes", "data__frames": FRAMES, "data__scenes": 16, "data__held_out": 8}
    raw = runs.settings(root, model, **clips, align__enabled=False)
    raw["model"]["pair"] = pair
    config = check_settings(TrainConfig, raw)
    spec = pair_spec(pair)
    torch.manual_seed(seed)
    side = spec.make_side(spec.load_main(str(model)), options)
    for module in side.zero_modules():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    root.mkdir()
    save_settings(config, RunFolder(root).config)
    side.save(RunFolder(root).side_network)
    return root


@pytest.mark.parametrize("pair", FAMILIES)
def test_an_analysis_of_a_run_on_clips(pair, tmp_path):
    """Against another network of the same kind."""
    make, latent_frames, options = FAMILIES[pair]
    model = make(tmp_path / "model")
    run, other = (random_run(tmp_path / name, pair, model, options, seed) for seed, name in enumerate(("run", "other")))
    result = lisa.analyse(run, against=other, levels=1)
    assert result["samples"] == 8 and [layer["name"] for layer in result["layers"]]
    for each in result["by_level"]:
        for name in ("run", "against"):
            assert each[name]["r2"]["noise"]["value"] is not None
            total = each[name]["total"]
            assert total["noise"]["value"] > 0 and total["condition"]["value"] > 0
    (name,) = [name for name in result["pictures"] if name.startswith("features-run")]
    picture = Image.open(run / "analysis" / name)
    columns = 1 + min(len(result["layers"]), 8)
    scale = picture.width // (columns * latent_frames * 32)
    assert picture.width == (columns * (latent_frames * 32 + 4) - 4) * scale
