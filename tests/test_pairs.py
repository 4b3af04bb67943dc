"""Pairs: predictions, what fits, zero cost at inference, and the stock pipeline that loads the result."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import mse_loss

import lisa
import tiny
from lisa.common.errors import LisaError
from lisa.pairs import PairSpec, pair_names, pair_spec, register
from lisa.pairs.stable_diffusion import check_controlnet_fits
from lisa.sides.controlnet import ControlNetSide


def train(source, *, aligned, steps=3, finish=True):
    """A few steps of the usual loop, with or without alignment; the pair, with everything taken off again."""
    pair = tiny.make_pair(source, randomise=False)
    aligner = lisa.attach(pair.side.module, pair.spec.default_layer, out_channels=4) if aligned else None
    parameters = [*pair.side.module.parameters(), *(aligner.parameters() if aligner else ())]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    for step in range(steps):
        inputs, target = tiny.make_inputs(pair.main, seed=step)
        prediction = pair.predict(inputs, need_prior=aligned)
        loss = mse_loss(prediction.controlled, target)
        if aligner:
            loss = loss + aligner(target, prediction.prior, pair.main.process.decoder_time(inputs.t)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if aligner and finish:
        aligner.remove()
    return pair


@pytest.fixture(scope="module")
def saved(sd15, tmp_path_factory):
    """Side networks trained with and without alignment, and their saved folders."""
    root = tmp_path_factory.mktemp("saved")
    pairs = {"lisa": train(sd15, aligned=True), "plain": train(sd15, aligned=False)}
    for name, pair in pairs.items():
        pair.side.save(root / name)
    return pairs, root


def test_zero_cost_of_the_saved_file(saved):
    """The keys in the file itself, not what a loader lets through; same class, configuration and parameter count."""
    _, root = saved
    ours, plain = (load_file(root / name / "diffusion_pytorch_model.safetensors") for name in ("lisa", "plain"))
    assert list(ours) == list(plain)
    assert all(ours[key].shape == plain[key].shape and ours[key].dtype == plain[key].dtype for key in ours)
    assert any(not torch.equal(ours[key], plain[key]) for key in ours)  # it did train otherwise
    configs = [json.loads((root / name / "config.json").read_text()) for name in ("lisa", "plain")]
    assert configs[0] == configs[1] and configs[0]["_class_name"] == "ControlNetModel"
    assert [p.name for p in sorted((root / "lisa").iterdir())] == [p.name for p in sorted((root / "plain").iterdir())]


def test_zero_cost_of_the_module(saved):
    pairs, _ = saved
    for pair in pairs.values():
        assert tiny.traces(pair.side.module) == {} and tiny.traces(pair.main.network) == {}
    ours, plain = pairs["lisa"].side.module, pairs["plain"].side.module
    assert type(ours) is type(plain)
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in plain.named_modules()]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in plain.named_buffers()]
    for (name, a), (_, b) in zip(ours.named_modules(), plain.named_modules(), strict=True):
        assert a.__dict__.keys() == b.__dict__.keys(), name


def test_saving_while_attached_gives_the_same_file(sd15, saved, tmp_path):
    """Checkpoints are written in the middle of training, with the hooks on."""
    pair = train(sd15, aligned=True, finish=False)
    assert tiny.traces(pair.side.module)
    pair.side.save(tmp_path)
    ours = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    removed = load_file(saved[1] / "lisa" / "diffusion_pytorch_model.safetensors")
    assert list(ours) == list(removed) and all(torch.equal(ours[key], removed[key]) for key in ours)


def test_stock_pipeline_follows_the_condition(saved, sd15):
    """The saved folder in diffusers' own pipeline; the image changes with the condition, and not without one."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    controlnet, found = ControlNetModel.from_pretrained(saved[1] / "lisa", output_loading_info=True)
    assert not any(found.values())
    tiny.randomise_zero_modules(controlnet)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(sd15, controlnet=controlnet)
    images = [sample(pipeline, condition) for condition in (torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))]
    again = sample(pipeline, torch.zeros(1, 3, 32, 32))
    assert torch.equal(images[0], again)
    assert (images[0] - images[1]).abs().max() > 1e-3
    unscaled = [
        sample(pipeline, condition, controlnet_conditioning_scale=0.0)
        for condition in (torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))
    ]
    assert torch.equal(*unscaled)


def sample(pipeline, condition, **options):
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        "a cat",
        image=condition,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **options,
    )
    return result.images


