"""What is promised of every pair, one function per promise: ``check(row, folder)``, collected in :data:`CHECKS`.

A package that adds a pair runs its row through the same functions; see ``docs/adding-a-family.md``.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

import tiny
from conformance import row as rows
from conformance.blocks import blocks_of, outputs_of, same
from conformance.calls import compare_with_pipeline
from conformance.condition_start import a_start_by_the_conditions_lets_them_in_and_changes_nothing
from conformance.own_space import follow_scheduler
from conformance.planting import change_of_feature, plant
from conformance.promises import CHECKS, in_precision, promised, promised_in_each_precision
from conformance.row import Row
from lisa.common.errors import LisaError
from lisa.core.decoder import to_map
from lisa.core.frames import fold_feature, unfold
from lisa.pairs import Pair
from lisa.sample.pictures import Request, SamplerSettings, sample_clips, sample_pictures, set_solver
from lisa.sides.base import SideOptions

__all__ = ["CHECKS", "a_start_by_the_conditions_lets_them_in_and_changes_nothing"]


@promised_in_each_precision
def shared_prior_is_bit_equal_to_separate_passes(row: Row, folder: Path, precision: str) -> None:
    """Prediction, prior and the gradients of the side network, which are finite; and the control does something."""
    results = []
    for share in (True, False):
        pair = rows.make_pair(row, folder, share_prior=share)
        assert (pair.shared is not None) == (share and pair.spec.shares_prefix)
        assert pair.main.process.prediction == row.prediction
        results.append(rows.gradients(pair, row.sizes[1], in_precision(pair, precision)))
    rows.assert_same_step(*results)


@promised
def what_both_passes_have_in_common_is_computed_once(row: Row, folder: Path) -> None:
    """Every block that gives the same in both, measured in two passes, and no other; adapters share nothing."""
    seen = {}
    for share in (False, True):
        pair = rows.make_pair(row, folder, share_prior=share)
        inputs, _ = rows.make_inputs(pair, row.sizes[0])
        with torch.no_grad(), outputs_of(blocks_of(pair.main.network)) as seen[share]:
            pair.predict(inputs)
    # Twice, for prior and control, and once between them where the side network borrows the block.
    common = [pair.spec.shares_prefix and same(outputs[0], outputs[-1]) for outputs in seen[False]]
    saved = [len(apart) - len(together) for apart, together in zip(seen[False], seen[True], strict=True)]
    assert saved == common and any(common) == pair.spec.shares_prefix
    assert row.shares in (None, sum(common))


@promised
def prior_is_the_main_network_alone(row: Row, folder: Path) -> None:
    """And both have the shape of the target, whose difference to the prior is the residual."""
    pair = rows.make_pair(row, folder)
    inputs, target = rows.noised(pair, *rows.make_inputs(pair, row.sizes[0]))
    prediction = pair.predict(inputs)
    with torch.no_grad():
        alone = pair.main.forward(inputs.x_t, inputs.t, pair.main.complete(inputs.context, inputs.x_t))
    assert torch.equal(prediction.prior, alone)
    assert prediction.prior.shape == target.shape == inputs.x_t.shape and not prediction.prior.requires_grad


@promised
def a_new_side_network_changes_nothing_where_it_has_zero_modules(row: Row, folder: Path) -> None:
    """Adapters have none: theirs is no zero start, and the check would be blind to a side network that is not read."""
    pair = rows.make_pair(row, folder, randomise=False)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    prediction = pair.predict(inputs)
    unchanged = torch.allclose(prediction.controlled, prediction.prior, rtol=1e-4, atol=1e-5)
    assert unchanged == bool(pair.side.zero_modules())


@promised
def networks_are_called_as_the_pipeline_calls_them(row: Row, folder: Path) -> None:
    """And our prediction is what the pipeline hands to its scheduler: the same space, scale and sign."""
    compare_with_pipeline(rows.make_pair(row, folder), row.sizes[1], row.in_another_form)


@promised
def a_planted_pattern_comes_back_at_its_place(row: Row, folder: Path) -> None:
    """Tokens are laid out as the latent is: what is changed at one place of it changes that place of the map; of clips
    that of the same frame.
    """
    pair = rows.make_pair(row, folder)
    size = row.sizes[1]
    inputs, _ = rows.make_inputs(pair, size)
    cell = row.cell or next(layer.stride for layer in pair.side.layers() if layer.name == pair.spec.default_layer)
    planted = {"x_t": inputs.x_t.clone(), "condition": inputs.condition.clone()}
    y, x = 2, 3  # of the map
    pixels = pair.main.latent_factor if row.planted_in == "condition" and pair.side.reads == "pixels" else 1
    block = cell * pixels
    place = (..., slice(y * block, (y + 1) * block), slice(x * block, (x + 1) * block))
    planted[row.planted_in][(slice(None), slice(None), 1, *place[1:]) if pair.main.video else place] += 1.0
    seen: list[Any] = []
    hook = row.embedder(pair.side.module).register_forward_hook(lambda m, i, output: seen.append(output))
    context = pair.main.complete(inputs.context, inputs.x_t)
    time = pair.main.process.model_time(inputs.t)
    with torch.no_grad():
        pair.side.forward(inputs.x_t, time, context, inputs.condition)
        pair.side.forward(planted["x_t"], time, context, planted["condition"])
    hook.remove()
    frames = inputs.x_t.shape[2] if pair.main.video else 1
    difference = fold_feature(row.tokens(seen[1] - seen[0], size), len(inputs.x_t), frames, "embedder")
    changed = unfold(to_map(difference, size), frames).abs().amax(dim=(0, 1)) > 0
    expected = torch.zeros_like(changed)
    expected[int(frames > 1), y - row.reach : y + 1 + row.reach, x - row.reach : x + 1 + row.reach] = True
    assert changed.shape == (frames, size[0] // cell, size[1] // cell) and torch.equal(changed, expected)


@promised
def the_aligned_feature_shows_a_planted_pattern_at_its_place(row: Row, folder: Path) -> None:
    """What a decoder reads of the first layer: attention carries a change everywhere, its own place changes most.
    Convolutions, which read pixels, may show it more strongly one place away.
    """
    pair, size, place = rows.make_pair(row, folder), row.sizes[1], (2, 5)
    inputs, _ = rows.make_inputs(pair, size)
    layer = pair.side.layers()[0]
    planted = plant(pair, inputs, row.planted_in, layer.stride, place)
    for change in change_of_feature(pair, layer, inputs, planted, size):
        y, x = divmod(int(change.argmax()), change.shape[1])
        assert max(abs(y - place[0]), abs(x - place[1])) <= (pair.side.reads == "pixels"), (y, x)


@promised
def layers_are_what_forwards_show(row: Row, folder: Path) -> None:
    """Names, channels and strides that are told without a forward; the decoder's output has the target's shape, and
    prior and residual together denoise to the picture's latent.
    """
    pair = rows.make_pair(row, folder)
    layers = pair.side.layers()
    aligner = rows.attached(pair, [layer.name for layer in layers])
    for size in row.sizes:
        clean, noise = rows.make_inputs(pair, size)
        inputs, target = rows.noised(pair, clean, noise)
        prediction = pair.predict(inputs)
        terms = aligner(target, prediction.prior, pair.main.process.decoder_time(inputs.t), x_t=inputs.x_t)
        assert {score.shape for score in terms.decoded.values()} == {target.shape}
        assert torch.equal(terms.residual, target - prediction.prior)
        denoised = pair.main.process.denoised(inputs.x_t, prediction.prior + terms.residual, inputs.t)
        torch.testing.assert_close(denoised, clean.x_t, rtol=1e-3, atol=1e-3)
    channels = {
        name: decoder.in_channels for name, decoder in zip(aligner.layers, aligner.decoders.values(), strict=True)
    }
    assert channels == {layer.name: layer.channels for layer in layers}


@promised
def a_scheduler_given_the_target_ends_at_the_picture(row: Row, folder: Path) -> None:
    """What is learnt is what the pipeline's scheduler takes an output for: space, scale, sign and time."""
    pair = rows.make_pair(row, folder)
    clean, noise = rows.make_inputs(pair, row.sizes[0])
    ended = follow_scheduler(pair, clean.x_t, noise)
    torch.testing.assert_close(ended, clean.x_t, rtol=0, atol=5e-3)


