"""The card of a side network: what it says, what it shows, and that the lines in it load and use the network."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from conformance import row as rows
from conformance.table import ROWS, VIDEO_ROWS
from lisa.build.card import write_run_card
from lisa.build.export import ExportOptions, export
from lisa.build.generation import read_run
from lisa.build.result import Results
from lisa.common.runfolder import RunFolder
from lisa.export.usage import loading_code
from lisa.pairs import pair_names
from lisa.sample.pictures import Request, SamplerSettings, sample_requests, set_solver
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings

#: As the Hub calls them: by whether clips are made, and of what.
TASKS = {(False, "prompt"): "text-to-image", (True, "prompt"): "text-to-video", (True, "frame"): "image-to-video"}


@pytest.fixture(scope="module")
def card(finished_run):
    return (finished_run / "side_network" / "README.md").read_text()


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def rewritten(run, folder, summary_changes=None, **changes):
    """The card of a finished run as another configuration would have made it."""
    config = read_run(run)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        part = getattr(config, section).model_copy(update={key: value})
        config = config.model_copy(update={section: part})
    summary = json.loads((run / "summary.json").read_text()) | (summary_changes or {})
    folder.mkdir(exist_ok=True)
    write_run_card(folder, RunFolder(run), config, 3, summary["call_options"], summary)
    return (folder / "README.md").read_text()


def test_figures_are_the_summarys(card, finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    text, fidelity = " ".join(card.split()), summary["fidelity"]
    for interval in (summary["control_gain"], summary["condition_gap"], fidelity["with"], fidelity["without"]):
        assert "{value:.3f} [{low:.3f}, {high:.3f}]".format(**interval) in card
    for told in (
        f"fidelity with it ({fidelity['metric']})",
        "protocol `scenes/edges`, 2 held-out samples",
        "| onset of control | not reached |",
        "| main network | small |",
        "| data | scenes |",
        "| size (width x height) | 32x32 |",
        "| steps | 3 |",
        "| batch size | 2 |",
        "| alignment | layer down.5, weight 0.2, plain weighting, constant schedule |",
        "| seed | 0 |",
        f"lisa {summary['versions']['lisa']}, torch",
        "the raw weights of the last step",
        "arxiv.org/abs/2606.27192",
        "## Limitations",
    ):
        assert told in text, told


def test_the_hub_understands_it(card, finished_run, tmp_path):
    plain = front_matter(card)
    assert plain["library_name"] == "diffusers" and plain["pipeline_tag"] == "text-to-image"
    assert {"controlnet", "lisa", "edges"} <= set(plain["tags"])
    assert not {"base_model", "datasets"} & plain.keys()  # they would have to be on the Hub
    hub = front_matter(rewritten(finished_run, tmp_path / "a", model__path="owner/model", data__source="owner/data"))
    assert (hub["base_model"], hub["base_model_relation"], hub["datasets"]) == ("owner/model", "adapter", "owner/data")
    adapter = front_matter(rewritten(finished_run, tmp_path / "b", model__pair="sd-t2i-adapter"))
    assert "t2i-adapter" in adapter["tags"] and "controlnet" not in adapter["tags"]


def test_pictures_are_there(card, finished_run):
    folder = finished_run / "side_network"
    shown = re.findall(r"!\[.*\]\((.*)\)", card)
    assert shown == ["samples.png", "curves.png"]
    summary = json.loads((finished_run / "summary.json").read_text())
    assert (folder / "samples.png").read_bytes() == Path(summary["picture"]).read_bytes()
    curves = np.asarray(Image.open(folder / "curves.png").convert("L"))
    assert curves.shape[1] > 4 * curves.shape[0] > 400  # four panels side by side
    panels = np.array_split(curves, 4, axis=1)
    assert all((panel < 160).mean() > 0.003 for panel in panels)  # none of them is empty


@pytest.mark.parametrize(
    ("data", "rows", "told"),
    [
        ({"source": "moving-scenes", "frames": 6}, ["frames | 6", "frames per second | 8.0"], ", fps=8)"),
        ({"source": "x", "frames": 6, "frame_rate": 12.5}, ["frames per second | 12.5"], ", fps=12.5)"),
        ({"source": "x", "frames": 6}, ["frames | 6"], "width=frames[0].width)"),
    ],
)
def test_what_is_set_for_clips_is_told(data, rows, told, tmp_path):
    model = {"path": "svd", "pair": "svd-controlnet", "log_sigma": [0.5, 1.25]}
    config = check_settings(TrainConfig, {"model": model, "data": data, "out": tmp_path / "run"})
    write_run_card(tmp_path, RunFolder(config.out), config, 3, {})
    text = (tmp_path / "README.md").read_text()
    assert all(f"| {row} |" in text for row in [*rows, "log sigma (mean, deviation) | 0.5, 1.25"])
    assert f"{told}.frames[0]" in text and ("per second" in text) == ("fps" in told)


def test_text_is_readable_in_a_terminal(card):
    assert max(map(len, re.sub(r"```.*?```", "", card, flags=re.S).splitlines())) <= 100


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train__ema": 0.99}, "an exponential average (decay 0.99) over steps"),
        (
            {"train__mixed_precision": "bf16"},
            "| precision | main network bfloat16, side network float32 with bf16 autocast |",
        ),
        ({"side__lora_rank": 4}, "| low-rank adapters | rank 4, merged into the weights |"),
        ({"align__enabled": False}, "trained without alignment."),
        ({"side__condition_init": "auto"}, "| side.condition_init | auto |"),
        ({"align__layer": ["down.1", "mid"]}, "| alignment | layers down.1, mid, weight 0.2,"),
        ({"summary_changes": {"onset": 150}}, "| onset of control | step 150 |"),
        ({"summary_changes": {"fidelities": {}}}, "No protocol judges the fidelity to this condition."),
    ],
)
def test_what_differs_between_runs(finished_run, tmp_path, changes, expected):
    text = " ".join(rewritten(finished_run, tmp_path / "card", **changes).split())
    assert expected in text and ("gain in fidelity (" in text) == ("No protocol" not in expected)
    assert (tmp_path / "card" / "curves.png").is_file()


def test_a_checkpoints_card_has_no_figures_yet(finished_run):
    (checkpoint,) = (finished_run / "checkpoints").glob("step-000002")
    text = (checkpoint / "side_network" / "README.md").read_text()
    assert "| steps | 2 |" in text and "## Figures" not in text and ".png" not in text


def test_export_writes_it_anew(card, finished_run, tmp_path):
    run = tmp_path / finished_run.name
    shutil.copytree(finished_run, run)
    (run / "side_network" / "README.md").write_text("old")
    (run / "side_network" / "curves.png").unlink()
    export(ExportOptions(run, tmp_path / "a.safetensors"))
    assert (run / "side_network" / "README.md").read_text() == card and (run / "side_network" / "curves.png").is_file()


@pytest.mark.parametrize("pair", pair_names())
def test_the_cards_own_lines_give_our_picture_or_clip(pair, tmp_path):
    """Saved as a run saves it; the card's lines run as they stand, but for the places to fill in. Bit for bit."""
    row = next(row for row in (*ROWS, *VIDEO_ROWS) if row.pair == pair)
    made = rows.make_pair(row, tmp_path)
    made.side.module.eval()
    model, side, call = rows.model_folder(row, tmp_path), tmp_path / "side", made.call
    config = check_settings(TrainConfig, {"model": {"path": str(model), "pair": pair}, "out": tmp_path / "run"})
    Results(config, RunFolder(config.out), None, made, None).save_side(side, 3)
    text = (side / "README.md").read_text()
    assert str(tmp_path) not in text and front_matter(text)["pipeline_tag"] == TASKS[call.clips, call.begins]
    code = re.search(r"```python\n(.*?)```", text, flags=re.S).group(1)
    for place, there in {"path/to/side_network": side, f"path/to/{model.name}": model}.items():
        assert place in code
        code = code.replace(place, str(there))
    loading, calling = code.split("# frames" if call.clips else "# condition")
    scope: dict = {}
    exec(loading, scope)
    ours, stock = made.pipeline(), scope["pipe"]
    rows.to_own_memory(stock)
    assert type(ours) is type(stock)
    height, width = 8 * made.main.latent_factor, (10 if call.clips else 8) * made.main.latent_factor
    frames = np.random.default_rng(0).integers(0, 256, (rows.FRAMES, height, width, 3), dtype=np.uint8)
    first = frames[0] if call.begins == "frame" else None
    pictures = []
    for pipeline in (ours, stock):
        set_solver(pipeline)
        request = Request("0", "a prompt", frames if call.clips else frames[0], seed=1, frame=first)
        pictures.append(next(sample_requests(pipeline, [request], SamplerSettings(steps=2, guidance=2.0), call))[1])
    assert (pictures[0] == pictures[1]).all()
    sizes = {} if call.clips else {"height": height, "width": width}
    scope["pipe"] = partial(stock, num_inference_steps=1, output_type="pil", **sizes)
    scope["frames"] = [*map(Image.fromarray, frames)]
    scope["image"] = scope["condition"] = scope["frames"][0]
    exec("#" + calling, scope)
    made = scope["clip"] if call.clips else [scope["picture"]]
    assert [each.size for each in made] == [(width, height)] * (rows.FRAMES if call.clips else 1)


def test_three_lines_load_it(finished_run):
    """As they are printed at the end of a training."""
    summary = json.loads((finished_run / "summary.json").read_text())
    code = loading_code(
        "ControlNetModel", "StableDiffusionControlNetPipeline", str(finished_run / "side_network"), summary["model"]
    )
    assert len(code.splitlines()) == 3
    names: dict = {}
    exec(code, names)
    assert type(names["pipe"].controlnet).__name__ == "ControlNetModel"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tiny-sd", 'from_pretrained(lisa.zoo.path("tiny-sd"), controlnet=side'),
        ("owner/model", 'from_pretrained("owner/model", controlnet=side'),
        ("/a/model.safetensors", 'from_single_file("/a/model.safetensors", controlnet=side'),
        ("/a/model.bin", 'from_single_file("/a/model.bin", controlnet=side'),
        ('/a/"b"\\c', 'from_pretrained("/a/\\"b\\"\\\\c", controlnet=side'),
    ],
)
def test_where_the_main_network_comes_from(model, expected):
    code = loading_code("ControlNetModel", "Pipeline", "side", model)
    assert expected in code and code.startswith("import lisa\n") == (model == "tiny-sd")
    compile(code, "card", "exec")
