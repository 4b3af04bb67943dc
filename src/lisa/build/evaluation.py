"""``lisa evaluate``: generated pictures or clips against the data they were made for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa.build import parts
from lisa.build.chosen import read_run
from lisa.build.outputs import how_made
from lisa.common.errors import LisaError, choose
from lisa.data.clips import clip_folder, holds_clips
from lisa.data.images import SUFFIXES, image_size
from lisa.data.layout import require_folder
from lisa.data.samples import Sample, Source, Subset
from lisa.data.scene_sources import MOVING_RATE
from lisa.data.sources import MovingScenesSource, ScenesSource, check_source, open_source
from lisa.data.transforms import PairedTransform
from lisa.data.video import VIDEO_SUFFIXES, clip_info, frame_files
from lisa.evaluate import extras, protocols, published
from lisa.evaluate.clips import is_clip
from lisa.evaluate.deviations import deviations
from lisa.evaluate.labels import VOID, read_label_maps
from lisa.evaluate.runner import evaluate_sets, read_folders
from lisa.evaluate.sets import Sets, check_drawn_apart, check_sets, remedy_of

#: Where the protocol of a condition comes from: this library's own, or one of the published.
OWN = "own"
#: Data of exact truth.
DRAWN = (ScenesSource.kind, MovingScenesSource.kind)
_LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Judging:
    """How pictures are judged.

    Attributes:
        protocol: :data:`OWN`, ``lisa`` or ``controlnet++``.
        extractor: weights of the network that a published protocol reads pictures with: folder or Hub name; None: the
            published ones.
        detector: the same, of the person detector of poses.
        labels: folder of the data's own label maps, where a protocol asks for them.
        labels_start: the number of the first class in them; None: what the protocol's labels have.
        metrics: further ones, of :data:`lisa.evaluate.extras.EXTRAS`.
        clip: weights of CLIP, for those that use it.
    """

    protocol: str = OWN
    extractor: str | None = None
    detector: str | None = None
    labels: str | Path | None = None
    labels_start: int | None = None
    metrics: Sequence[str] = ()
    clip: str = extras.CLIP


def evaluate(
    generated: str | Path | Sequence[str | Path],
    *,
    run: str | Path | None = None,
    data: str | None = None,
    condition: str | None = None,
    size: int | tuple[int, int] | None = None,
    count: int | None = None,
    judging: Judging | None = None,
) -> dict[str, Any]:
    """Judge a folder of generated pictures or clips.

    Args:
        generated: the folder; or several, each with a picture of every sample, whose figures are averaged.
        run: judge against the held-out samples of this run, cropped as they were in training.
        data: or against all samples of this source; of scenes, against those that the files are named after.
        condition: with ``data``, what the conditions are; with a ``run`` on several stacked conditions, which of them.
        size: with ``data``, the side of the pictures in pixels, or (height, width).
        count: only the first so many samples.
        judging: protocol and metrics; None: the library's own protocol.

    Returns:
        As :func:`lisa.evaluate.runner.evaluate_images`, ``sets`` (the number of folders) and ``notes``; of published
        protocols ``extractors`` (exactly which weights) and ``deviations`` (in what it is not as published).
        ``not_run`` says of what could not be had (weights, packages; captions or pictures that a metric needs) why;
        the rest is there. Where that is the protocol's own extractor, fidelity is empty.

    Raises:
        LisaError: neither or both of ``run`` and ``data``, a missing picture, a condition that no protocol judges
            while no other metrics are asked for, nothing that can be run, or folders that hold the same pictures or
            were made with different settings.
    """
    folders = [Path(each) for each in ([generated] if isinstance(generated, str | Path) else generated)]
    if not folders:
        raise LisaError("there is no folder to judge", "Name one, or several")
    judging = judging or Judging()
    height_width = (size, size) if isinstance(size, int) else size
    settings = how_made([require_folder(folder) for folder in folders])
    source, name, transform = _opened(folders, run, data, condition, height_width, judging, settings)
    first = source[0] if len(source) else None
    if first is not None and is_clip(first) and judging.protocol != OWN:
        raise LisaError(
            f"the protocol {judging.protocol} is of pictures, these are clips", f"Judge clips by --protocol {OWN}"
        )
    judge = _Judge(judging, name, exact=first is not None and first.truth is not None)
    indices = range(len(source) if count is None else min(count, len(source)))
    sets, samples = read_folders(folders, source, indices=indices, size=height_width)
    check_sets(sets, samples)
    check_drawn_apart(sets, [str(folder) for folder in folders])
    result = {**judge(sets, samples, transform, settings), "sets": len(sets)}
    files = [file for made in sets for file in made.files]
    lossy = sum(_is_lossy(file) for file in files)
    if lossy:
        what = "clips" if is_clip(samples[0]) else "pictures"
        result["notes"].append(f"JPEG {what} ({lossy} of {len(files)}) are judged with their losses: save PNG")
    if data in DRAWN:
        at = "" if samples[0].rate is None else f" at {samples[0].rate:g} frames per second"
        there = f"judged are the {len(source)} scenes{at} that there are files of"
        result["notes"].append(f"{there}; --run tells which ought to be")
    return result


def _is_lossy(file: Path) -> bool:
    """Whether a picture, or a frame of a folder of them, is JPEG."""
    return any(picture.suffix in _LOSSY for picture in (frame_files(file) if file.is_dir() else [file]))


class _Judge:
    """Everything that judging needs, loaded before any picture is read."""

    def __init__(self, judging: Judging, condition: str, *, exact: bool) -> None:
        self.judging, self.condition = judging, condition
        self.protocol = None if judging.protocol == OWN else published.find(judging.protocol, condition)
        self.notes = self._check(exact)
        wanted = [*judging.metrics, *(self.protocol.also if self.protocol is not None else ())]
        self.ready, self.not_run = extras.prepare(wanted, judging.clip)
        self.reader: Any = None
        if self.protocol is not None:
            try:
                self.reader = published.load_reader(self.protocol, judging.extractor, judging.detector)
            except LisaError as error:
                if not self.ready:
                    raise
                self.not_run["fidelity"] = str(error)

    def __call__(
        self, sets: Sets, samples: list[Sample], transform: PairedTransform | None, settings: Any
    ) -> dict[str, Any]:
        result = self._fidelity(sets, samples, transform)
        result |= {"notes": [*self.notes], "not_run": dict(self.not_run)}
        if self.protocol is not None:
            result["deviations"] = deviations(self.protocol, samples, settings, result["extractors"], len(sets))
        for name, extra in self.ready.items():
            try:
                found = extras.measure_sets(name, extra, sets, samples)
            except LisaError as error:  # too few pictures, no captions ...: what is read already is worth having
                result["not_run"][name] = str(error)
                continue
            result["metrics"][name] = found.to_json(name, extra.features)
            result["notes"] += found.notes
            if not found.of_set:
                for sample, value in zip(samples, found.values, strict=True):
                    result["per_image"].setdefault(sample.key, {})[name] = value
        return result

    def _check(self, exact: bool) -> list[str]:
        """Notes; metrics are worth having of conditions that no protocol judges, too."""
        judging, notes = self.judging, list[str]()
        if self.protocol is None:
            try:
                protocols.find(self.condition, exact)
            except LisaError as error:
                if not judging.metrics:
                    raise
                notes.append(f"no fidelity: {error}")
            options = ("extractor", "detector", "labels", "labels_start")
            given = [name for name in options if getattr(judging, name) is not None]
            if given:
                raise LisaError(
                    f"{', '.join(given)}: only published protocols use that",
                    "Choose one with --protocol",
                    published.FAMILIES,
                )
        elif self.protocol.labels != (judging.labels is not None):
            needs = "judges by the data's own label maps" if self.protocol.labels else "uses no label maps"
            remedy = "Give their folder with --labels" if self.protocol.labels else "Leave out --labels"
            raise LisaError(f"the protocol {self.protocol.name} {needs}", remedy)
        elif judging.labels_start is not None and (judging.labels is None or not 0 <= judging.labels_start < VOID):
            raise LisaError(
                f"labels_start is {judging.labels_start}, the number of the first class in label maps of bytes",
                f"Give a number of 0..{VOID - 1}, for a protocol that judges by label maps",
            )
        return notes

    def _fidelity(self, sets: Sets, samples: list[Sample], transform: PairedTransform | None) -> dict[str, Any]:
        if self.protocol is None and not self.notes:
            return evaluate_sets(sets, samples, self.condition)
        if self.protocol is None:
            return self._none(len(samples))
        if "fidelity" in self.not_run:
            return self._none(len(samples), self.protocol.name, self.protocol.about, self.protocol.fidelity_rule)
        labels = None
        if self.judging.labels is not None:
            given, keys = self.judging.labels_start, [sample.key for sample in samples]
            start = self.protocol.labels_start if given is None else given
            labels = read_label_maps(self.judging.labels, keys, transform, start=start, classes=self.reader.classes)
        return published.evaluate(self.protocol, self.reader, sets, samples, labels)

    def _none(self, samples: int, protocol: str = "none", about: str = "", rule: str = "none") -> dict[str, Any]:
        """A result without fidelity."""
        return {
            "condition": self.condition,
            "protocol": protocol,
            "about": about,
            "samples": samples,
            "fidelity": {"value": None, "low": None, "high": None},
            "fidelity_rule": rule,
            "fidelity_unit": "",
            "metrics": {},
            "per_image": {},
            "extractors": [],
        }


def _opened(
    folders: Sequence[Path],
    run: str | Path | None,
    data: str | None,
    condition: str | None,
    size: tuple[int, int] | None,
    judging: Judging,
    settings: Mapping[str, Any] | None,
) -> tuple[Source, str, PairedTransform | None]:
    """The samples, the condition's name, and what is done to the samples' pictures."""
    if (run is None) == (data is None):
        raise LisaError(
            "lisa evaluate needs one of --run and --data", "Name the run, or the data the pictures belong to"
        )
    if run is not None:
        config = read_run(Path(run))
        opened = parts.open_data(config.data, config.seed, check=False)
        still = parts.Still(opened.held_out, opened.transform)
        return still, _one_of(config.data.conditions, condition), still.transform
    if condition is None:
        raise LisaError("--data needs --condition", "Say what the conditions are, for example --condition canny")
    if judging.protocol == OWN and not judging.metrics:  # before every picture is read
        protocols.find(condition, exact=data in DRAWN)
    elif judging.protocol != OWN:
        published.find(judging.protocol, condition)
    if data in DRAWN:
        return _drawn(folders, str(data), condition, size, (settings or {}).get("rate")), condition, None
    # Clips are judged whole: as many frames as there are.
    clips = holds_clips(str(data)) and not (Path(str(data)) / "images").is_dir()
    source = clip_folder(str(data), None, default_caption="") if clips else open_source(str(data), default_caption="")
    check_source(source)
    return source, condition, None if size is None else PairedTransform(size)


def _drawn(
    folders: Sequence[Path], kind: str, condition: str, size: tuple[int, int] | None, told: float | None
) -> Source:
    """The scenes that the files of any folder are named after, as large; moving ones with as many frames."""
    make = MovingScenesSource if kind == MovingScenesSource.kind else ScenesSource
    moving, pattern = make is MovingScenesSource, re.compile(rf"{kind.removesuffix('s')}-(\d+)-(\d+)")
    found: dict[tuple[int, int], Path] = {}
    for file in [file for folder in folders for file in folder.iterdir()]:
        name = pattern.fullmatch(file.stem)
        if name is None:
            continue
        clip = frame_files(file) if file.is_dir() else file.suffix in VIDEO_SUFFIXES
        if clip if moving else file.suffix in SUFFIXES:
            found[int(name[1]), int(name[2])] = file
    streams = sorted({stream for stream, _ in found})
    if len(streams) != 1:
        held = f"scenes of several streams ({', '.join(map(str, streams))})" if streams else f"none of {kind}"
        remedy = f"Name files as the scenes are, of one stream: {make(None, 1, 1).keys[0]}"
        raise LisaError(f"{str(folders[0])!r} holds {held}", remedy_of(folders[0], remedy))
    numbers = sorted(number for _, number in found)
    one = found[streams[0], numbers[0]]
    info = clip_info(one) if moving else None
    height, width = size or (info.size if info is not None else image_size(one))
    if height != width:
        raise LisaError(f"{kind} are square, not {width}x{height} pixels", "Leave out --size, or judge square pictures")
    options = {} if info is None else {"frames": info.frames, "rate": told or info.rate or MOVING_RATE}
    source = make(condition, streams[0], numbers[-1] + 1 - numbers[0], height, numbers[0], **options)
    return Subset(source, [number - numbers[0] for number in numbers])


def _one_of(conditions: Sequence[str], chosen: str | None) -> str:
    """The condition of a run to judge by."""
    if chosen is not None:
        return choose("condition of the run", chosen, conditions)
    if len(conditions) > 1:
        raise LisaError("the run has several conditions", "Choose one with --condition", conditions)
    return conditions[0]
