"""ControlNetUnionModel: copied whole, one kind of condition, samples that do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from conformance import row as rows
from conformance import tiny_sdxl
from conformance.calls import recorded
from lisa.common.errors import LisaError
from lisa.pairs import Inputs
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures, set_solver
from lisa.sides.base import SideOptions
from lisa.sides.union import ControlNetUnionSide


@pytest.fixture
def pair(tmp_path_factory):
    return rows.make_pair(tiny_sdxl.ROWS[2], tmp_path_factory.mktemp("union"))


def test_all_that_the_main_network_has_is_copied(pair):
    assert pair.spec.name == "sdxl-controlnet-union"
    main = pair.main.network.state_dict()
    ours = ControlNetUnionSide.from_main(pair.main.network, 8).module.state_dict()
    shared = [name for name in ours if name in main]
    assert all(torch.equal(ours[name], main[name]) for name in shared)
    parts = {name.split(".")[0] for name in shared}
    assert parts == {"conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"}


def test_samples_do_not_see_each_other(pair):
    """The transformer over conditions attends across the batch, unless kept from it."""
    pair.side.module.eval()
    inputs, _ = rows.make_inputs(pair, (8, 8))
    inputs.condition[0] = 0.0
    with torch.no_grad():  # so that a sample that sees another is not lost in rounding
        pair.side.module.task_embedding.zero_()
        for parameter in pair.side.module.transformer_layes.parameters():
            parameter.mul_(10)
    context = {name: value[:1] for name, value in inputs.context.items()}
    alone = Inputs(inputs.x_t[:1], inputs.t[:1], context, inputs.condition[:1])
    with torch.no_grad():
        together, one = pair.control(inputs)[:1], pair.control(alone)
        torch.testing.assert_close(together, one, rtol=1e-4, atol=1e-5)
        context = pair.main.complete(inputs.context, inputs.x_t)
        kinds = torch.eye(6)[[0, 0]]
        down, _ = pair.side._run(
            inputs.x_t, inputs.t, context, controlnet_cond=[inputs.condition], control_type=kinds, control_type_idx=[0]
        )
        apart, _ = pair.side.forward(inputs.x_t, inputs.t, context, inputs.condition)
    assert (down[0] - apart[0]).abs().max() > 1e-2  # what diffusers does by itself
    assert tiny.traces(pair.side.module) == {}


def test_hooks_are_gone_after_a_failure(pair):
    inputs, _ = rows.make_inputs(pair, (8, 8))
    with pytest.raises(Exception):  # noqa: B017 - whatever diffusers raises
        pair.side.forward(inputs.x_t, inputs.t, inputs.context, inputs.condition[:, :2])
    assert tiny.traces(pair.side.module) == {}


def test_the_kind_of_condition_counts(pair):
    inputs, _ = rows.make_inputs(pair, (8, 8))
    with torch.no_grad():
        first = pair.control(inputs)
        pair.side.choose_control_type(3)
        assert not torch.equal(first, pair.control(inputs))


@pytest.mark.parametrize("kind", [0, 3])
def test_the_pipeline_is_told_the_kind(pair, kind):
    pair.side.choose_control_type(kind)
    pipeline = pair.pipeline()
    set_solver(pipeline)
    wanted = [Request("0", "a cat", np.zeros((64, 64, 3), np.uint8), 1)]
    with recorded([pipeline.controlnet]) as sampled:
        list(sample_pictures(pipeline, wanted, SamplerSettings(1, 1.0), pair.call))
    with recorded([pair.side.module]) as trained:
        pair.control(rows.make_inputs(pair, (8, 8))[0])
    ((theirs,),), ((ours,),) = sampled, trained
    assert theirs["control_type_idx"] == ours["control_type_idx"] == [kind]
    assert theirs["control_type"][0].tolist() == ours["control_type"][0].tolist() == torch.eye(6)[kind].tolist()


def test_several_conditions_are_refused(pair):
    with pytest.raises(LisaError, match="one picture per kind of condition"):
        pair.spec.make_side(pair.main, SideOptions(conditions=2))


def test_other_main_networks_are_refused():
    """Stable Diffusion 1.5 has no picture sizes, by whose embedding the kinds are embedded."""
    with pytest.raises(LisaError, match="UNet2DConditionModel"):
        ControlNetUnionSide.from_main(tiny.make_unet(), 8)
