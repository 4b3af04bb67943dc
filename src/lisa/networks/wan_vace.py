"""``WanVACEBranch``: the part of diffusers' fused ``WanVACETransformer3DModel`` that reads the condition, by itself."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel, WanVACEPipeline, WanVACETransformer3DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformerBlock
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_vace
from torch import Tensor, nn

__all__ = ["WanVACEBranch", "WanVACEPipeline"]  # diffusers' own pipeline, so that one import loads both

if not hasattr(pipeline_wan_vace, "ftfy"):
    # diffusers 0.42 calls ftfy here whether it is installed or not; its plain Wan pipeline, whose text training reads,
    # does without.
    pipeline_wan_vace.basic_clean = pipeline_wan.basic_clean

#: What a fused model has from the plain transformer.
_PLAIN = ("rope", "patch_embedding", "condition_embedder", "blocks", "norm_out", "proj_out", "scale_shift_table")


class WanVACEBranch(ModelMixin, ConfigMixin):
    """VACE (arXiv 2503.07598), the context branch alone: copies of some of Wan's blocks, which read the control.

    It works on what Wan's own embedders give, so that it holds no weight of the plain transformer: it is small to train
    and to save. :meth:`fused` puts the two together, as diffusers' pipeline takes them.

    Args:
        patch_size: (frames, rows, columns) of the latent per token, as Wan's; so are the next six.
        num_attention_heads: of each block.
        attention_head_dim: of each head.
        ffn_dim: width of the feed-forwards.
        cross_attn_norm: whether text is normalised before the attention.
        qk_norm: how queries and keys are.
        eps: of all norms.
        vace_layers: numbers of Wan's blocks after which the control enters, 0 among them.
        vace_in_channels: of the control: the latents of what is given and of what is to be made, and the mask.

    Example:
        >>> branch = WanVACEBranch.from_pretrained("runs/depth/side_network")
        >>> pipeline = WanVACEPipeline.from_pretrained(wan, transformer=branch.fused_with(wan))
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WanVACETransformerBlock"]
    _repeated_blocks = ["WanVACETransformerBlock"]
    _keep_in_fp32_modules = WanVACETransformer3DModel._keep_in_fp32_modules

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        ffn_dim: int = 13824,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        vace_layers: Sequence[int] = (0, 5, 10, 15, 20, 25, 30, 35),
        vace_in_channels: int = 96,
    ) -> None:
        super().__init__()
        width = num_attention_heads * attention_head_dim
        patch = tuple(patch_size)
        self.vace_patch_embedding = nn.Conv3d(vace_in_channels, width, kernel_size=patch, stride=patch)
        self.vace_blocks = nn.ModuleList(
            WanVACETransformerBlock(
                width,
                ffn_dim,
                num_attention_heads,
                qk_norm,
                cross_attn_norm,
                eps,
                apply_input_projection=number == 0,
                apply_output_projection=True,
            )
            for number in range(len(vace_layers))
        )
        self.gradient_checkpointing = False

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, control: Tensor, temb: Tensor, rotary_emb: Any
    ) -> list[Tensor]:
        """What is added after each of Wan's blocks ``vace_layers``: (B, tokens, width) each.

        Args:
            hidden_states: (B, tokens, width), Wan's patches of the noisy latent.
            encoder_hidden_states: (B, L, width), text as Wan embeds it.
            control: (B, ``vace_in_channels``, f, h, w).
            temb: (B, 6, width), time as Wan embeds it.
            rotary_emb: Wan's positions.
        """
        states, hints = self.vace_patch_embedding(control).flatten(2).transpose(1, 2), []
        for block in self.vace_blocks:
            given = (hidden_states, encoder_hidden_states, states, temb, rotary_emb)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hint, states = self._gradient_checkpointing_func(block, *given)
            else:
                hint, states = block(*given)
            hints.append(hint)
        return hints

    def fused(self, transformer: Any) -> Any:
        """A ``WanVACETransformer3DModel`` of the very parts of ``transformer`` (a plain Wan) and of this branch.

        Nothing is copied: both should be of one floating-point type.
        """
        own = {**transformer.config, **self.config}
        with torch.device("meta"):
            model = WanVACETransformer3DModel.from_config({k: v for k, v in own.items() if not k.startswith("_")})
        for name in _PLAIN:
            setattr(model, name, getattr(transformer, name))
        model.vace_patch_embedding, model.vace_blocks = self.vace_patch_embedding, self.vace_blocks
        model.training = False  # of the shell alone: its parts are as they were
        return model

    @classmethod
    def of(cls, fused: Any) -> WanVACEBranch:
        """The branch of a fused model, a public VACE for instance: its very parts."""
        accepted = inspect.signature(cls.__init__).parameters
        with torch.device("meta"):
            branch = cls(**{name: fused.config[name] for name in accepted if name in fused.config})
        branch.vace_patch_embedding, branch.vace_blocks = fused.vace_patch_embedding, fused.vace_blocks
        return branch.train(fused.training)

    def fused_with(self, source: str, **options: Any) -> Any:
        """:meth:`fused` with the transformer of a Wan model's folder or Hub name, in this branch's type."""
        given = {"subfolder": "transformer", "torch_dtype": self.dtype, **options}
        return self.fused(WanTransformer3DModel.from_pretrained(source, **given))
