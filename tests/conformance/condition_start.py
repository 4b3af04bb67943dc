"""That a new side network can start with what differs between conditions coming in."""

from __future__ import annotations

from pathlib import Path

import torch

from conformance import row as rows
from conformance.promises import promised
from conformance.row import Row
from lisa.sides.attach import default_select
from lisa.sides.embedding import find_condition_embedding, init_condition_embedding


@promised
def a_start_by_the_conditions_lets_them_in_and_changes_nothing(row: Row, folder: Path) -> None:
    """side.condition_init=lsuv: what differs comes in with a spread of 1, while the way out is still zero."""
    pair = rows.make_pair(row, folder, randomise=False)
    embedding = find_condition_embedding(pair.side.module)
    if embedding is None:  # an adapter, or a family's own way in; tests/sides/test_embedding.py says which of ours
        return
    inputs, _ = rows.make_inputs(pair, row.sizes[0])
    last = getattr(embedding, "conv_out", None)  # a chain of convolutions: what comes to the zero one at its end
    given, came_in = [], []
    size, select = (inputs.x_t.shape[-2], inputs.x_t.shape[-1]), default_select(pair.side.module)
    init_condition_embedding(pair.side.module, lambda batch: given.append(pair.run_side(batch)), [inputs], latent=size)
    assert not given, "the network need not run on"
    hook = (
        embedding.register_forward_hook(lambda module, arguments, output: came_in.append(output))
        if last is None
        else last.register_forward_pre_hook(lambda module, arguments: came_in.append(arguments[0]))
    )
    with hook:
        prediction = pair.predict(inputs)
    through = came_in[0] if select is None else select(came_in[0], size)  # the captions' tokens are not measured
    spread = float(through.detach().var(dim=0, correction=0).mean().sqrt())
    assert abs(spread - 1) < 0.01 if last is None else 0.3 < spread < 1, spread
    assert torch.allclose(prediction.controlled, prediction.prior, rtol=1e-4, atol=1e-5)