@promised_in_each_precision
def one_step_moves_what_is_trained_and_nothing_else(row: Row, folder: Path, precision: str) -> None:
    """Of the side network and the decoder, as the trainer steps."""
    pair = rows.make_pair(row, folder)
    context = in_precision(pair, precision)
    aligner = rows.attached(pair, [pair.spec.default_layer])
    for parameter in aligner.parameters():  # its way out starts at zero, and would let no gradient through
        nn.init.normal_(parameter, std=0.05)
    named = [*pair.side.module.named_parameters("side"), *aligner.named_parameters("decoder")]
    trained = [(name, p) for name, p in named if p.requires_grad]
    before = {name: p.detach().clone() for name, p in trained}
    frozen = [p for _, p in named if not p.requires_grad] + list(pair.main.network.parameters())
    frozen_before = [p.detach().clone() for p in frozen]
    optimiser = torch.optim.AdamW([p for _, p in trained], lr=1e-2, weight_decay=0)
    inputs, target = rows.noised(pair, *rows.make_inputs(pair, row.sizes[0]))
    with context:
        prediction = pair.predict(inputs)
        terms = aligner(target, prediction.prior, pair.main.process.decoder_time(inputs.t), x_t=inputs.x_t)
        loss = mse_loss(prediction.controlled.float(), target) + terms.loss
    loss.backward()
    optimiser.step()
    assert [name for name, p in trained if torch.equal(p, before[name])] == []
    assert [name for name, p in trained if not p.isfinite().all()] == []
    assert all(torch.equal(p, old) for p, old in zip(frozen, frozen_before, strict=True))
    assert not any(p.requires_grad for p in pair.main.network.parameters())


