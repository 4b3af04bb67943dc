"""Flux.1: real layouts, packed latents, the guidance vector, and ControlNets as others train them."""

from __future__ import annotations

import copy

import pytest
import torch

import lisa
from conformance import row as rows
from conformance.calls import compare_with_pipeline
from conformance.tiny_flux import SIZES, make_folder, make_pipeline, make_side
from lisa.build.parts import build_pair
from lisa.common.errors import LisaError
from lisa.core.packing import pack, unpack
from lisa.mains.flux import FluxMain, load_flux
from lisa.pairs import Pair, pair_spec
from lisa.sides.base import SideOptions
from lisa.sides.blocks import choose_depth
from lisa.sides.flux import FluxControlNetSide, entered
from lisa.train.config import TrainConfig
from model_copies import edited

SPEC = pair_spec("flux-controlnet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("flux")
    return {name: make_folder(root / name, distilled=name == "dev") for name in ("dev", "schnell")}


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: load_flux(str(folder)) for name, folder in folders.items()}


@pytest.fixture
def main(loaded):
    return copy.deepcopy(loaded["dev"])


def refused(source, words, **options):
    with pytest.raises(LisaError, match=words) as caught:
        load_flux(str(source), **options)
    return str(caught.value)


def random_pair(main, side):
    rows.randomise_zero_modules(side)
    return Pair(SPEC, main, side)


def test_folder(folders, loaded):
    names = [path.name for path in (folders["dev"] / "transformer").iterdir()]
    assert sum("-of-" in name for name in names) > 1 and "diffusion_pytorch_model.safetensors.index.json" in names
    for main in loaded.values():
        assert (main.process.prediction, main.process.shift, main.process.model_time_scale) == ("flow", 1.0, 1.0)
        assert (main.latent_factor, main.latent_channels, main.size_multiple) == (8, 4, 16)
        for name in ("transformer", "vae", *main.text_encoders):
            module = getattr(main.pipeline, name)
            assert not module.training and not any(p.requires_grad for p in module.parameters())
        pixels = torch.rand(1, 3, 32, 48)
        mean, _ = main.encode_moments(pixels).chunk(2, dim=1)
        torch.testing.assert_close(mean, (main.pipeline.vae.encode(pixels).latent_dist.mean - 0.1159) * 0.3611)
        assert main.decode(mean).shape == (1, 3, 32, 48)


def test_a_fixed_shift_of_the_scheduler_counts(main):
    main.pipeline.scheduler.register_to_config(use_dynamic_shifting=False)
    assert FluxMain(main.pipeline, "here").process.shift == 3.0


def test_packing_is_the_pipelines(main):
    maps = torch.randn(2, 4, 6, 10)
    tokens = main.pipeline._pack_latents(maps, 2, 4, 6, 10)
    assert torch.equal(pack(maps), tokens) and torch.equal(unpack(tokens, (6, 10)), maps)
    assert pack(maps).is_contiguous()


def test_text_is_what_the_pipeline_would_use(main):
    ours = main.encode_text(["a red cat", ""])
    for row, caption in enumerate(["a red cat", ""]):
        embeds, pooled, _ = main.pipeline.encode_prompt(caption, None)
        torch.testing.assert_close(ours["encoder_hidden_states"][row : row + 1], embeds)
        torch.testing.assert_close(ours["pooled_projections"][row : row + 1], pooled)
    main.drop_encoders()
    with pytest.raises(LisaError, match="text_encoder was dropped"):
        main.encode_text(["a"])


