"""Every pair through the same checks, on tiny random weights with non-zero zero modules."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import mse_loss

import lisa
import tiny
from conformance import row as rows
from conformance.table import ROWS
from lisa.core.decoder import to_map
from lisa.pairs import Pair, pair_names, pair_spec
from lisa.sample.pictures import Request, SamplerSettings, fast_scheduler, sample_pictures

each_row = pytest.mark.parametrize("row", ROWS, ids=str)
each_precision = pytest.mark.parametrize("precision", ["fp32", "bf16"])


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("conformance")


def in_precision(pair, precision):
    """The context a training of that precision runs in; the frozen network is then stored in it."""
    if precision == "fp32":
        return nullcontext()
    pair.main.to(torch.device("cpu"), torch.bfloat16)
    return torch.autocast("cpu", torch.bfloat16)


def test_every_pair_is_in_the_table():
    for name in pair_names():
        assert {row.prediction for row in ROWS if row.pair == name} == set(pair_spec(name).predictions), name


@each_row
@each_precision
def test_shared_prior_is_bit_equal_to_separate_passes(row, root, precision):
    """Prediction, prior and the gradients of the side network; and the control does something."""
    results = []
    for share in (True, False):
        pair = rows.make_pair(row, root, share_prior=share)
        assert (pair.shared is not None) == (share and pair.spec.shares_prefix)
        inputs, target = rows.make_inputs(pair, row.sizes[1])
        with in_precision(pair, precision):
            prediction = pair.predict(inputs)
            mse_loss(prediction.controlled.float(), target).backward()
        results.append((prediction, [p.grad for p in pair.side.module.parameters()]))
    (shared, gradients), (separate, expected) = results
    assert torch.equal(shared.controlled, separate.controlled) and torch.equal(shared.prior, separate.prior)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))
    assert (shared.controlled - shared.prior).abs().max() > 1e-3


@each_row
def test_prior_is_the_main_network_alone(row, root):
    """The residual is target minus prior, in the space of the family's own target."""
    pair = rows.make_pair(row, root)
    inputs, target = rows.make_inputs(pair, row.sizes[0])
    prediction = pair.predict(inputs)
    with torch.no_grad():
        alone = pair.main.forward(inputs.x_t, inputs.t, pair.main.complete(inputs.context, inputs.x_t))
    assert torch.equal(prediction.prior, alone)
    assert prediction.prior.shape == target.shape == inputs.x_t.shape and not prediction.prior.requires_grad


@each_row
def test_a_new_side_network_changes_nothing_where_it_has_zero_modules(row, root):
    """Adapters have none: theirs is no zero start, and the test would be blind to a side network that is not read."""
    pair = rows.make_pair(row, root, randomise=False)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    prediction = pair.predict(inputs)
    unchanged = torch.allclose(prediction.controlled, prediction.prior, rtol=1e-4, atol=1e-5)
    assert unchanged == bool(pair.side.zero_modules())


