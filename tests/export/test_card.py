"""The card of a side network, and the lines that load it."""

from __future__ import annotations

import json

import pytest

from lisa.export.card import loading_code, write_card


@pytest.mark.parametrize(("ema", "expected"), [(None, "the raw weights of the last step"), (0.99, "(decay 0.99)")])
def test_the_card_says_what_the_weights_are(tmp_path, ema, expected):
    write_card(tmp_path, {"steps": 7, "condition": "edges"}, loader="import this", ema=ema)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n")
    assert expected in text and "| steps | 7 |\n| condition | edges |" in text and "```python\nimport this\n```" in text


def test_the_lines_that_load_it_do(finished_run):
    """They are run as they stand: the pipeline they make gives a picture."""
    summary = json.loads((finished_run / "summary.json").read_text())
    code = loading_code(
        "ControlNetModel", "StableDiffusionControlNetPipeline", str(finished_run / "side_network"), summary["model"]
    )
    assert len(code.splitlines()) == 3
    names: dict = {}
    exec(code, names)
    from PIL import Image

    names["pipe"].set_progress_bar_config(disable=True)
    picture = names["pipe"]("a", image=Image.new("RGB", (32, 32)), num_inference_steps=1).images[0]
    assert picture.size == (32, 32)


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
