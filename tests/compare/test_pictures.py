"""What a comparison's report shows: samples side by side, curves and their legend."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from PIL import Image

from lisa.compare import wording
from lisa.compare.aligned import read_comparison
from lisa.compare.curves import _interval_line, colour, dash, panels
from lisa.compare.report import write_report
from lisa.compare.results import summarise
from lisa.sample.grids import grid_layout, save_png
from made_runs import make_run, saturating
from reported import TITLES, Page, add_grid, three_arms


def test_samples_stand_side_by_side_at_equal_steps(reported):
    """Condition, no control, each arm's column of its own grid, truth: cut out of the grids without their margins."""
    page = Page()
    page.feed((reported[0] / "report.html").read_text("utf-8"))
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB") for uri in page.images]
    assert len(pictures) == 2 * 6
    assert [picture.getpixel((4, 4))[0] for picture in pictures[:6]] == [0, 50, 100, 101, 102, 250]
    assert all(picture.size == (32, 32 + 8 + 32) for picture in pictures)


def test_a_damaged_grid_costs_its_step_alone(tmp_path, monkeypatch):
    three_arms(tmp_path, seeds=[0])
    for arm in ("plain", "lisa", "shuffled"):
        for step in (200, 400):
            add_grid(tmp_path / arm / "seed-0", step, 100)
    damaged = tmp_path / "lisa" / "seed-0" / "samples" / "step-000200.png"
    for content in (damaged.read_bytes()[:60], b"no picture"):
        damaged.write_bytes(content)
        write_report([tmp_path], tmp_path)
        text = (tmp_path / "report.html").read_text("utf-8")
        assert f"A step is left out, because <code>{damaged}</code> cannot be read" in text
        assert "<h3>step 400</h3>" in text and "<h3>step 200</h3>" not in text
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a damaged head can tell any size
    write_report([tmp_path], tmp_path)
    assert "<h3>step" not in (tmp_path / "report.html").read_text("utf-8")


def test_where_there_is_no_curve_of_fidelity_the_page_says_why(reported, tmp_path):
    make_run(tmp_path, "plain", 0, saturating(100))
    write_report([tmp_path], tmp_path)
    told = "Fidelity was judged at the end alone"
    assert told in (tmp_path / "report.html").read_text("utf-8")
    assert told not in (reported[0] / "report.html").read_text("utf-8")
    (tmp_path / "plain" / "seed-0" / "summary.json").write_text('{"steps": 1000}')  # no protocol judges its condition
    write_report([tmp_path], tmp_path)
    assert told not in (tmp_path / "report.html").read_text("utf-8")


def test_arms_beyond_the_colours_are_dashed_and_the_legend_says_so(tmp_path):
    for place in range(9):
        make_run(tmp_path, f"arm-{place}", 0, saturating(100))
    write_report([tmp_path], tmp_path, baseline="arm-0")
    text = (tmp_path / "report.html").read_text("utf-8")
    legend = text[text.index('<p class="legend">') :].partition("</p>")[0]
    assert "arm-7 (dashed)" in legend and "arm-8 (dashed)" in legend and legend.count("(") == 2
    styles = {(colour(place), dash(place)) for place in range(28)}
    assert len(styles) == 28


def test_the_axes_of_curves_are_named_with_units(tmp_path):
    from matplotlib.figure import Figure

    summary = make_run(tmp_path, "plain", 0, saturating(100), judged=[0, 500]) / "summary.json"
    summary.write_text(summary.read_text().replace('"unit": ""', '"unit": "dB"', 1))
    comparison = read_comparison([tmp_path])
    found = {}
    for panel in panels(comparison, summarise(comparison)):
        panel.draw(axis := Figure().add_subplot())
        found[panel.title] = axis.get_ylabel(), axis.get_xlabel()
    assert found["control gain over steps"] == ("control gain", "step")
    assert found["fidelity to edges over training time"] == ("edge_f1 (dB)", "training time (s)")


@pytest.mark.parametrize(
    ("bound", "seeds", "drawn"),
    [("at most", 3, 1), ("at least", 3, 1), ("unknown", 3, 0), (None, 3, 2), (None, 2, 1)],
)
def test_speed_ups_are_drawn_with_and_without_ends(bound, seeds, drawn):
    """An interval of two seeds is drawn no more than it is told."""
    from matplotlib.figure import Figure

    axis = Figure().add_subplot()
    ends = (None, None) if bound else (1.5, 3.0)
    speed = {"value": 2.0, "low": ends[0], "high": ends[1], "bound": bound, "never": [], "seeds": list(range(seeds))}
    reach = _interval_line(axis, speed, 0.0, "black")
    assert len(axis.lines) == drawn and reach == ([2.0, 1.5, 3.0] if drawn == 2 else [2.0])
    if bound is None:
        told = wording.speed({**speed, "baseline_never": []}, "plain")
        assert told == ("2.00", "[1.50, 3.00]" if seeds == 3 else "2 seeds: no interval")
    assert [text.get_text() for text in axis.texts] == (["?"] if bound == "unknown" else [])


def test_clips_move_in_the_report(tmp_path):
    import numpy as np

    from lisa.sample.clips import animation, contact_sheet, save_animation

    rows_ = three_arms(tmp_path, seeds=[0])
    for shade, arm in enumerate(("plain", "lisa", "shuffled")):
        samples = rows_ / arm / "seed-0" / "samples"
        values = (0, 50, 100 + shade, 250)
        columns = {
            title: [np.full((3, 16, 16, 3), value, np.uint8) for _ in range(2)]
            for title, value in zip(TITLES, values, strict=True)
        }
        for clips in columns.values():
            clips[0][1, :8] = 255  # frames differ
        save_png(contact_sheet(columns), samples / "step-000200.png")
        save_animation(animation(columns), samples / "step-000200.webp", 4.0)
        event = {"step": 200, "kind": "samples", "path": "step-000200.png", "grid": grid_layout(TITLES, 1)}
        event["animation_grid"] = grid_layout(TITLES)  # of another scale than the sheet's
        with (rows_ / arm / "seed-0" / "events.jsonl").open("a") as file:
            file.write(json.dumps({**event, "animation": "step-000200.webp"}) + "\n")
    write_report([tmp_path], tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    uris = re.findall(r'<img src="data:image/webp;base64,([^"]+)" alt="([^,]+), step 200', page)
    assert [title for _, title in uris] == ["condition", "without control", "plain", "lisa", "shuffled", "ground truth"]
    for (uri, _), value in zip(uris, (0, 50, 100, 101, 102, 250), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(uri))) as moving:
            assert moving.n_frames == 3 and moving.size == (32, 2 * 40 - 8)
            shown = []
            for number in range(3):
                moving.seek(number)
                assert np.asarray(moving.convert("RGB"))[31, 31, 0] == value and moving.info["duration"] == 250
                shown.append(np.asarray(moving.convert("RGB"))[0, 0, 0])
            assert shown == [value, 255, value]
