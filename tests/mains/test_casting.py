"""In another type, a text encoder is what ``from_pretrained(dtype=...)`` would have loaded."""

from __future__ import annotations

import pytest
import torch

import tiny_text
from lisa.mains.casting import cast

CPU = torch.device("cpu")
# What each keeps in float32: frequencies of positions everywhere, T5's last projection in float16 alone.
KEPT = {
    (tiny_text.qwen3, torch.bfloat16): "inv_freq",
    (tiny_text.qwen_vl, torch.bfloat16): "inv_freq",
    (tiny_text.gemma, torch.bfloat16): "inv_freq",
    (tiny_text.gemma, torch.float16): "inv_freq",
    (tiny_text.t5, torch.float16): "wo.weight",
    (tiny_text.t5, torch.bfloat16): "nothing",
}


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def encoded(encoder):
    with torch.no_grad():
        return encoder.eval()(torch.arange(4, 40)[None], output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize(("make", "dtype"), KEPT, ids=lambda given: getattr(given, "__name__", str(given)))
def test_text_encoders(make, dtype, tmp_path):
    _, encoder = make()
    encoder.save_pretrained(tmp_path)
    theirs = type(encoder).from_pretrained(tmp_path, dtype=dtype)
    cast(encoder, CPU, dtype)
    expected = encoded(theirs)
    assert torch.equal(encoded(encoder), expected) and expected.dtype == dtype
    ours, suffix = tensors(encoder), KEPT[make, dtype]
    for name, value in tensors(theirs).items():
        if name.endswith(suffix):
            assert ours[name].dtype == value.dtype == torch.float32 and torch.equal(ours[name], value), name
    assert any(name.endswith(suffix) for name in ours) == (suffix != "nothing")
    assert all(value.dtype == dtype for name, value in encoder.named_parameters() if not name.endswith(suffix))


def test_and_back():
    _, encoder = tiny_text.qwen3()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    for dtype in (torch.bfloat16, torch.float32):
        cast(encoder, CPU, dtype)
    assert before and all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert all(value.dtype == torch.float32 for value in tensors(encoder).values() if value.is_floating_point())