def test_bf16_files_and_variants(folders, tmp_path, main):
    weight = "transformer_blocks.0.attn.to_q.weight"
    exact = main.network.get_parameter(weight)
    public = make_pipeline().to(torch.bfloat16)  # bf16 in the plain files
    public.set_progress_bar_config(disable=True)
    public.save_pretrained(tmp_path / "bf16")
    narrow = load_flux(str(tmp_path / "bf16"))
    assert torch.equal(narrow.network.get_parameter(weight), exact.bfloat16().float())
    assert narrow.pipeline.vae.dtype == narrow.pipeline.text_encoder_2.dtype == torch.float32
    only = make_folder(tmp_path / "only", variants=("fp16",))
    assert torch.equal(load_flux(str(only)).network.get_parameter(weight), exact.half().float())
    refused(folders["dev"], "no weights of variant", variant="fp16")
    (only / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json").unlink()
    refused(only, "cannot be loaded")


def test_what_is_refused(folders, tmp_path):
    wrong = edited(folders["dev"], tmp_path / "fill", "model_index.json", _class_name="FluxFillPipeline")
    assert "FluxPipeline" in refused(wrong, "a FluxFillPipeline, which this kind of pair cannot use")
    scheduler = "scheduler/scheduler_config.json"
    refused(edited(folders["dev"], tmp_path / "ddim", scheduler, _class_name="DDIMScheduler"), "not one of rectified")
    refused(edited(folders["dev"], tmp_path / "vae", "vae/config.json", shift_factor=None), "no shift_factor")
    gone = edited(folders["dev"], tmp_path / "gone", "model_index.json", text_encoder_2=[None, None])
    refused(gone, "has no text_encoder_2")
    pipeline = make_pipeline()
    pipeline.transformer.register_to_config(in_channels=32, out_channels=16)
    with pytest.raises(LisaError, match="takes 8 and gives 4 channels, its latents have 4"):
        FluxMain(pipeline, "here")


@pytest.mark.parametrize("name", ["dev", "schnell"])
@pytest.mark.parametrize("guided_side", [True, False])
def test_training_computes_what_the_pipeline_will(loaded, tmp_path, name, guided_side):
    """Whether main and side network embed the guidance or not, each by its own configuration."""
    main = copy.deepcopy(loaded[name])
    side = SPEC.load_side(str(make_side(tmp_path / "side", single=0, guidance_embeds=guided_side)))
    SPEC.check_fit(main, side)
    compare_with_pipeline(random_pair(main, side), (16, 24))


def test_both_passes_see_one_guidance(main):
    side = SPEC.make_side(main, SideOptions())
    assert side.module.config.guidance_embeds  # copied from the transformer
    pair = random_pair(main, side)
    inputs, _ = rows.make_inputs(pair, (16, 16))
    with torch.no_grad():
        usual = pair.predict(inputs)
        main.guidance = 1.0
        other = pair.predict(inputs)
    assert (usual.prior - other.prior).abs().max() > 1e-4
    assert (usual.controlled - other.controlled).abs().max() > 1e-4


def test_the_guidance_of_training_can_be_set(folders, tmp_path):
    """Of networks that embed one; others would not notice, so that setting it is refused."""

    def configured(folder, guidance):
        model = {"path": str(folder), "pair": "flux-controlnet", "guidance": guidance}
        return build_pair(TrainConfig.model_validate({"model": model, "data": {"size": 64}}))

    assert configured(folders["dev"], None).main.guidance == 3.5
    pair = configured(folders["dev"], 1.0)
    inputs, _ = rows.make_inputs(pair, (16, 16))
    assert pair.main.complete(inputs.context, inputs.x_t)["guidance"].tolist() == [1.0, 1.0]
    with pytest.raises(LisaError, match=r"model.guidance is 1.0, but .*schnell' embeds no guidance.*sample.guidance"):
        configured(folders["schnell"], 1.0)


def test_depths_of_flux(main):
    def depth(wanted, blocks=19):
        return choose_depth(SideOptions(depth=wanted), blocks, entered, custom=4)

    assert (depth(None), depth(5), depth(19), depth(None, 3), depth(None, 5)) == (4, 5, 19, 3, 3)
    with pytest.raises(LisaError, match=r"depth is 6, .* only 5 .*Choices: 1, 2, 3, 4, 5, 7, 10, 19\."):
        depth(6)
    with pytest.raises(LisaError, match="2 stacked conditions"):
        SPEC.make_side(main, SideOptions(conditions=2))
    module = SPEC.make_side(main, SideOptions(depth=1)).module
    assert (len(module.transformer_blocks), len(module.single_transformer_blocks)) == (1, 0)


def test_new_side_networks_have_the_transformers_heads(main):
    config = SPEC.make_side(main, SideOptions()).module.config
    assert (config.num_attention_heads, config.attention_head_dim) == (2, 16)


@pytest.mark.parametrize("single", [0, 1])
def test_a_deeper_side_network_trains_what_reaches_the_transformer(tmp_path, single):
    """Three double blocks beside four: Flux takes up two of them; single blocks read the third all the same."""
    main = FluxMain(make_pipeline(layers=4), "here")
    side = SPEC.load_side(str(make_side(tmp_path / "side", double=3, single=single)))
    SPEC.check_fit(main, side)
    module, pair = side.module, random_pair(main, side)
    inputs, target = rows.make_inputs(pair, (16, 16))
    (pair.predict(inputs).controlled - target).square().mean().backward()
    trained = [(name, p.grad) for name, p in module.named_parameters() if p.requires_grad]
    assert [name for name, grad in trained if grad is None or not grad.any()] == []
    assert not module.controlnet_blocks[2].weight.requires_grad
    assert module.transformer_blocks[2].attn.to_q.weight.requires_grad == bool(single)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"num_mode": 10}, "union"), ({"conditioning_embedding_channels": 16}, "XLabs"),
     ({"joint_attention_dim": 32}, "its joint_attention_dim is 32, the main network's is 24")],
)  # fmt: skip
def test_side_networks_that_want_something_else_are_refused(main, change, words):
    side = SPEC.make_side(main, SideOptions())
    side.module.register_to_config(**change)
    with pytest.raises(LisaError, match=words):
        SPEC.check_fit(main, side)


