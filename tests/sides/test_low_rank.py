"""Low-rank adapters on every side network that is a copy: what is trained, and what is given away."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

import lisa
from conformance import row as rows
from conformance import tiny_flux, tiny_sd, tiny_t2i
from conformance.table import ROWS, VIDEO_ROWS
from lisa.common.errors import LisaError
from lisa.pairs import Pair
from lisa.sample.pictures import Request, SamplerSettings, sample_pictures, set_solver
from lisa.sides.low_rank import add_low_rank, is_adapted, without_adapters

# What is predicted makes no difference here: one row per pair and label.
COPIES = list({(row.pair, row.label): row for row in [*ROWS, *VIDEO_ROWS] if "t2i" not in row.pair}.values())
each_copy = pytest.mark.parametrize("row", COPIES, ids=str)
SD, FLUX = tiny_sd.ROWS[0], tiny_flux.ROWS[0]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("low_rank")


def adapted(row, root, rank=2, **options):
    """A pair with adapters that do something: peft's start at zero."""
    pair = rows.make_pair(row, root)
    add_low_rank(pair.side, rank, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in pair.side.module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pair


def is_adapter(name):
    return ".lora_A." in name or ".lora_B." in name


@each_copy
def test_one_step_moves_adapters_and_what_is_new_and_nothing_else(row, root):
    """Every adapter gets a gradient: none is on a layer that reaches nothing."""
    plain = rows.make_pair(row, root)
    alive = {name for name, p in plain.side.module.named_parameters() if p.requires_grad}
    new = {id(p) for p in plain.side.new_parameters()}
    new = alive & {name for name, p in plain.side.module.named_parameters() if id(p) in new}
    if row.init is None and row.pair not in ("zimage-controlnet", "wan-vace"):  # which copy to other names
        theirs = plain.main.network.state_dict()
        ours = plain.side.module.state_dict()
        copied = {name for name in ours if name in theirs and torch.equal(ours[name], theirs[name])}
        assert new == alive - copied
    pair = adapted(row, root)
    module = pair.side.module
    aligner = lisa.attach(
        module, pair.spec.default_layer, out_channels=pair.main.latent_channels, stride=stride_of_default(pair)
    )
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert {name for name in trained if not is_adapter(name)} == new
    assert any(is_adapter(name) for name in trained) and len(new) >= 4
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    inputs, target = rows.make_inputs(pair, row.sizes[0])
    prediction = pair.predict(inputs)
    terms = aligner(target, prediction.prior, pair.main.process.decoder_time(inputs.t))
    (mse_loss(prediction.controlled, target) + terms.loss).backward()
    torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0).step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained.keys()
    assert not any(p.requires_grad for p in pair.main.network.parameters())


