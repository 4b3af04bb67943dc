"""Model folders, made once per session."""

from __future__ import annotations

import pytest

import tiny

# Their comparisons should say what differs.
pytest.register_assert_rewrite("runs", *[f"conformance.{name}" for name in ("calls", "checks", "own_space", "row")])


@pytest.fixture(scope="session")
def model_root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def sd15(model_root):
    """Epsilon, factor 8, the structure of SD 1.5."""
    return tiny.make_folder(model_root / "sd15")


@pytest.fixture(scope="session")
def sd21(model_root):
    """v-prediction, factor 8, linear projections and heads per level, as SD 2.1."""
    return tiny.make_folder(model_root / "sd21", "v_prediction", v2=True)


@pytest.fixture(scope="session")
def sd_small(model_root):
    """Epsilon, factor 4, three levels: the geometry of the embedded model."""
    return tiny.make_folder(model_root / "small", factor=4, levels=3)


@pytest.fixture(scope="session")
def finished_run(sd_small, tmp_path_factory):
    """A finished training of three steps with LISA, to be read only; its summary is in summary.json."""
    import lisa
    import runs

    out = tmp_path_factory.mktemp("runs") / "finished"
    changes = {"train__steps": 3, "log__tracker": "tensorboard", "log__held_out_every": 2, "log__checkpoint_every": 2}
    lisa.train(runs.settings(out, sd_small, **changes), quiet=True)
    return out
