"""What is set on networks that were just loaded, and refused where it does not suit them, before any long work."""

from __future__ import annotations

from typing import Any

from lisa.common.errors import LisaError
from lisa.mains.base import MainNetwork
from lisa.pairs import PairSpec
from lisa.processes.edm import EDMProcess
from lisa.sides.base import SideNetwork
from lisa.sides.embedding import condition_embedding


def check_float16(asked: str, spec: PairSpec, remedy: str) -> None:
    """Refuse float16 for a family that leaves its range.

    Args:
        asked: the option that asks for it, as people write it.
        spec: the kind of pair.
        remedy: what to use instead.

    Raises:
        LisaError: it does; the message names what of it.
    """
    if spec.overflows_in_fp16:
        raise LisaError(f"{asked}: {spec.name} leaves float16's range ({spec.overflows_in_fp16})", remedy)


def check_size(size: tuple[int, int], multiple: int) -> None:
    """Refuse pixels that are no multiple of what one latent, or one token, covers.

    Raises:
        LisaError: a side of ``size`` (height, width) is none.
    """
    if any(side % multiple for side in size):
        raise LisaError(f"data.size is {size}", f"For this main network both sides must be multiples of {multiple}")


def check_frames(frames: int | None, main: MainNetwork) -> None:
    """Refuse pictures where the main network makes clips, clips where it makes pictures, and clips of a wrong length.

    Args:
        frames: of a clip; None: pictures.
        main: the main network.

    Raises:
        LisaError: they do not go together.
    """
    _check_kind(frames, main.video, repr(main.source))
    if frames is not None:
        main.latent_frames(frames)


def check_condition_init(wanted: str, spec: PairSpec) -> None:
    """Refuse another start of a condition embedding that the pair's side network does not have, as its name tells.

    Raises:
        LisaError: it has none.
    """
    if wanted == "lsuv":
        condition_embedding(spec.reference_side().module)


def check_kind(frames: int | None, spec: PairSpec) -> None:
    """The same, as far as the pair's name tells: before anything is loaded.

    Raises:
        LisaError: pictures and clips do not go together.
    """
    _check_kind(frames, spec.call.clips, f"a pair {spec.name!r}")


def _check_kind(frames: int | None, video: bool, who: str) -> None:
    if video and frames is None:
        raise LisaError(
            f"{who} makes clips, but data.frames is empty: the data are pictures",
            "Set data.frames, such as data.frames=8, and a source of clips (data.source=moving-scenes, or a folder "
            "with clips/); or use a pair that makes pictures (model.pair)",
        )
    if frames is not None and not video:
        raise LisaError(
            f"{who} makes pictures, but data.frames is {frames}: the data are clips",
            "Leave data.frames empty and use a source of pictures, or use a pair that makes video (model.pair)",
        )


def check_positions(size: tuple[int, int], main: MainNetwork, *sides: SideNetwork) -> None:
    """Refuse pictures of more latent cells per side than all networks have positions for.

    Raises:
        LisaError: ``size`` (height, width in pixels) is too large; the message names the largest.
    """
    networks: tuple[MainNetwork | SideNetwork, ...] = (main, *sides)
    limits = [each.latent_limit * main.latent_factor for each in networks if each.latent_limit is not None]
    if limits and max(size) > min(limits):
        raise LisaError(
            f"pictures of {size[1]}x{size[0]} pixels are larger than the networks have positions for",
            f"Choose a size (data.size) of at most {min(limits)} pixels per side",
        )


def choose_control_type(side: SideNetwork, number: int | None) -> None:
    """Set which kind of condition a side network for several is trained on and sampled with; None: its first.

    Raises:
        LisaError: it does not tell so many kinds apart, or none at all.
    """
    if number is None:
        return
    choose = getattr(side, "choose_control_type", None)
    if choose is None:
        raise LisaError(f"side.control_type is {number}, but a {side.kind} is for one kind", "Leave it empty")
    choose(number)


def choose_guidance(main: Any, guidance: float | None) -> None:
    """Set the embedded guidance of both passes. Classifier-free guidance is another matter, of sampling alone.

    Raises:
        LisaError: the main network embeds none.
    """
    if guidance is None:
        return
    if not getattr(main.network.config, "guidance_embeds", False):
        raise LisaError(
            f"model.guidance is {guidance}, but {main.source!r} embeds no guidance: it is not distilled",
            "Leave model.guidance empty; the guidance of pictures is sample.guidance",
        )
    main.guidance = guidance


def choose_log_sigma(main: Any, log_sigma: tuple[float, float] | None) -> None:
    """Set the density of the noise levels that an EDM model is trained at.

    Raises:
        LisaError: the main network is none.
    """
    if log_sigma is None:
        return
    if main.process.prediction != "edm":
        raise LisaError(
            f"model.log_sigma is {list(log_sigma)}, but {main.source!r} is no EDM model: it has other noise levels",
            "Leave model.log_sigma empty",
        )
    main.process = EDMProcess(*log_sigma)