def stride_of_default(pair):
    return next(layer.stride for layer in pair.side.layers() if layer.name == pair.spec.default_layer)


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@each_copy
def test_what_is_saved_is_a_plain_network_that_predicts_the_same(row, root, tmp_path):
    """Weights: to the last bit those with the adapters merged in. Predictions: the same but for rounding."""
    pair = adapted(row, root)
    module = pair.side.module.eval()
    inputs, _ = rows.make_inputs(pair, row.sizes[1])
    trained = state_of(module)
    with without_adapters(module):
        assert not any(is_adapted(layer) for layer in module.modules())
        merged = state_of(module)
    assert same(state_of(module), trained), "the adapters are back, and the weights as they were"
    pair.side.save(tmp_path / "side")
    loaded = pair.spec.load_side(str(tmp_path / "side"))
    pair.spec.check_fit(pair.main, loaded)
    loaded.module.eval()
    bare = rows.make_pair(row, root)
    bare.side.module.eval()
    assert same(loaded.module.state_dict(), merged) and list(merged) == list(bare.side.module.state_dict())
    with torch.no_grad():
        ours, theirs = pair.control(inputs), Pair(pair.spec, pair.main, loaded).control(inputs)
        assert (bare.control(inputs) - ours).abs().max() > 1e-3, "the adapters do something"
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", [SD, FLUX], ids=str)
def test_the_stock_pipeline_makes_the_picture_of_what_is_given_away(row, root, tmp_path):
    import diffusers

    pair = adapted(row, root)
    pair.side.module.eval()
    pair.side.save(tmp_path / "side")
    side = getattr(diffusers, pair.spec.side_kind).from_pretrained(tmp_path / "side")
    stock = getattr(diffusers, pair.spec.pipeline_name).from_pretrained(rows.model_folder(row, root), controlnet=side)
    rows.to_own_memory(stock)
    pixels = [8 * pair.main.latent_factor] * 2
    condition = torch.randint(0, 256, (*pixels, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    request = Request("0", "a cat", condition.numpy(), seed=1)

    def picture(pipeline):
        set_solver(pipeline)
        return next(sample_pictures(pipeline, [request], SamplerSettings(steps=2, guidance=2.0), pair.call))[1]

    with without_adapters(pair.side.module):
        ours = picture(pair.pipeline())
    assert (ours == picture(stock)).all()


@pytest.mark.parametrize("row", [SD, FLUX], ids=str)
def test_recomputed_activations_give_the_same_gradients(row, root):
    gradients = []
    for recompute in (False, True):
        pair = adapted(row, root)
        if recompute:
            pair.side.module.enable_gradient_checkpointing()
            pair.main.network.enable_gradient_checkpointing()
        inputs, target = rows.make_inputs(pair, row.sizes[0])
        mse_loss(pair.predict(inputs).controlled, target).backward()
        gradients.append([p.grad for p in pair.side.module.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and len(gradients[0]) > 8


def test_wrapped_for_several_processes_it_learns_the_same(root, tmp_path):
    gradients = []
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ddp", rank=0, world_size=1)
    try:
        for wrap in (lambda module: module, torch.nn.parallel.DistributedDataParallel):
            pair = adapted(SD, root)
            pair.side.callee = wrap(pair.side.module)
            inputs, target = rows.make_inputs(pair, SD.sizes[0])
            mse_loss(pair.predict(inputs).controlled, target).backward()
            gradients.append([p.grad for p in pair.side.module.parameters() if p.requires_grad])
            pair.side.save(tmp_path / "side")
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and len(gradients[0]) > 8


def test_rank_scale_and_layers_are_as_asked(root):
    pair = adapted(SD, root, rank=3, alpha=6.0, targets=["attn1.to_q", "conv1"])
    layers = {name: layer for name, layer in pair.side.module.named_modules() if is_adapted(layer)}
    assert {name.split(".")[-1] for name in layers} == {"to_q", "conv1"} and not any("attn2" in name for name in layers)
    name, layer = next((n, each) for n, each in layers.items() if n.endswith("to_q"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape[0] == up.shape[1] == 3
    expected = (layer.get_base_layer().weight + 2 * up @ down).detach()
    with without_adapters(pair.side.module):
        torch.testing.assert_close(pair.side.module.get_submodule(name).weight.detach(), expected)


def test_what_was_frozen_stays_frozen(root):
    """A deeper network than the main one takes up: blocks and zero modules that reach nothing."""
    pair = rows.make_pair(SD, root)
    dead = ["controlnet_down_blocks.0", "down_blocks.0.resnets.0.conv1"]
    for name in dead:
        pair.side.module.get_submodule(name).requires_grad_(False)
    add_low_rank(pair.side, 2)
    for name in dead:
        layer = pair.side.module.get_submodule(name)
        assert not is_adapted(layer) and not layer.weight.requires_grad
    assert pair.side.module.controlnet_down_blocks[1].weight.requires_grad


def test_an_error_inside_leaves_the_adapters_in_place(root):
    pair = adapted(SD, root)
    before = state_of(pair.side.module)
    with pytest.raises(OSError), without_adapters(pair.side.module):
        raise OSError("disk full")
    assert same(state_of(pair.side.module), before)


def test_refused(root):
    for targets, expected in (
        (["to_qq"], "ends in 'to_qq' (did you mean 'to_q'?)"),
        (["to_q", "nothing"], "ends in 'nothing'"),
        (["controlnet_mid_block"], "ends in 'controlnet_mid_block'"),  # is trained in full
    ):
        with pytest.raises(LisaError) as caught:
            add_low_rank(rows.make_pair(SD, root).side, 2, targets=targets)
        assert expected in str(caught.value) and "Set side.lora_targets" in str(caught.value)
    adapter = rows.make_pair(tiny_t2i.ROWS[0], root, randomise=False).side
    with pytest.raises(LisaError, match=r"a T2IAdapter is small and no copy.*Leave side.lora_rank empty"):
        add_low_rank(adapter, 2)
