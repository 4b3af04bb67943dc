"""Three arms with known figures, their sample grids, and a reader of the page that reports them."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np

from lisa.build import result
from lisa.sample.grids import grid_layout, labelled_grid, save_png
from made_runs import make_run, saturating

TITLES = ["condition", *result.TITLES]


def add_grid(run, step, shade):
    cells = [[np.full((16, 16, 3), value, np.uint8) for value in (0, 50, shade, 250)] for _ in range(2)]
    save_png(labelled_grid(cells, TITLES), run / "samples" / f"step-{step:06d}.png")
    with (run / "events.jsonl").open("a") as file:
        event = {"step": step, "kind": "samples", "path": f"step-{step:06d}.png", "grid": grid_layout(TITLES)}
        file.write(json.dumps(event) + "\n")


def three_arms(out, seeds=range(5)):
    """lisa takes half of plain's steps at 1.25 times the time per step; shuffled is plain; all by seed."""
    for seed in seeds:
        half = 80.0 + 10 * seed
        make_run(out, "plain", seed, saturating(half), every=10, seconds_per_step=0.2, judged=range(0, 1001, 100))
        make_run(out, "lisa", seed, saturating(half / 2), every=10, seconds_per_step=0.25, fidelity=0.9)
        make_run(out, "shuffled", seed, saturating(half), every=10, seconds_per_step=0.25)
    return out


def rows(summary):
    return {row["arm"]: row for row in summary["arms"]}


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.images, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                (self.images if tag == "img" else self.links).append(value)
