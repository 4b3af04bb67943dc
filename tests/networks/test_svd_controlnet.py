"""The ControlNet of Stable Video Diffusion: what it copies, where it reads frames, and diffusers' manners."""

from __future__ import annotations

import pytest
import torch

from conformance import tiny_svd
from lisa import SVDControlNet
from lisa.common.errors import LisaError
from lisa.sides.svd import SVDControlNetSide

BATCH, FRAMES, SIZE = 2, 3, (8, 12)
CONDITION = (16, 32, 96)  # an embedding for latents at a quarter of the size


@pytest.fixture(scope="module")
def unet():
    return tiny_svd.make_unet().eval()


@pytest.fixture
def controlnet(unet):
    torch.manual_seed(3)
    return SVDControlNet.from_unet(unet, conditioning_embedding_out_channels=CONDITION).eval()


def awakened(controlnet):
    """With ways out, and in, that do something."""
    ways = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    with torch.no_grad():
        for way in (*ways, controlnet.controlnet_cond_embedding.conv_out):
            way.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(4))
    return controlnet


def arguments(batch=BATCH, frames=FRAMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    pixels = [4 * side for side in SIZE]
    return {
        "sample": normal(batch, frames, 8, *SIZE),
        "timestep": normal(batch),
        "encoder_hidden_states": normal(batch, 1, tiny_svd.WIDTH),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02], [24.0, 40.0, 0.1]])[:batch],
        "controlnet_cond": torch.rand(batch, frames, 3, *pixels, generator=generator),
    }


def residuals(controlnet, **given):
    down, mid = controlnet(**given, return_dict=False)
    return [*down, mid]


def test_everything_before_the_up_blocks_is_copied(unet, controlnet):
    ours, theirs = controlnet.state_dict(), unet.state_dict()
    new = {name for name in ours if name.startswith("controlnet_")}
    left = {name.split(".")[0] for name in theirs if name not in ours}
    assert left == {"up_blocks", "conv_norm_out", "conv_out"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - new)
    assert any(name.startswith("add_embedding.") for name in ours.keys() - new)


def test_a_new_one_sees_what_the_unet_sees_and_gives_nothing(unet, controlnet):
    """The inputs of its ways out are the UNet's own skip connections, and its middle block's output, bit for bit."""
    given, seen = arguments(), []
    condition = given.pop("controlnet_cond")
    hooks = [block.register_forward_hook(lambda m, i, output: seen.append(output)) for block in unet.down_blocks]
    hooks += [module.register_forward_hook(lambda m, i, output: seen.append(output)) for module in (unet.conv_in,)]
    hooks += [unet.mid_block.register_forward_hook(lambda m, i, output: seen.append(output))]
    ways, caught = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block], []
    hooks += [way.register_forward_pre_hook(lambda m, inputs: caught.append(inputs[0])) for way in ways]
    with torch.no_grad():
        unet(**given)
        given_back = residuals(controlnet, **given, controlnet_cond=condition)
    for hook in hooks:
        hook.remove()
    first, *blocks, middle = seen
    expected = [first, *[state for _, states in blocks for state in states], middle]
    assert len(caught) == len(expected) == 7
    assert all(torch.equal(a, b) for a, b in zip(caught, expected, strict=True))
    assert not any(bool(each.any()) for each in given_back)
    assert [each.shape for each in given_back] == [each.shape for each in expected]


def test_a_picture_of_the_condition_belongs_to_its_frame_and_clip(controlnet):
    """Changed in one frame of one clip, the embedded condition changes there alone; and clips do not mix."""
    awakened(controlnet)
    given, embedded = arguments(), []
    hook = controlnet.controlnet_cond_embedding.register_forward_hook(lambda m, i, output: embedded.append(output))
    changed = given["controlnet_cond"].clone()
    changed[1, 2] += 0.5
    with torch.no_grad():
        together = residuals(controlnet, **given)
        other = residuals(controlnet, **{**given, "controlnet_cond": changed})
        hook.remove()
        alone = residuals(controlnet, **{name: value[1:] for name, value in given.items()})
    difference = (embedded[1] - embedded[0]).abs().amax((1, 2, 3)).unflatten(0, (BATCH, FRAMES))
    assert (difference > 0).nonzero().tolist() == [[1, 2]]
    for ours, theirs, one in zip(together, other, alone, strict=True):
        clip_1, clip_2 = ours.unflatten(0, (BATCH, FRAMES))
        assert torch.equal(theirs.unflatten(0, (BATCH, FRAMES))[0], clip_1)
        torch.testing.assert_close(one, clip_2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["timestep", "encoder_hidden_states", "added_time_ids", "controlnet_cond"])
def test_everything_it_is_given_counts(controlnet, name):
    awakened(controlnet)
    given = arguments()
    with torch.no_grad():
        before = residuals(controlnet, **given)
        after = residuals(controlnet, **{**given, name: given[name] + 0.5})
    assert all((a - b).abs().max() > 1e-5 for a, b in zip(before[1:], after[1:], strict=True))


def test_called_as_diffusers_controlnets_are(controlnet):
    awakened(controlnet)
    given = {**arguments(batch=1), "timestep": torch.tensor(0.3)}
    with torch.no_grad():
        whole = controlnet(**given)
        half = controlnet(**given, conditioning_scale=0.5)
        number = controlnet(**{**given, "timestep": 0.3})
    assert torch.equal(half.mid_block_res_sample, 0.5 * whole.mid_block_res_sample)
    assert torch.equal(half.down_block_res_samples[2], 0.5 * whole.down_block_res_samples[2])
    torch.testing.assert_close(number.mid_block_res_sample, whole.mid_block_res_sample)
    with pytest.raises(LisaError, match="for 1 clips of 3 frames"):
        controlnet(**{**given, "controlnet_cond": given["controlnet_cond"][:, :2]})


def test_saved_and_loaded_it_is_the_same(controlnet, tmp_path):
    awakened(controlnet).save_pretrained(tmp_path)
    loaded = SVDControlNet.from_pretrained(tmp_path)
    assert type(loaded) is SVDControlNet and list(loaded.state_dict()) == list(controlnet.state_dict())
    with torch.no_grad():
        pairs = zip(residuals(loaded, **arguments()), residuals(controlnet, **arguments()), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_checkpointing_gives_the_same_gradients(controlnet):
    awakened(controlnet).train()
    found = []
    for checkpointing in (False, True):
        controlnet.zero_grad()
        if checkpointing:
            controlnet.enable_gradient_checkpointing()
            assert controlnet.is_gradient_checkpointing
        sum(each.square().sum() for each in residuals(controlnet, **arguments(batch=1))).backward()
        found.append({name: parameter.grad.clone() for name, parameter in controlnet.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_structures_beside_the_public_one():
    """One number or one per block; stacked conditions; no weights."""
    unet = tiny_svd.make_unet(layers_per_block=(1, 2), cross_attention_dim=(16, 24), num_attention_heads=4)
    copy = SVDControlNet.from_unet(unet, conditioning_channels=6, load_weights_from_unet=False)
    assert len(copy.controlnet_down_blocks) == 1 + (1 + 1) + 2
    assert [layer.stride for layer in SVDControlNetSide(copy).layers()] == [1, 1, 2, 2, 2, 2]
    assert copy.controlnet_cond_embedding.conv_in.in_channels == 6
    assert not torch.equal(copy.conv_in.weight, unet.conv_in.weight)
