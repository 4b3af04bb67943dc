"""From the sections of a configuration to the objects they describe, checked before any long work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lisa.build.checks import (
    check_condition_init,
    check_float16,
    check_frames,
    check_kind,
    check_positions,
    check_size,
    choose_control_type,
    choose_guidance,
    choose_log_sigma,
)
from lisa.build.memory import check_memory, make_networks
from lisa.build.recomputing import recompute_activations
from lisa.common.errors import LisaError
from lisa.core.aligner import LikelihoodAligner
from lisa.core.residual import NoiseLevelWeighting, make_weighting
from lisa.core.schedule import WeightSchedule, make_schedule
from lisa.data.clips import ClipFolder
from lisa.data.samples import Part, Sample, Source, Subset, content_hash
from lisa.data.scene_sources import MOVING_RATE
from lisa.data.sources import MovingScenesSource, Sampling, ScenesSource, check_source, open_source
from lisa.data.split import held_out_split
from lisa.data.transforms import PairedTransform
from lisa.pairs import Pair, pair_spec
from lisa.pairs.fit import check_conditions
from lisa.sides.attach import attach
from lisa.sides.base import SideOptions
from lisa.train.config import DataSettings, TrainConfig
from lisa.train.loop import ClipGroup
from lisa.train.network_settings import ModelSettings
from lisa.train.step import AlignmentOptions
from lisa.train.teacher import Teacher


@dataclass(frozen=True)
class DataParts:
    """Training and held-out samples, and the geometry both get."""

    train: Subset
    held_out: Subset
    transform: PairedTransform
    notes: list[str]


def open_data(settings: DataSettings, seed: int, *, check: bool = True) -> DataParts:
    """Open, check and split the data.

    Raises:
        LisaError: anything wrong with the source (see :func:`lisa.data.sources.check_source`) or the split, or pictures
            where the settings ask for clips, or the other way round.
    """
    height, width = settings.height_width
    drawn = settings.source in (ScenesSource.kind, MovingScenesSource.kind)
    if drawn and height != width:
        raise LisaError(f"{settings.source} are square; data.size is {settings.size}", "Give one number")
    if settings.source == MovingScenesSource.kind and settings.frames is None:
        raise LisaError("data.source is moving-scenes, but data.frames is empty", "Set it, such as data.frames=8")
    columns = {
        "image_column": settings.image_column,
        "condition_column": settings.condition_column,
        "caption_column": settings.caption_column,
    }
    source = open_source(
        settings.source,
        default_caption=settings.default_caption,
        conditions=settings.conditions,
        sampling=sampling_of(settings),
        scene_options={"seed": settings.scenes_seed, "count": settings.scenes, "size": height},
        table_options=columns,
        hub_options={"split": settings.split},
    )
    _check_count(source, settings.conditions)
    notes = [] if drawn or not check else [*check_source(source).notes, *_unseen(source, settings)]
    train, held_out = held_out_split(source.keys, settings.held_out, seed=0).apply(source)
    clips = settings.frames is not None
    transform = PairedTransform((height, width), settings.crop, settings.flip, seed, windows=clips)
    return DataParts(train, held_out, transform, notes)


def _unseen(source: Source, settings: DataSettings) -> list[str]:
    """A note where what is cached fixes one stretch of clips that are longer."""
    if not isinstance(source, ClipFolder) or not set(settings.cache) - {"text"}:
        return []
    longer, share = source.in_the_middle()
    note = (
        f"{longer} of {len(source)} clips are longer than a sample, and with data.cache=[{', '.join(settings.cache)}] "
        f"only their middle is seen: {share:.0%} of all frames. Cut them into shorter clips, or have another stretch "
        "encoded at every visit (data.cache=[text]; [] where the first frame is read)"
    )
    return [note] if longer else []


def sampling_of(settings: DataSettings) -> Sampling | None:
    """Which frames of a clip make a sample; None: the data are pictures."""
    if settings.frames is None:
        return None
    return Sampling(settings.frames, settings.frame_rate, settings.short_clips)


def known_rate(settings: DataSettings) -> float | None:
    """Frames per second of a run's clips, where its settings tell; None: pictures, or every clip has its own."""
    if settings.frames is None or settings.frame_rate is not None:
        return None if settings.frames is None else settings.frame_rate
    return MOVING_RATE if settings.source == MovingScenesSource.kind else None


