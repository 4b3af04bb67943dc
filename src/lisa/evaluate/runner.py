"""Evaluation of generated pictures and clips, in memory or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lisa.common.errors import LisaError
from lisa.common.intervals import Interval, bootstrap_mean
from lisa.data.folders import require_folder
from lisa.data.images import SUFFIXES, load_rgb
from lisa.data.samples import ByteArray, Sample, Source
from lisa.data.transforms import PairedTransform
from lisa.data.video import VIDEO_SUFFIXES, clip_info, frame_files, read_frames
from lisa.evaluate import protocols
from lisa.evaluate.clips import describe, is_clip, judge_clip
from lisa.evaluate.sets import Files, Sets, check_sets, mean_scores, remedy_of

Result = dict[str, Any]


def evaluate_images(
    images: Sequence[ByteArray], samples: Sequence[Sample], condition: str, *, seed: int = 0, resamples: int = 1000
) -> Result:
    """Judge generated pictures against what was asked for; see :func:`evaluate_sets`."""
    return evaluate_sets([images], samples, condition, seed=seed, resamples=resamples)


def evaluate_sets(
    sets: Sets,
    samples: Sequence[Sample],
    condition: str,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """Judge generated pictures against what was asked for; of several per sample the mean.

    Args:
        sets: uint8 (H, W, 3), one per sample and in the same order, of each set (:mod:`lisa.evaluate.sets`); clips
            (F, H, W, 3) for samples that are clips.
        samples: with exact truth (scenes) or without, pictures or clips; not both kinds in one call.
        condition: the name of the condition; its protocol is looked up.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        Plain JSON values: ``condition``, ``protocol``, ``about``, ``samples`` (their number), ``fidelity`` (mean with
        95% interval: value, low, high; higher is better), ``fidelity_rule``, ``fidelity_unit``, ``metrics`` (each with
        value, low, high, unit, higher_is_better) and ``per_image`` (key -> metric -> value). Of clips the figures of
        pictures are means over the frames; see :func:`lisa.evaluate.clips.judge_clip`.

    Raises:
        LisaError: no samples, numbers that differ, a picture of another size, or no protocol for the condition.
    """
    check_sets(sets, samples)
    exact = {sample.truth is not None for sample in samples}
    if len(exact) > 1:
        raise LisaError("some samples carry exact truth and some do not", "Evaluate them apart")
    clips = {is_clip(sample) for sample in samples}
    if len(clips) > 1:
        raise LisaError("some samples are clips and some pictures", "Evaluate them apart")
    protocol = protocols.find(condition, exact.pop())
    judge = partial(judge_clip, protocol) if (of_clips := clips.pop()) else protocol.judge
    per_image = {
        s.key: mean_scores([judge(s, image) for image in made]) for s, *made in zip(samples, *sets, strict=True)
    }
    return _result(protocol, condition, per_image, seed, resamples, clips=of_clips)


def evaluate_folder(
    generated: str | Path,
    source: Source,
    condition: str,
    *,
    indices: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """Judge a folder of generated pictures, named ``<key>.png`` (or another picture suffix) after the samples.

    Clips are folders of frames ``<key>/`` or videos ``<key>.mp4`` (or another suffix of videos).

    Args:
        generated: the folder.
        source: what was asked for.
        condition: its name.
        indices: which samples; all if None.
        size: (height, width) to which the true pictures are resized and centrally cropped first, as training does.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        As :func:`evaluate_images`.

    Raises:
        LisaError: no such folder, missing pictures (named: nothing is ever skipped), or a picture of another size.
    """
    sets, samples = read_folders([generated], source, indices=indices, size=size)
    return evaluate_sets(sets, samples, condition, seed=seed, resamples=resamples)


def read_folders(
    generated: Sequence[str | Path],
    source: Source,
    *,
    indices: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[list[Files], list[Sample]]:
    """The pictures of each folder, and the samples that they were asked for; see :func:`evaluate_folder`.

    Raises:
        LisaError: no such folder, or missing pictures.
    """
    folders = [require_folder(folder) for folder in generated]
    picked = list(range(len(source))) if indices is None else list(indices)
    keys = [source.keys[i] for i in picked]
    clips = bool(picked) and is_clip(source[picked[0]])
    find, read, what = (_clips_of, _read_clip, "clips") if clips else (_pictures_of, load_rgb, "pictures")
    sets = [Files(_find_all(folder, keys, find, what), read) for folder in folders]
    for made in sets:
        for _ in made:  # decoded once before any is judged: what is damaged is an error, and a network may take hours
            pass
    transform = None if size is None else PairedTransform(size)
    samples = []
    for index in picked:
        sample = source[index]
        samples.append(sample if transform is None else transform.sample(sample, index))
    return sets, samples


def fidelity_gain(better: Result, base: Result, *, seed: int = 0, resamples: int = 1000) -> Interval:
    """Mean difference of fidelity between two results on the same samples, paired by key, with its 95% interval.

    Raises:
        LisaError: the results are of different samples or protocols.
    """
    ours, theirs = better["per_image"], base["per_image"]
    if set(ours) != set(theirs) or better["protocol"] != base["protocol"]:
        raise LisaError("the two evaluations are of different samples or protocols", "Compare like with like")
    return bootstrap_mean([ours[k]["fidelity"] - theirs[k]["fidelity"] for k in ours], seed=seed, n=resamples)


def _find_all(folder: Path, keys: Sequence[str], find: Callable[[Path, str], list[Path]], what: str) -> list[Path]:
    found = [find(folder, key) for key in keys]
    missing = [key for key, files in zip(keys, found, strict=True) if not files]
    if missing:
        names = ", ".join(repr(key) for key in missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise LisaError(
            f"{str(folder)!r} lacks {len(missing)} of {len(keys)} {what} ({names})",
            remedy_of(folder, f"Generate them first: a missing {what.removesuffix('s')} is never skipped"),
        )
    twice = [files for files in found if len(files) > 1]
    if twice:
        raise LisaError(f"{str(folder)!r} holds both {twice[0][0].name!r} and {twice[0][1].name!r}", "Keep one")
    return [files[0] for files in found]


def _read_clip(file: Path) -> ByteArray:
    return read_frames(file, range(clip_info(file).frames))


def _pictures_of(folder: Path, key: str) -> list[Path]:
    return [file for suffix in SUFFIXES if (file := folder / f"{key}{suffix}").is_file()]


def _clips_of(folder: Path, key: str) -> list[Path]:
    frames = folder / key
    own = [frames] if frames.is_dir() and frame_files(frames) else []
    return own + [file for suffix in VIDEO_SUFFIXES if (file := folder / f"{key}{suffix}").is_file()]


def _result(
    protocol: protocols.Protocol,
    condition: str,
    per_image: Mapping[str, protocols.Scores],
    seed: int,
    resamples: int,
    *,
    clips: bool,
) -> Result:
    def interval(name: str) -> dict[str, Any]:
        return dict(bootstrap_mean([s[name] for s in per_image.values()], seed=seed, n=resamples).to_json())

    names = [name for name in next(iter(per_image.values())) if name != "fidelity"]
    found = {name: describe(name, protocol) for name in names}
    return {
        "condition": condition,
        "protocol": f"{protocol.name}/frames" if clips else protocol.name,
        "about": f"{protocol.about}; mean over the frames of each clip" if clips else protocol.about,
        "samples": len(per_image),
        "fidelity": interval("fidelity"),
        "fidelity_rule": protocol.fidelity_rule,
        "fidelity_unit": protocol.fidelity_unit,
        "metrics": {
            name: {
                **interval(name),
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
            }
            for name, metric in found.items()
        },
        "per_image": {key: dict(scores) for key, scores in per_image.items()},
    }
