"""AnimateDiff (arXiv 2307.04725): ``UNetMotionModel``, Stable Diffusion's UNet with motion modules between layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lisa.common.errors import LisaError
from lisa.mains.base import Context
from lisa.mains.checks import check_prediction
from lisa.mains.codec import FrameCodec
from lisa.mains.loading import Layout
from lisa.mains.pipeline_main import PipelineMain
from lisa.mains.stable_diffusion import StableDiffusionMain, check_pipeline
from lisa.processes.ddpm import DDPMProcess


class AnimateDiffMain(StableDiffusionMain):
    """See :class:`lisa.mains.base.MainNetwork`. Text, and what may be shared, is Stable Diffusion's.

    Args:
        pipeline: an ``AnimateDiffPipeline``; its modules are frozen and put into eval mode.
        source: where it came from.

    Raises:
        LisaError: its prediction type, its VAE or what its UNet takes is not supported.
    """

    family = "animatediff"
    video = True
    components = ("vae", "text_encoder", "tokenizer", "unet", "motion_adapter", "scheduler")

    def __init__(self, pipeline: Any, source: str) -> None:
        check_pipeline(pipeline, source, wanted="AnimateDiff for Stable Diffusion 1.x or 2.x")
        process = DDPMProcess(dict(pipeline.scheduler.config))
        PipelineMain.__init__(self, pipeline, source, process, FrameCodec(pipeline.vae))

    def latent_frames(self, frames: int) -> int:
        """One for each.

        Raises:
            LisaError: the motion modules have positions for fewer.
        """
        network: Any = self.network
        most = network.config.motion_max_seq_length
        if not 1 <= frames <= most:
            raise LisaError(
                f"clips of {frames} frames: the motion modules of {self.source!r} have positions for {most}",
                f"Use 1 to {most} frames",
            )
        return frames

    def complete(self, context: Context, x_t: Tensor) -> Context:
        """Text for each frame, as both networks take it: (B f, L, D)."""
        text = context["encoder_hidden_states"]
        return {**context, "encoder_hidden_states": text.repeat_interleave(x_t.shape[2], dim=0)}


def load_animatediff(source: str, **options: Any) -> AnimateDiffMain:
    """Load a folder that ``AnimateDiffPipeline`` saved: a Stable Diffusion with its motion adapter.

    ``options``: see :meth:`~lisa.mains.pipeline_main.PipelineMain.load`.

    Raises:
        LisaError: nothing is there, or it is not such a model that can be trained on.
    """
    layout = Layout(
        pipelines=("AnimateDiffPipeline", "AnimateDiffControlNetPipeline"),
        network="unet",
        check_scheduler=_check_scheduler,
        options={"feature_extractor": None, "image_encoder": None},
        required=("text_encoder", "tokenizer", "motion_adapter"),
    )
    return AnimateDiffMain.load(layout, source, **options)


def _check_scheduler(scheduler: Mapping[str, Any], source: str) -> None:
    """Motion modules are trained with linear betas; a pipeline made around Stable Diffusion keeps that one's schedule,
    and then every x_t is at another noise level than its t says.
    """
    check_prediction(scheduler, source)
    if (schedule := scheduler["beta_schedule"]) == "scaled_linear":
        raise LisaError(
            f"the scheduler of {source!r} has the beta_schedule {schedule!r}, which is Stable Diffusion's own: motion "
            "modules are trained with 'linear'",
            "Save the pipeline with pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, "
            "beta_schedule='linear', clip_sample=False, timestep_spacing='linspace'), as diffusers' examples make it",
        )