@pytest.mark.parametrize("row", [row for row in ROWS if row.embedder is not None], ids=str)
def test_planted_pattern_comes_back_at_its_place(row, root):
    """Tokens are laid out as the latent is: what is changed in one corner of it changes that corner of the map."""
    pair = rows.make_pair(row, root)
    size = row.sizes[1]
    inputs, _ = rows.make_inputs(pair, size)
    patch = next(layer.stride for layer in pair.side.layers() if layer.name == pair.spec.default_layer)
    planted = {"x_t": inputs.x_t.clone(), "condition": inputs.condition.clone()}
    y, x = patch, 2 * patch
    planted[row.planted_in][:, :, y : y + patch, x : x + patch] += 1.0
    seen = []
    hook = row.embedder(pair.side.module).register_forward_hook(lambda m, i, output: seen.append(output))
    context = pair.main.complete(inputs.context, inputs.x_t)
    time = pair.main.process.model_time(inputs.t)
    with torch.no_grad():
        pair.side.forward(inputs.x_t, time, context, inputs.condition)
        pair.side.forward(planted["x_t"], time, context, planted["condition"])
    hook.remove()
    changed = to_map(row.tokens(seen[1] - seen[0], size), size).abs().amax(dim=(0, 1)) > 0
    expected = torch.zeros_like(changed)
    expected[y // patch, x // patch] = True
    assert torch.equal(changed, expected)


@each_row
def test_layers_are_what_forwards_show(row, root):
    """Names, channels and strides that are told without a forward; the decoder's output has the target's shape."""
    pair = rows.make_pair(row, root)
    layers = pair.side.layers()
    aligner = attached(pair, [layer.name for layer in layers])
    for size in row.sizes:
        inputs, target = rows.make_inputs(pair, size)
        prediction = pair.predict(inputs)
        terms = aligner(target, prediction.prior, pair.main.process.decoder_time(inputs.t), x_t=inputs.x_t)
        assert {score.shape for score in terms.decoded.values()} == {target.shape}
        assert torch.equal(terms.residual, target - prediction.prior)
    channels = {
        name: decoder.in_channels for name, decoder in zip(aligner.layers, aligner.decoders.values(), strict=True)
    }
    assert channels == {layer.name: layer.channels for layer in layers}


def attached(pair: Pair, layers):
    strides = {layer.name: layer.stride for layer in pair.side.layers()}
    return lisa.attach(
        pair.side.module,
        layers,
        out_channels=pair.main.latent_channels,
        stride=[strides[name] for name in layers],
        tap=pair.side.tap,
        x_t_channels=0 if pair.side.sees_x_t else pair.main.latent_channels,
    )


@each_row
def test_one_step_moves_what_is_trained_and_nothing_else(row, root):
    pair = rows.make_pair(row, root)
    aligner = attached(pair, [pair.spec.default_layer])
    trained = [(name, p) for name, p in pair.side.module.named_parameters() if p.requires_grad]
    before = {name: p.detach().clone() for name, p in trained}
    frozen = [p for p in pair.side.module.parameters() if not p.requires_grad] + list(pair.main.network.parameters())
    frozen_before = [p.detach().clone() for p in frozen]
    optimiser = torch.optim.AdamW([*[p for _, p in trained], *aligner.parameters()], lr=1e-2, weight_decay=0)
    inputs, target = rows.make_inputs(pair, row.sizes[0])
    prediction = pair.predict(inputs)
    terms = aligner(target, prediction.prior, pair.main.process.decoder_time(inputs.t), x_t=inputs.x_t)
    (mse_loss(prediction.controlled, target) + terms.loss).backward()
    optimiser.step()
    assert [name for name, p in trained if torch.equal(p, before[name])] == []
    assert all(torch.equal(p, old) for p, old in zip(frozen, frozen_before, strict=True))
    assert not any(p.requires_grad for p in pair.main.network.parameters())


@each_row
def test_saved_and_loaded_it_predicts_the_same(row, root, tmp_path):
    pair = rows.make_pair(row, root)
    pair.side.module.eval()
    pair.side.save(tmp_path / "side")
    loaded = pair.spec.load_side(str(tmp_path / "side"))
    pair.spec.check_fit(pair.main, loaded)
    loaded.module.eval()
    inputs, _ = rows.make_inputs(pair, row.sizes[1])
    with torch.no_grad():
        assert torch.equal(pair.control(inputs), Pair(pair.spec, pair.main, loaded).control(inputs))
    assert type(loaded.module).__name__ == pair.spec.side_kind == pair.side.kind


def in_memory(pipeline):
    """Weights mapped from a file lie at other addresses, which changes the order of vectorised sums."""
    for module in pipeline.components.values():
        for tensor in (*module.parameters(), *module.buffers()) if isinstance(module, torch.nn.Module) else ():
            tensor.data = tensor.data.clone()
    return pipeline


@each_row
def test_stock_pipeline_loads_it_and_gives_our_picture(row, root, tmp_path):
    """The family's own ``from_pretrained`` with the saved side network, against our sampling: bit for bit."""
    import diffusers

    pair = rows.make_pair(row, root)
    pair.side.module.eval()
    pair.side.save(tmp_path / "side")
    side = getattr(diffusers, pair.spec.side_kind).from_pretrained(tmp_path / "side")
    stock_class = getattr(diffusers, pair.spec.pipeline_name)
    stock = in_memory(stock_class.from_pretrained(rows.model_folder(row, root), **{pair.spec.call.network: side}))
    rows.to_own_memory(stock)
    ours = pair.pipeline()
    assert type(ours) is type(stock)
    generator = torch.Generator().manual_seed(0)
    size = [8 * pair.main.latent_factor] * 2
    conditions = [torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(2)]
    requests = [Request(str(i), "a cat", condition, seed=1) for i, condition in enumerate(conditions)]
    pictures = []
    for pipeline in (ours, stock):
        fast_scheduler(pipeline)
        settings = SamplerSettings(steps=2, guidance=2.0, batch_size=2)
        pictures.append([p for _, p in sample_pictures(pipeline, requests, settings, pair.spec.call)])
    for mine, theirs, condition in zip(*pictures, conditions, strict=True):
        assert mine.shape == condition.shape and (mine == theirs).all()
    assert (pictures[0][0] != pictures[0][1]).any()  # the condition is all that differs between the two


@each_row
def test_building_a_pair_changes_no_upstream_object(row, root):
    """Configuration and weights of the main network, and its modules' names, are as they were."""
    pair = rows.make_pair(row, root)
    fresh = copy.deepcopy(pair.spec.load_main(str(rows.model_folder(row, root)), **row.load))
    assert dict(pair.main.network.config) == dict(fresh.network.config)
    assert [name for name, _ in pair.main.network.named_modules()] == [n for n, _ in fresh.network.named_modules()]
    ours, theirs = pair.main.network.state_dict(), fresh.network.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    pair.predict(inputs)
    assert tiny.traces(pair.main.network) == {} and tiny.traces(pair.side.module) == {}


@pytest.mark.parametrize("name", pair_names())
def test_reference_side_tells_its_layers(name):
    """What ``lisa models`` shows: of a public model's configuration, without its weights."""
    spec = pair_spec(name)
    layers = spec.reference_side().layers()
    assert spec.default_layer in [layer.name for layer in layers]
    assert all(layer.channels > 0 and layer.stride & (layer.stride - 1) == 0 for layer in layers)