@promised
def checkpointing_changes_nothing(row: Row, folder: Path) -> None:
    """Of each network that can recompute activations: in backward, when what was replayed or lent is gone."""
    results = []
    for checkpointing in (False, True):
        pair = rows.make_pair(row, folder)
        for network in (pair.main.network, pair.side.module):
            if checkpointing and network._supports_gradient_checkpointing:
                network.enable_gradient_checkpointing()
        results.append(rows.gradients(pair, row.sizes[1], nullcontext()))
    rows.assert_same_step(*results)


@promised_in_each_precision
def saved_and_loaded_it_predicts_the_same(row: Row, folder: Path, precision: str) -> None:
    pair = rows.make_pair(row, folder)
    pair.side.module.eval()
    pair.side.save(folder / "saved")
    loaded = pair.spec.load_side(str(folder / "saved"))
    pair.spec.check_fit(pair.main, loaded)
    loaded.module.eval()
    inputs, _ = rows.make_inputs(pair, row.sizes[1])
    with in_precision(pair, precision), torch.no_grad():
        assert torch.equal(pair.control(inputs), Pair(pair.spec, pair.main, loaded).control(inputs))
    assert type(loaded.module).__name__ == pair.spec.side_kind == pair.side.kind


@promised
def stock_pipeline_loads_it_and_gives_our_picture(row: Row, folder: Path) -> None:
    """The family's own ``from_pretrained`` with the saved side network, against our sampling: bit for bit."""
    pair = rows.make_pair(row, folder)
    pair.side.module.eval()
    pair.side.save(folder / "saved")
    package = import_module(pair.spec.package)
    side = getattr(package, pair.spec.side_kind).from_pretrained(folder / "saved")
    stock_class = getattr(package, pair.spec.pipeline_name)
    model, joins = rows.model_folder(row, folder), pair.call.joins
    given = getattr(side, joins)(str(model)) if joins else side
    stock = stock_class.from_pretrained(model, **{pair.call.network: given})
    rows.to_own_memory(stock)
    ours = pair.pipeline()
    assert type(ours) is type(stock)
    generator = torch.Generator().manual_seed(0)
    size = [*rows.over_time(pair.main), 8 * pair.main.latent_factor, 12 * pair.main.latent_factor]
    sample = sample_clips if pair.main.video else sample_pictures
    conditions = [torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(2)]
    frame = conditions[0][0] if pair.main.context_reads == "frame" else None
    requests = [Request(str(i), "a cat", each, seed=1, frame=frame) for i, each in enumerate(conditions)]
    pictures = []
    for pipeline in (ours, stock):
        set_solver(pipeline)
        settings = SamplerSettings(steps=2, guidance=2.0, batch_size=2)
        pictures.append([p for _, p in sample(pipeline, requests, settings, pair.call)])
    for mine, theirs, condition in zip(*pictures, conditions, strict=True):
        assert mine.shape == condition.shape and (mine == theirs).all()
    assert (pictures[0][0] != pictures[0][1]).any()  # the condition is all that differs between the two


@promised
def building_a_pair_changes_no_upstream_object(row: Row, folder: Path) -> None:
    """Nor does making its pipeline. The main network is as its folder has it; both have the modules that they had."""
    pair = rows.make_pair(row, folder)
    main, side = pair.main, pair.side.module
    before = [(dict(each.config), dict(each.named_modules())) for each in (main.network, side)]
    pair.pipeline()
    assert [(dict(each.config), dict(each.named_modules())) for each in (main.network, side)] == before
    stored = type(main.network).from_pretrained(f"{rows.model_folder(row, folder)}/{main.network_name}")
    assert dict(main.network.config) == dict(stored.config)
    assert [name for name, _ in main.network.named_modules()] == [name for name, _ in stored.named_modules()]
    ours, theirs = main.network.state_dict(), stored.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    pair.predict(inputs)
    left = tiny.traces(pair.side.module)
    if pair.spec.package.startswith("lisa."):  # a class of our own is no trace
        left = {name: found for name, found in left.items() if name or found}
    assert tiny.traces(pair.main.network) == left == {}


@promised
def its_layers_can_be_listed_without_weights(row: Row, folder: Path) -> None:
    """What ``lisa models`` shows: of a public model's configuration."""
    spec = rows.spec_of(row)
    layers = spec.reference_side().layers()
    assert spec.default_layer in [layer.name for layer in layers]
    assert all(layer.channels > 0 and layer.stride & (layer.stride - 1) == 0 for layer in layers)


@promised
def a_depth_is_heeded_or_refused(row: Row, folder: Path) -> None:
    """Never silently left aside."""
    pair = rows.make_pair(row, folder)
    try:
        side = pair.spec.make_side(pair.main, SideOptions(depth=2))
    except LisaError as error:
        assert re.search(r"side.depth is 2, but a \w+'s is not free", str(error))
        assert not row.free_depth
    else:
        assert row.free_depth and len([layer for layer in side.layers() if layer.name.startswith("block.")]) == 2
