"""``SVDControlNetPipeline``: Stable Video Diffusion that follows a condition in every frame."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from lisa.common.errors import LisaError
from lisa.core.injecting import check_injectable, injected
from lisa.core.replacing import replaced
from lisa.networks.svd_controlnet import SVDControlNet


class SVDControlNetPipeline(StableVideoDiffusionPipeline):
    """diffusers' ``StableVideoDiffusionPipeline`` with an :class:`SVDControlNet` beside its UNet.

    Saved and loaded as every pipeline is; the base model's own folder loads with ``controlnet=``.

    Args:
        vae: of the base model, as all that follow.
        image_encoder: embeds the conditioning frame.
        unet: the main network, which is left as it is.
        scheduler: of the sampling.
        feature_extractor: normalises pictures for ``image_encoder``.
        controlnet: the side network.

    Example:
        >>> controlnet = SVDControlNet.from_pretrained("runs/depth/side_network")
        >>> pipeline = SVDControlNetPipeline.from_pretrained(
        ...     "stabilityai/stable-video-diffusion-img2vid", controlnet=controlnet
        ... )
        >>> frames = pipeline(first_frame, depth_maps, decode_chunk_size=8).frames[0]
    """

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        unet: UNetSpatioTemporalConditionModel,
        scheduler: EulerDiscreteScheduler,
        feature_extractor: CLIPImageProcessor,
        controlnet: SVDControlNet,
    ) -> None:
        super().__init__(vae, image_encoder, unet, scheduler, feature_extractor)
        self.register_modules(controlnet=controlnet)
        self.control_video_processor = VideoProcessor(
            vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True, do_normalize=False
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        conditioning_frames: Any,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        *,
        controlnet_conditioning_scale: float = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        num_videos_per_prompt: int = 1,
        **options: Any,
    ) -> Any:
        """Clips that begin with ``image`` and follow ``conditioning_frames``.

        Args:
            image: the picture that a clip goes on from, or several; as ``StableVideoDiffusionPipeline`` takes it.
            conditioning_frames: a condition picture for every frame: a list of pictures, (F, 3 n, H, W) or, for several
                clips, a list of lists or (B, F, 3 n, H, W); tensors in 0..1. One clip's serves for all ``image``.
            height: of the clip; the conditioning frames' unless given, and so is the ``width``.
            width: of the clip.
            num_frames: how many conditioning frames there are.
            controlnet_conditioning_scale: of the control; 0 is the base model's own clip, bit for bit.
            control_guidance_start: share of the steps after which control sets in.
            control_guidance_end: share of the steps after which it ends.
            num_videos_per_prompt: clips for each ``image``.
            options: all other arguments of ``StableVideoDiffusionPipeline``: ``num_inference_steps``,
                ``min_guidance_scale`` and ``max_guidance_scale`` (of the first and the last frame), ``fps``,
                ``motion_bucket_id``, ``noise_aug_strength``, ``decode_chunk_size``, ``generator``, ``output_type``, ...

        Returns:
            ``StableVideoDiffusionPipelineOutput``: ``frames``.

        Raises:
            LisaError: conditioning frames of another number than clips or frames, an empty share of the steps, or a
                UNet compiled as a whole.
        """
        check_injectable(self.unet)
        condition = self.control_video_processor.preprocess_video(conditioning_frames, height, width).transpose(1, 2)
        _check(condition, image, num_frames, (control_guidance_start, control_guidance_end))
        condition = condition.repeat_interleave(num_videos_per_prompt, dim=0)
        if _count(image) > 1:  # the stock pipeline repeats embeddings and latents of several images in different orders
            image, num_videos_per_prompt = _repeated(image, num_videos_per_prompt), 1
        condition = condition.to(self._execution_device, self.controlnet.dtype)

        def scale(step: int) -> float:
            inside = control_guidance_start <= step / self.num_timesteps
            inside = inside and (step + 1) / self.num_timesteps <= control_guidance_end
            return controlnet_conditioning_scale if inside else 0.0

        with replaced(self.unet, "forward", self._controlled(self.unet.forward, condition, scale)):
            return super().__call__(
                image,
                *condition.shape[-2:],
                num_frames=condition.shape[1],
                num_videos_per_prompt=num_videos_per_prompt,
                **options,
            )

    def _controlled(
        self, forward: Callable[..., Any], condition: Tensor, scale: Callable[[int], float]
    ) -> Callable[..., Any]:
        """The UNet's ``forward``, with what the side network gives for the same arguments; ``scale``: of each step."""
        steps = count()

        @wraps(forward)
        def controlled(sample: Tensor, timestep: Tensor, **given: Any) -> Any:
            weight = scale(next(steps))
            if weight == 0:
                return forward(sample, timestep, **given)
            down, mid = self.controlnet(
                sample,
                timestep,
                given["encoder_hidden_states"],
                given["added_time_ids"],
                condition.repeat(len(sample) // len(condition), 1, 1, 1, 1),  # twice with classifier-free guidance
                conditioning_scale=weight,
                return_dict=False,
            )
            with injected(self.unet, down, mid):
                return forward(sample, timestep, **given)

        return controlled


def _count(image: Any) -> int:
    return len(image) if isinstance(image, list | Tensor) else 1


def _repeated(images: Any, times: int) -> Any:
    """Each so many times, one after the other."""
    if isinstance(images, Tensor):
        return images.repeat_interleave(times, dim=0)
    return [image for image in images for _ in range(times)]


def _check(condition: Tensor, image: Any, num_frames: int | None, window: tuple[float, float]) -> None:
    images = _count(image)
    if len(condition) not in (1, images):
        raise LisaError(
            f"conditioning_frames of {len(condition)} clips for {images} images",
            "Give those of as many clips as there are images, or of one clip for all",
        )
    if num_frames not in (None, condition.shape[1]):
        raise LisaError(
            f"num_frames is {num_frames}, and there are {condition.shape[1]} conditioning_frames",
            "Leave num_frames out, or give a condition picture for every frame",
        )
    if not 0.0 <= window[0] < window[1] <= 1.0:
        raise LisaError(
            f"control_guidance_start is {window[0]}, control_guidance_end {window[1]}",
            "Give shares of the steps, 0 to 1, the start before the end",
        )
