"""Activations computed again: the same gradients to the bit, and fewer of them kept than by diffusers' own way."""

from __future__ import annotations

import torch

from conformance import row as rows
from conformance import tiny_svd
from lisa.build.recomputing import recompute_activations
from lisa.pairs import Pair, pair_spec
from lisa.sides.base import SideOptions

SPEC = pair_spec("svd-controlnet")


def step(pair):
    """Bytes kept for the backward pass, and the gradients of a controlled pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    inputs, target = rows.make_inputs(pair, (8, 12))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.nn.functional.mse_loss(pair.predict(inputs).controlled, target)
    pair.side.module.zero_grad()
    loss.backward()
    trained = [each for each in pair.side.module.named_parameters() if each[1].requires_grad]
    return sum(kept.values()), {name: weight.grad.clone() for name, weight in trained}


def test_transformers_over_time_are_recomputed_whole(tmp_path):
    main = SPEC.load_main(str(tiny_svd.make_folder(tmp_path)))
    torch.manual_seed(0)
    side = SPEC.make_side(main, SideOptions())
    for module in side.zero_modules():
        torch.nn.init.normal_(module.weight, std=0.1)
    pair = Pair(SPEC, main, side)
    side.module.train()
    all_kept, expected = step(pair)
    for network in (side.module, main.network):
        network.enable_gradient_checkpointing()
    by_diffusers, _ = step(pair)
    for network in (side.module, main.network):
        recompute_activations(network)
        assert network.is_gradient_checkpointing
    ours, gradients = step(pair)
    assert ours < 0.8 * by_diffusers < by_diffusers < all_kept
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0