def _check_count(source: Source, conditions: Sequence[str]) -> None:
    """As many condition pictures per sample as conditions are named; a table may have another number of columns."""
    first = source[0].condition if len(source) else None
    found = 0 if first is None else first.shape[-1] // 3
    if found != len(conditions) and first is not None:
        raise LisaError(
            f"data.condition names {len(conditions)} conditions ({', '.join(conditions)}), {source.name} gives {found}",
            "Name a column for each of them with data.condition_column",
        )


def still(transform: PairedTransform) -> PairedTransform:
    """The same geometry for held-out samples: without flips, and with crops that do not depend on the run's seed."""
    return PairedTransform(transform.size, transform.crop, False, 0, transform.condition_resample)


class Still:
    """Samples as the training sees them, but never mirrored: the geometry of held-out samples. A source itself."""

    def __init__(self, source: Source, transform: PairedTransform) -> None:
        self.source, self.transform = source, still(transform)
        self.name = source.name

    @property
    def keys(self) -> Sequence[str]:
        """The source's."""
        return self.source.keys

    @property
    def fingerprint(self) -> str:
        """Changes with the source and with the geometry."""
        return content_hash(self.source.fingerprint, self.transform.fingerprint)

    def part_fingerprint(self, part: Part) -> str:
        """The same for one part."""
        return content_hash(self.source.part_fingerprint(part), self.transform.fingerprint)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.transform.sample(self.source[index], index)


def model_source(settings: ModelSettings) -> str:
    """Path or Hub name of the main network; embedded models by their name."""
    from lisa import zoo

    return zoo.path(settings.path) if settings.path in zoo.names() else settings.path


def build_pair(config: TrainConfig) -> Pair:
    """Load the main network and make or load the side network.

    Raises:
        LisaError: something cannot be loaded, does not fit, or ``data.size`` is no multiple of what the network needs
            or larger than it has positions for; or the family cannot be trained in float16.
    """
    spec = pair_spec(config.model.pair)
    check_kind(config.data.frames, spec)
    if config.train.mixed_precision == "fp16":
        check_float16("train.mixed_precision=fp16", spec, "Use train.mixed_precision=bf16")

    def make_side(main: Any) -> Any:
        check_size(config.data.height_width, main.size_multiple)
        check_frames(config.data.frames, main)
        options = SideOptions(depth=config.side.depth, conditions=len(config.data.conditions))
        if config.side.init is None:
            return spec.make_side(main, options)
        return spec.load_fitting_side(main, config.side.init, options)

    main, side = make_networks(config, spec, model_source(config.model), make_side)
    check_conditions(spec, side, len(config.data.conditions))
    choose_control_type(side, config.side.control_type)
    check_positions(config.data.height_width, main, side)
    choose_guidance(main, config.model.guidance)
    choose_log_sigma(main, config.model.log_sigma)
    if config.side.gradient_checkpointing:
        recompute_activations(side.module)
        recompute_activations(main.network)
    return Pair(spec, main, side, share_prior=config.model.share_prior)


def build_alignment(config: TrainConfig, pair: Pair) -> tuple[LikelihoodAligner | None, WeightSchedule | None]:
    """The aligner and its schedule, or neither for the plain baseline."""
    settings = config.align
    if not settings.active:
        return None, None
    layers = settings.layer if settings.layer is not None else pair.spec.default_layer
    with pair.side.whole():  # to measure the stride of a layer that it has no name for, it is run once
        aligner = _attach(pair, layers, config)
    schedule = make_schedule(settings.schedule, settings.weight, config.train.steps, **settings.schedule_options())
    return aligner, schedule


def alignment_options(config: TrainConfig, pair: Pair) -> AlignmentOptions:
    """How steps are aligned beside weight and schedule. After the side network is where it is trained."""
    settings = config.align
    teacher = Teacher(pair, settings.teacher, settings.teacher_decay) if settings.active and settings.teacher else None
    return AlignmentOptions(settings.target == "shuffled", settings.noises, settings.warmup, teacher)


