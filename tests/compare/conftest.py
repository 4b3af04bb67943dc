"""The runs that the tests of a comparison's report share."""

from __future__ import annotations

import pytest

from lisa.compare.report import write_report
from reported import add_grid, three_arms


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    out = three_arms(tmp_path_factory.mktemp("compare"))
    for shade, arm in enumerate(("plain", "lisa", "shuffled")):
        for step in (200, 400):
            add_grid(out / arm / "seed-0", step, 100 + shade)
    return out, write_report([out], out)