@pytest.mark.parametrize("folder", ["sd15", "sd21", "sd_small"])
def test_our_pipeline_is_the_stock_one(folder, request, tmp_path):
    """Built around the networks in memory, it gives what from_pretrained gives from the folders."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    source = request.getfixturevalue(folder)
    pair = tiny.make_pair(source)
    pair.side.save(tmp_path)
    ours = pair.pipeline()
    stock = StableDiffusionControlNetPipeline.from_pretrained(
        source, controlnet=ControlNetModel.from_pretrained(tmp_path)
    )
    assert type(ours) is type(stock) and type(ours).__name__ == pair.spec.pipeline_name
    size = 8 * pair.main.latent_factor
    condition = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample(ours, condition), sample(stock, condition), atol=1e-4, rtol=1e-4)


def test_sampling_during_training_disturbs_nothing(sd15):
    """The aligner's feature is of the training forward, even if a pipeline ran in between."""
    pair = tiny.make_pair(sd15)
    aligner = lisa.attach(pair.side.module, "down.5", out_channels=4)
    inputs, target = tiny.make_inputs(pair.main)
    prediction = pair.predict(inputs)
    sample(pair.pipeline(), torch.rand(1, 3, 32, 32))
    terms = aligner(target, prediction.prior, inputs.t)
    assert torch.isfinite(terms.loss) and pair.side.module.training


def test_registered_pairs():
    assert "sd-controlnet" in pair_names()
    with pytest.raises(LisaError, match=r"unknown pair 'sd-controlent' .did you mean 'sd-controlnet'"):
        pair_spec("sd-controlent")


def test_a_name_is_given_once():
    spec = pair_spec("sd-controlnet")
    assert register(spec) is spec
    with pytest.raises(LisaError, match="there is a kind of pair 'sd-controlnet' already"):
        register(dataclasses.replace(spec, default_layer="mid"))
    assert pair_spec("sd-controlnet") is spec


def test_nobody_is_verified_by_default():
    """What others register has not been through our tests."""
    fields = {field.name: field.default for field in dataclasses.fields(PairSpec)}
    assert fields["verified_by"] == ()
    assert all(pair_spec(name).verified_by for name in pair_names())


def test_pipelines_are_called_with_what_both_networks_need(sd15):
    pair = tiny.make_pair(sd15)
    assert pair.call == pair.spec.call
    pair.main.call_options = {"max_sequence_length": 8, "both": "main"}
    pair.side.call_options = {"both": "side"}
    assert pair.call.more == {"max_sequence_length": 8, "both": ["side"]}
    other = tiny.make_pair(sd15).side
    other.call_options = {"both": "other"}
    assert pair.spec.call_with(pair.main, [other, pair.side]).more["both"] == ["other", "side"]
    assert dataclasses.replace(pair.call, more={}) == dataclasses.replace(pair.spec.call, more={})


def test_default_layer_exists(sd15, sd_small):
    for source in (sd15, sd_small):
        pair = tiny.make_pair(source)
        layer = {layer.name: layer for layer in pair.side.layers()}[pair.spec.default_layer]
        assert layer.stride == 2  # method.md's reference: down_5, stride 2


def test_warm_start_fits(sd15, saved):
    main = tiny.load_main(sd15)
    side = ControlNetSide.from_folder(str(saved[1] / "lisa"))
    check_controlnet_fits(main, side)
    inputs, _ = tiny.make_inputs(main)
    residuals = side.forward(inputs.x_t, inputs.t, inputs.context, inputs.condition)
    assert torch.isfinite(main.forward(inputs.x_t, inputs.t, inputs.context, residuals)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cross_attention_dim": 32}, "cross_attention_dim is 32, the main network's is 16"),
        ({"block_out_channels": (8, 8, 16, 32)}, r"block_out_channels is .*32.*, the main network's is .*16"),
        ({"layers_per_block": 1}, "layers_per_block is 1"),
        ({"in_channels": 16}, "in_channels is 16"),
        (
            {"conditioning_embedding_out_channels": (16, 32, 96)},
            "shrinks conditions by 4, the main network's latents by 8",
        ),
        ({"conditioning_channels": 1}, "conditions of 1 channels"),
        ({"num_class_embeds": 3}, "num_class_embeds=3"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_side_networks_of_other_models_are_refused(sd15, change, words):
    from diffusers import ControlNetModel

    pair = tiny.make_pair(sd15)
    config = {name: value for name, value in pair.side.module.config.items() if not name.startswith("_")}
    with pytest.raises(LisaError, match=words) as caught:
        check_controlnet_fits(pair.main, ControlNetSide(ControlNetModel(**config | change)))
    assert str(sd15) in str(caught.value) and "side.init" in str(caught.value)


def test_frozen_network_in_reduced_precision_beside_a_side_network_in_full(sd15):
    """Mixed weights outside autocast, as when sampling or evaluating: nothing crashes, gradients arrive."""
    pair = tiny.make_pair(sd15)
    pair.main.to(torch.device("cpu"), torch.bfloat16)
    inputs, target = tiny.make_inputs(pair.main)
    context = {name: value.bfloat16() for name, value in inputs.context.items()}
    prediction = pair.predict(type(inputs)(inputs.x_t, inputs.t, context, inputs.condition))
    mse_loss(prediction.controlled.float(), target).backward()
    assert pair.side.module.conv_in.weight.grad.abs().max() > 0
    assert pair.side.module.conv_in.weight.grad.dtype == torch.float32