def main_weighting(config: TrainConfig, pair: Pair) -> NoiseLevelWeighting | None:
    """Of the main loss by noise level, if there is to be any."""
    if config.train.snr_gamma is None:
        return None
    process, gamma = pair.main.process, config.train.snr_gamma
    return make_weighting("min-snr", snr=process.snr_of_decoder_time, prediction=process.prediction, gamma=gamma)


def _attach(pair: Pair, layers: str | list[str], config: TrainConfig) -> LikelihoodAligner:
    settings, strides = config.align, {layer.name: layer.stride for layer in pair.side.layers()}
    wanted = [layers] if isinstance(layers, str) else layers
    return attach(
        pair.side.module,
        layers,
        out_channels=pair.main.latent_channels,
        stride=[strides[name] for name in wanted] if all(name in strides for name in wanted) else None,
        weight=settings.weight,
        weighting=settings.weighting,
        tap=pair.side.tap,
        x_t_channels=pair.main.latent_channels if settings.decoder_reads != "feature" or not pair.side.sees_x_t else 0,
        snr=pair.main.process.snr_of_decoder_time,
        prediction=pair.main.process.prediction,
        balanced=settings.balanced,
        decoder_channels=settings.decoder_channels,
        reads_prior=settings.decoder_reads == "prior",
    )


def build_optimizer(
    config: TrainConfig, pair: Pair, aligner: LikelihoodAligner | None, device: torch.device
) -> tuple[Any, dict[str, ClipGroup]]:
    """AdamW with a learning rate for the side network, its zero modules and the decoder; and what is clipped apart."""
    settings = config.train
    zero = [p for module in pair.side.zero_modules() for p in module.parameters() if p.requires_grad]
    taken = {id(p) for p in zero}
    rest = [p for p in pair.side.module.parameters() if p.requires_grad and id(p) not in taken]
    rate = settings.learning_rate
    groups = [
        {"params": rest, "lr": rate},
        {"params": zero, "lr": rate * settings.zero_lr_multiplier},
    ]
    clip = {"side": ClipGroup([*rest, *zero], settings.clip_norm)}
    if aligner is not None:
        decoder = list(aligner.parameters())
        groups.append({"params": decoder, "lr": rate * settings.decoder_lr_multiplier})
        clip["decoder"] = ClipGroup(decoder, settings.clip_norm)
    options: dict[str, Any] = {"lr": rate, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw-8bit":
        return _adamw_8bit(device)(groups, **options), clip
    return torch.optim.AdamW(groups, **options, fused=device.type in ("cpu", "cuda", "mps", "xpu")), clip


def check_before_loading(config: TrainConfig) -> None:
    """Refuse what the settings alone show to be impossible, before anything is read.

    Raises:
        LisaError: an optimiser or a saving of memory that cannot be had here, pictures where the pair makes clips or
            the other way round, or a start of a condition embedding that its side network does not have.
    """
    check_optimizer(config)
    spec = pair_spec(config.model.pair)
    check_kind(config.data.frames, spec)
    check_condition_init(config.side.condition_init, spec)
    check_memory(config)


def check_optimizer(config: TrainConfig) -> None:
    """Refuse the 8-bit optimiser where it cannot run, before anything is loaded."""
    if config.train.optimizer == "adamw-8bit":
        _adamw_8bit(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _adamw_8bit(device: torch.device) -> Any:
    remedy = (
        "Install the extra: pip install 'lisa-diffusion[bnb]', on a machine with CUDA; or set train.optimizer=adamw"
    )
    try:
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, RuntimeError) as error:
        raise LisaError(f"train.optimizer=adamw-8bit needs bitsandbytes ({error})", remedy) from None
    if device.type != "cuda":
        raise LisaError(f"train.optimizer=adamw-8bit runs on CUDA only; this device is {device.type}", remedy)
    return AdamW8bit


def cache_folder(config: TrainConfig) -> Path:
    """Where encoded data is kept."""
    return config.data.cache_dir if config.data.cache_dir is not None else config.out / "cache"
