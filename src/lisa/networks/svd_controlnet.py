"""``SVDControlNet``: a ControlNet (arXiv 2302.05543) for Stable Video Diffusion, for which diffusers has none."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding, ControlNetOutput
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_blocks import UNetMidBlockSpatioTemporal, get_down_block
from torch import Tensor, nn

from lisa.common.errors import LisaError


class SVDControlNet(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """A copy of a ``UNetSpatioTemporalConditionModel``'s encoder that reads a condition picture for every frame.

    Named and called as diffusers' ``ControlNetModel`` is: zero 1x1 convolutions are the ways out of conv_in, of every
    layer and downsampling of the down blocks, and of the middle block.

    Args:
        sample_size: of the latents that it was made for; not read.
        in_channels: of the noisy latent and the conditioning frame's latent together.
        down_block_types: spatio-temporal ones.
        block_out_channels: widths, a multiple of 32 each.
        addition_time_embed_dim: of each of the added times (frames per second, motion, noise of the frame).
        projection_class_embeddings_input_dim: of all of them.
        layers_per_block: one number, or one per block; so are the next three.
        cross_attention_dim: width of the conditioning frame's embedding.
        transformer_layers_per_block: of each attention.
        num_attention_heads: of each attention.
        num_frames: that it was made for; not read: any number will do.
        conditioning_channels: of the condition, 3 for each of the stacked pictures.
        conditioning_embedding_out_channels: widths of the condition's embedding; each after the first halves the
            picture, so that there are as many halvings as the autoencoder makes.

    Example:
        >>> controlnet = SVDControlNet.from_unet(pipeline.unet)
        >>> controlnet.save_pretrained("depth")
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 8,
        down_block_types: Sequence[str] = (
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | Sequence[int] = 2,
        cross_attention_dim: int | Sequence[int] = 1024,
        transformer_layers_per_block: int | Sequence[int] = 1,
        num_attention_heads: int | Sequence[int] = (5, 10, 20, 20),
        num_frames: int = 25,
        conditioning_channels: int = 3,
        conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256),
    ) -> None:
        super().__init__()
        widths, levels = block_out_channels, len(block_out_channels)
        layers, text, depths, heads = (
            [value] * levels if isinstance(value, int) else list(value)
            for value in (layers_per_block, cross_attention_dim, transformer_layers_per_block, num_attention_heads)
        )
        time_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_proj = Timesteps(widths[0], True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], time_width)
        self.add_time_proj = Timesteps(addition_time_embed_dim, True, downscale_freq_shift=0)
        self.add_embedding = TimestepEmbedding(projection_class_embeddings_input_dim, time_width)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            widths[0], conditioning_channels, tuple(conditioning_embedding_out_channels)
        )
        self.down_blocks = nn.ModuleList()
        self.controlnet_down_blocks = nn.ModuleList([_way_out(widths[0])])
        for level, kind in enumerate(down_block_types):
            halves = level < levels - 1
            block = get_down_block(
                kind,
                num_layers=layers[level],
                in_channels=widths[max(level - 1, 0)],
                out_channels=widths[level],
                temb_channels=time_width,
                add_downsample=halves,
                resnet_eps=1e-5,
                resnet_act_fn="silu",
                num_attention_heads=heads[level],
                cross_attention_dim=text[level],
                transformer_layers_per_block=depths[level],
            )
            self.down_blocks.append(block)
            self.controlnet_down_blocks.extend(_way_out(widths[level]) for _ in range(layers[level] + halves))
        self.mid_block = UNetMidBlockSpatioTemporal(
            widths[-1],
            temb_channels=time_width,
            transformer_layers_per_block=depths[-1],
            num_attention_heads=heads[-1],
            cross_attention_dim=text[-1],
        )
        self.controlnet_mid_block = _way_out(widths[-1])

    @classmethod
    def from_unet(
        cls,
        unet: Any,
        conditioning_channels: int = 3,
        conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
    ) -> SVDControlNet:
        """A copy of everything before the up blocks of a ``UNetSpatioTemporalConditionModel``; the rest is new.

        Args:
            unet: it is left as it is.
            conditioning_channels: see the class.
            conditioning_embedding_out_channels: see the class.
            load_weights_from_unet: copy the weights, too, and not only the architecture.
        """
        accepted = inspect.signature(cls.__init__).parameters
        controlnet = cls(
            **{name: unet.config[name] for name in accepted if name in unet.config},
            conditioning_channels=conditioning_channels,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
        )
        if load_weights_from_unet:
            weights = unet.state_dict()
            # Picked by our names, so that nothing can be forgotten: what the UNet lacks would be a KeyError.
            copied = {name: weights[name] for name in controlnet.state_dict() if not name.startswith("controlnet_")}
            controlnet.load_state_dict(copied, strict=False)
        return controlnet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[Tensor], Tensor]:
        """Residuals for the main network's skip connections and its middle block.

        Args:
            sample: (B, F, ``in_channels``, h, w), what the main network is given: the scaled noisy latent beside the
                conditioning frame's latent.
            timestep: (B,) or one for all, as the main network takes it: ln(sigma) / 4.
            encoder_hidden_states: (B, 1, D), the conditioning frame's embedding.
            added_time_ids: (B, 3), frames per second, motion bucket, noise of the conditioning frame.
            controlnet_cond: (B, F, ``conditioning_channels``, H, W) in 0..1, a picture for every frame.
            conditioning_scale: multiplies all residuals.
            return_dict: False: a plain tuple.

        Returns:
            ``down_block_res_samples``, in order, and ``mid_block_res_sample``, each (B F, C, h', w').

        Raises:
            LisaError: the condition is of another number of clips or frames.
        """
        batch, frames = sample.shape[:2]
        if controlnet_cond.shape[:2] != (batch, frames):
            raise LisaError(
                f"a condition of shape {tuple(controlnet_cond.shape)} for {batch} clips of {frames} frames",
                "Give a picture for every frame: (clips, frames, channels, height, width)",
            )
        time = self._embedded_times(timestep, added_time_ids, sample).repeat_interleave(frames, dim=0)
        context = encoder_hidden_states.repeat_interleave(frames, dim=0)
        hidden = self.conv_in(sample.flatten(0, 1)) + self.controlnet_cond_embedding(controlnet_cond.flatten(0, 1))
        given = {"temb": time, "image_only_indicator": hidden.new_zeros(batch, frames)}
        states = [hidden]
        for block in self.down_blocks:
            attended = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
            hidden, more = block(hidden_states=hidden, **given, **attended)
            states += more
        hidden = self.mid_block(hidden_states=hidden, encoder_hidden_states=context, **given)
        ways_out = zip(self.controlnet_down_blocks, states, strict=True)
        down = [way_out(state) * conditioning_scale for way_out, state in ways_out]
        mid = self.controlnet_mid_block(hidden) * conditioning_scale
        if not return_dict:
            return down, mid
        return ControlNetOutput(down_block_res_samples=down, mid_block_res_sample=mid)

    def _embedded_times(self, timestep: Tensor | float, added_time_ids: Tensor, sample: Tensor) -> Tensor:
        """(B, 4 C): noise level and added times. Sines and cosines are of float32, whatever the network's type is."""
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        embedded: Tensor = self.time_embedding(self.time_proj(times).to(sample.dtype))
        added = self.add_time_proj(added_time_ids.flatten()).reshape(len(sample), -1)
        return embedded + self.add_embedding(added.to(embedded.dtype))


def _way_out(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, channels, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
