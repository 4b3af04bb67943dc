"""One side network on several stacked conditions: the same geometry, training to pictures, and the stock pipeline."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import runs
import tiny
from fake_runs import fake_run
from lisa.build import parts
from lisa.build.evaluation import evaluate
from lisa.build.generation import GenerateOptions, generate, read_run
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.data.images import load_rgb, save_png
from lisa.pairs import pair_spec
from lisa.sides.base import SideOptions
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings

STACK = ["segmentation", "lowres"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(sd_small, tmp_path_factory):
    """A training of two steps through the command line."""
    out = tmp_path_factory.mktemp("stacked") / "run"
    raw = runs.settings(out, sd_small, data__condition=STACK, data__flip=True, train__steps=2)
    done = invoke("train", *runs.arguments(raw))
    assert done.exit_code == 0, done.output
    return out, done.stdout


def test_a_training_judges_each_condition(trained):
    out, said = trained
    summary = json.loads((out / "summary.json").read_text())
    assert summary["condition"] == STACK and summary["fidelity"] is None
    assert {name: each["protocol"] for name, each in summary["fidelities"].items()} == {
        "segmentation": "scenes/segmentation",
        "lowres": "scenes/lowres",
    }
    assert summary["condition_gap"]["value"] is not None
    assert "lisa on segmentation + lowres" in said
    assert "fidelity to segmentation (miou) with" in said and "gain in fidelity to lowres" in said
    assert "| condition | segmentation, lowres |" in (out / "side_network" / "README.md").read_text()


def test_a_sample_grid_shows_each_condition(trained):
    """Columns: segmentation, lowres, without, with, truth."""
    out, _ = trained
    config = read_run(out)
    opened = parts.open_data(config.data, 0, check=False)
    first = parts.Still(opened.held_out, opened.transform)[0]
    grid = np.asarray(Image.open(next((out / "samples").glob("*.png"))))
    columns = [grid[24::2, 2 * 36 * i : 2 * 36 * i + 64 : 2][:32] for i in range(5)]
    assert grid.shape[1] == 2 * (5 * 32 + 4 * 4)
    for number, expected in {0: first.condition[..., :3], 1: first.condition[..., 3:], 4: first.image}.items():
        assert np.array_equal(columns[number], expected)


def test_generated_and_judged_by_either(trained, tmp_path):
    out, _ = trained
    made = generate(GenerateOptions(run=out, out=tmp_path / "made", steps=1, guidance=1.0))
    assert made["made"] == 4
    with pytest.raises(LisaError, match=r"the run has several conditions. Choices: segmentation, lowres"):
        evaluate(tmp_path / "made", run=out)
    with pytest.raises(LisaError, match=r"unknown condition of the run 'edges'"):
        evaluate(tmp_path / "made", run=out, condition="edges")
    judged = invoke("evaluate", tmp_path / "made", "--run", out, "--condition", "lowres", "--json")
    assert json.loads(judged.stdout)["protocol"] == "scenes/lowres"


def test_the_stock_pipeline_gives_our_picture(sd_small, tmp_path):
    """from_pretrained, and the conditions as one tensor: bit for bit. Both conditions count."""
    import diffusers

    out = fake_run(tmp_path / "run", sd_small, STACK)
    generate(GenerateOptions(run=out, out=tmp_path / "made", steps=2, guidance=2.0, count=1))
    (ours,) = [load_rgb(path) for path in (tmp_path / "made").glob("*.png")]
    side = diffusers.ControlNetModel.from_pretrained(out / "side_network")
    assert side.config.conditioning_channels == 6
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(sd_small, controlnet=side)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, side):
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = tensor.data.clone()  # mapped from files they are added up in another order
    opened = parts.open_data(read_run(out).data, 0, check=False)
    sample = parts.Still(opened.held_out, opened.transform)[0]
    pixels = torch.from_numpy(sample.condition).permute(2, 0, 1)[None].float() / 255

    def picture(image):
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np", "generator": generator}
        made = pipeline(sample.caption, image=image, height=32, width=32, **options).images[0]
        return (made * 255).round().astype(np.uint8)

    assert np.array_equal(picture(pixels), ours)
    for channels in (slice(0, 3), slice(3, 6)):
        other = pixels.clone()
        other[:, channels] = 0
        assert not np.array_equal(picture(other), ours)


@pytest.mark.parametrize("kind", ["sd-controlnet", "sd-t2i-adapter"])
def test_with_zero_weights_for_the_second_condition_it_is_the_single_network(sd15, kind):
    """To rounding: convolutions over six and over three channels add up in another order."""
    spec, main = pair_spec(kind), tiny.load_main(sd15)
    single, stacked = (spec.make_side(main, SideOptions(conditions=n)) for n in (1, 2))
    first = "controlnet_cond_embedding.conv_in.weight" if kind == "sd-controlnet" else "adapter.conv_in.weight"
    weights = copy.deepcopy(single.module.state_dict())
    unshuffled = weights[first]
    weights[first] = torch.cat([unshuffled, torch.zeros_like(unshuffled)], dim=1)
    stacked.module.load_state_dict(weights)
    for side in (single, stacked):
        side.module.eval()
        if kind == "sd-controlnet":
            tiny.randomise_zero_modules(side.module)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 6, 64, 64, generator=generator)
    x_t, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 500])
    context = main.encode_text(["a", "b"])
    with torch.no_grad():
        ours = stacked.forward(x_t, t, context, pixels)
        theirs = single.forward(x_t, t, context, pixels[:, :3])
        heard = single.forward(x_t, t, context, pixels[:, 3:])
    flat = [torch.cat([each.flatten() for each in tensors(result)]) for result in (ours, theirs, heard)]
    torch.testing.assert_close(flat[0], flat[1], rtol=1e-5, atol=1e-5)
    assert (flat[1] - flat[2]).abs().max() > 1e-3
    assert stacked.condition_channels == 6 and single.condition_channels == 3


def tensors(result):
    return [result] if isinstance(result, torch.Tensor) else [each for part in result for each in tensors(part)]


def test_folders_and_their_names(sd_small, tmp_path):
    """conditions/<name>/ for each; one of them alone too; the same flip and crop for all."""
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    for i in range(6):
        image = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        save_png(image, data / "images" / f"{i}.png")
        save_png(255 - image, data / "conditions" / "gray" / f"{i}.png")
        save_png(image // 2, data / "conditions" / "blur" / f"{i}.png")
    raw = runs.settings(tmp_path / "run", sd_small, data__source=str(data), data__condition=["gray", "blur"])
    raw["data"].update(default_caption="", crop="random", flip=True, held_out=2)
    config = check_settings(TrainConfig, raw)
    opened = parts.open_data(config.data, 0)
    flipped = set()
    for index in range(len(opened.train)):
        sample = opened.train[index]
        for step in range(4):
            image, condition = opened.transform(sample.image, sample.condition, index, step)
            assert condition.shape == (32, 32, 6)
            assert np.abs(255 - image.astype(int) - condition[..., :3]).max() <= 1  # all resized by one filter
            flipped.add(opened.transform.flips(index, step))
    assert flipped == {True, False}
    for name, picture in (("gray", 255 - sample.image), ("blur", sample.image // 2)):
        raw["data"]["condition"] = name
        alone = parts.open_data(check_settings(TrainConfig, raw).data, 0)
        assert np.array_equal(alone.train[index].condition, picture)
    raw["data"]["condition"] = ["gray", "depth"]
    with pytest.raises(LisaError, match=r"has no folder 'conditions/depth'. Choices: blur, gray"):
        parts.open_data(check_settings(TrainConfig, raw).data, 0)
    (data / "conditions" / "blur" / "3.png").unlink()
    with pytest.raises(LisaError, match=r"1 image of 6 without a condition in 'conditions/blur' \('3'\)"):
        parts.open_data(config.data, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data__condition": []}, "data.condition: must be a name, or a list of different names"),
        ({"data__condition": ["edges", "edges"]}, "data.condition: must be a name, or a list of different names"),
        ({"data__condition": ["edges", "egdes"]}, "unknown scene condition 'egdes'"),
    ],
)
def test_refused(sd_small, tmp_path, changes, expected):
    with pytest.raises(LisaError) as caught:
        config = check_settings(TrainConfig, runs.settings(tmp_path, sd_small, **changes))
        parts.open_data(config.data, 0)
    assert expected in str(caught.value)


def test_side_networks_of_another_number_of_conditions(sd_small, tmp_path):
    single, stacked = (fake_run(tmp_path / str(n), sd_small, STACK[:n]) for n in (1, 2))
    message = "the side network reads 1 condition picture at once, 2 given"
    raw = runs.settings(tmp_path / "new", sd_small, data__condition=STACK, side__init=str(single))
    with pytest.raises(LisaError, match=message):
        parts.build_pair(check_settings(TrainConfig, raw))
    raw["data"]["condition"], raw["side"] = "edges", {"init": str(stacked)}
    with pytest.raises(LisaError, match="reads 2 condition pictures at once, 1 given"):
        parts.build_pair(check_settings(TrainConfig, raw))
    out = tmp_path / "out"
    for name in "ab":
        save_png(np.zeros((32, 32, 3), np.uint8), tmp_path / f"{name}.png")
    options = {"model": str(sd_small), "prompt": "x", "out": out, "steps": 1}
    both = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(LisaError, match=message):
        generate(GenerateOptions(side=str(single / "side_network"), condition=both, **options))
    with pytest.raises(LisaError, match=r"--condition was given 1 time, needed are 2 for"):
        generate(GenerateOptions(side=str(stacked), condition=both[0], **options))
    assert not out.exists()
    assert generate(GenerateOptions(side=str(stacked), condition=both, **options))["made"] == 1