def test_attach_measures_the_stride(tmp_path):
    from diffusers import FluxControlNetModel

    module = FluxControlNetModel(num_layers=1, num_single_layers=1, guidance_embeds=True, **SIZES)
    aligner = lisa.attach(module, ["block.0", "single.0"], out_channels=4)
    assert [(d.in_channels, d.upsamples) for d in aligner.decoders.values()] == [(32, 1), (32, 1)]
    assert [(layer.channels, layer.stride) for layer in FluxControlNetSide(module).layers()] == [(32, 2), (32, 2)]


def test_a_hub_name_of_another_pipeline_is_refused_before_it_is_downloaded(monkeypatch):
    """Kontext's networks would load, and it would be taken for text-to-image."""
    from diffusers import DDPMScheduler, FluxPipeline

    index = {"_class_name": "FluxKontextPipeline"}
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": "epsilon"}
    asked = []
    monkeypatch.setattr(FluxPipeline, "load_config", lambda name: asked.append(name) or index)
    monkeypatch.setattr(DDPMScheduler, "load_config", lambda name, subfolder: asked.append(subfolder) or scheduler)
    monkeypatch.setattr(FluxPipeline, "from_pretrained", lambda *args, **options: pytest.fail("downloaded"))
    assert "FluxPipeline" in refused("owner/kontext", "'owner/kontext' holds a FluxKontextPipeline, which")
    assert asked == ["owner/kontext"]
    index["_class_name"] = "FluxPipeline"
    refused("owner/dev", "'owner/dev'.*DDPMScheduler")
    assert asked[1:] == ["owner/dev", "scheduler"]
    pipeline = make_pipeline()
    scheduler |= {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}
    monkeypatch.setattr(FluxPipeline, "from_pretrained", lambda *args, **options: pipeline)
    assert load_flux("owner/dev").source == "owner/dev"
    monkeypatch.setattr(FluxPipeline, "load_config", lambda name: 1 / 0)
    refused("owner/none", "the main network 'owner/none' cannot be loaded: ZeroDivisionError")
