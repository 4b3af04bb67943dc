"""Tiny extractors with random weights, in transformers' real layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tiny

SIDE = 32  # pixels that they see


def depth(folder: Path) -> Path:
    """DPT, as MiDaS 3 is."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIDE,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    return _save(DPTForDepthEstimation, config, DPTImageProcessor(size={"height": SIDE, "width": SIDE}), folder)


def mask2former(folder: Path, classes: int = 3) -> Path:
    """Universal; like the published ones for ADE20K, its processor does not say that labels were reduced."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=16,
        num_attention_heads=2,
        num_queries=4,
        num_labels=classes,
    )
    processor = Mask2FormerImageProcessor(size={"height": 64, "width": 64})

    def decided(model: Any) -> None:
        for name, parameter in model.named_parameters():  # each query of a class of its own, in a place of its own
            if "class_predictor" in name or "mask_embedder" in name or "queries" in name:
                parameter.data.mul_(8)

    return _save(Mask2FormerForUniversalSegmentation, config, processor, folder, decided)


def segformer(folder: Path, classes: int = 3) -> Path:
    """Semantic."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[1, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[1, 1],
        decoder_hidden_size=8,
        num_labels=classes,
    )
    processor = SegformerImageProcessor(size={"height": SIDE, "width": SIDE})
    return _save(SegformerForSemanticSegmentation, config, processor, folder)


def detector(folder: Path, names: tuple[str, ...] = ("cat", "person")) -> Path:
    """RT-DETR that is sure of finding the last class, anywhere."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 8, 8],
        encoder_ffn_dim=16,
        encoder_layers=1,
        d_model=16,
        num_queries=3,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        encoder_attention_heads=2,
        num_denoising=0,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )

    def sure(model: Any) -> None:
        for head in model.model.decoder.class_embed:
            head.weight.data.zero_()
            head.bias.data.fill_(-5.0)
            head.bias.data[-1] = 5.0

    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    return _save(RTDetrForObjectDetection, config, processor, folder, sure)


def pose(folder: Path, joints: int = 4) -> Path:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    backbone = VitPoseBackboneConfig(
        image_size=(SIDE, SIDE),
        patch_size=(8, 8),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_ratio=1,
        out_indices=[1],
    )
    config = VitPoseConfig(backbone_config=backbone, num_labels=joints, id2label={i: str(i) for i in range(joints)})
    processor = VitPoseImageProcessor(size={"height": SIDE, "width": SIDE})
    return _save(VitPoseForPoseEstimation, config, processor, folder)


def clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer, encoder = tiny.make_text()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config=encoder.config.to_dict(), vision_config=vision, projection_dim=8)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tokenizer.save_pretrained(folder)
    return _save(CLIPModel, config, processor, folder)


def _save(kind: Any, config: Any, processor: Any, folder: Path, change: Any = None) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():  # the usual initial weights are so small that all outputs are flat
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
    if change is not None:
        change(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
