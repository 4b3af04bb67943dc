"""Metrics beside fidelity: how near to the true picture, to the caption, and to the true set of pictures.

Each is the work of a library (lpips, clean-fid, torchmetrics) or of transformers' CLIP, and says which features it
used. Those of Inception and of CLIP have different names: they are not comparable.
"""

from __future__ import annotations

import functools
import importlib.metadata
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisa.common.errors import LisaError, choose, need
from lisa.common.intervals import bootstrap_mean
from lisa.common.model_folders import first_line
from lisa.data.images import save_png
from lisa.data.samples import ByteArray, Sample
from lisa.evaluate import fvd
from lisa.evaluate.clips import frames_of, is_clip
from lisa.evaluate.extractors.clip import ClipReader
from lisa.evaluate.extractors.weights import device, locate
from lisa.evaluate.metrics import psnr_ssim
from lisa.evaluate.sets import Sets

#: As both published protocols have it.
CLIP = "openai/clip-vit-base-patch16"
_ENOUGH = 10_000  # pictures, for a Frechet distance
_LPIPS_LEAST = 31  # pixels: less leaves nothing for AlexNet's second pooling


@dataclass(frozen=True)
class Extra:
    """A metric beside fidelity: its unit, which way is better, what it needs, and one line of help.

    ``of_clips``: of whole clips alone; others are of pictures, and of every frame of clips.
    """

    unit: str
    higher_is_better: bool
    needs: str | None
    about: str
    of_clips: bool = False


EXTRAS: dict[str, Extra] = {
    "psnr": Extra("dB", True, None, "peak signal-to-noise ratio to the true picture, at most 60"),
    "ssim": Extra("", True, None, "structural similarity to the true picture"),
    "lpips": Extra("", False, "lpips", "perceptual distance to the true picture (AlexNet)"),
    "clip_score": Extra("100 x cosine", True, "clip", "similarity of picture and caption"),
    "fid": Extra("", False, "cleanfid", "Frechet distance of Inception's features, by clean-fid"),
    "kid": Extra("", False, "cleanfid", "kernel distance of Inception's features, by clean-fid"),
    "fid_clip": Extra("", False, "clip", "Frechet distance of CLIP's features, by torchmetrics"),
    "kid_clip": Extra("", False, "clip", "kernel distance of CLIP's features, by torchmetrics"),
    "fvd": Extra("", False, "cdfvd", "Frechet distance of I3D's features of whole clips, by cd-fvd", of_clips=True),
}


@dataclass(frozen=True)
class Measured:
    """What an extra found: one value per picture or, with one value only, of the whole set."""

    values: Sequence[float]
    of_set: bool = False
    notes: Sequence[str] = field(default=())

    def to_json(self, name: str, features: Any) -> dict[str, Any]:
        """For the record of a result; a set has no interval."""
        interval: dict[str, Any] = {"value": self.values[0], "low": None, "high": None}
        if not self.of_set:
            interval = bootstrap_mean(self.values).to_json()
        extra = EXTRAS[name]
        record = {**interval, "unit": extra.unit, "higher_is_better": extra.higher_is_better}
        return record if features is None else {**record, "features": features}


@dataclass(frozen=True)
class Ready:
    """An extra with all it needs at hand: ``run(made, samples)``; ``features`` names the weights."""

    run: Callable[[Sequence[ByteArray], Sequence[Sample]], Measured]
    features: dict[str, str] | None = None


def prepare(names: Sequence[str], clip: str = CLIP) -> tuple[dict[str, Ready], dict[str, str]]:
    """Load what metrics need.

    Args:
        names: of :data:`EXTRAS`.
        clip: folder or Hub name of the CLIP model.

    Returns:
        Those that can run, and for each of the others the reason.

    Raises:
        LisaError: an unknown name.
    """
    chosen = [choose("metric", name, EXTRAS) for name in dict.fromkeys(names)]
    ready: dict[str, Ready] = {}
    missing: dict[str, str] = {}
    loaded: dict[str | None, Any] = {}
    for name in chosen:
        kind = EXTRAS[name].needs
        try:
            if name.endswith("_clip"):
                need("torchmetrics.image", "metrics")
            if kind not in loaded:  # an error, too, is kept: nobody waits for a network twice
                loaded[kind] = _attempt(kind, clip)
            if isinstance(loaded[kind], LisaError):
                raise loaded[kind]
            ready[name] = _ready(name, loaded[kind])
        except LisaError as error:
            missing[name] = str(error)
    return ready, missing


def measure(name: str, ready: Ready, made: Sequence[ByteArray], samples: Sequence[Sample]) -> Measured:
    """``ready.run`` on pictures or on clips; metrics of pictures are then of all frames, per clip their mean.

    Raises:
        LisaError: a metric of clips was given pictures; or what the metric itself refuses.
    """
    clips = bool(samples) and is_clip(samples[0])
    if EXTRAS[name].of_clips and not clips:
        raise LisaError(f"{name} is of clips, these are pictures", "Leave it out")
    if EXTRAS[name].of_clips or not clips:
        return ready.run(made, samples)
    frames, true = [frame for clip in made for frame in clip], [frame for each in samples for frame in frames_of(each)]
    if (found := ready.run(frames, true)).of_set:  # frames of one clip are too much alike to count as so many
        return replace(found, notes=_few(name, len(made), "clips"))
    ends = np.cumsum([len(clip) for clip in made])[:-1]
    return replace(found, values=[float(part.mean()) for part in np.split(np.asarray(found.values), ends)])


def measure_sets(name: str, ready: Ready, sets: Sets, samples: Sequence[Sample]) -> Measured:
    """:func:`measure` of several sets (:mod:`lisa.evaluate.sets`): per sample, or of the sets, the mean over these."""
    found = [measure(name, ready, made, samples) for made in sets]
    return replace(found[0], values=np.mean([one.values for one in found], axis=0).tolist())


def _attempt(kind: str | None, clip: str) -> Any:
    try:
        if kind == "clip":
            return ClipReader(locate(clip))
        if kind == "lpips":
            library = need("lpips", "metrics")
            return _fetched(kind, lambda: library.LPIPS(net="alex", verbose=False).eval().to(device()))
        if kind == "cdfvd":
            need("cdfvd.fvd", "metrics")
            return functools.cache(lambda: _fetched("I3D", fvd.load))  # not before there are clips that it can read
        if kind == "cleanfid":
            library = need("cleanfid.fid", "metrics")
            _fetched(kind, lambda: library.build_feature_extractor("clean", device(), use_dataparallel=False))
            return library
    except LisaError as error:
        return error
    return None


def _fetched(what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # whatever a download raises
        raise LisaError(
            f"the weights of {what} are not on this disk, and could not be fetched ({first_line(error)})",
            "Fetch them once where there is a network",
        ) from None


def _ready(name: str, loaded: Any) -> Ready:
    kind = EXTRAS[name].needs
    if kind is None:
        score = getattr(psnr_ssim, name)
        return Ready(lambda made, true: Measured([score(s.image, each) for s, each in zip(true, made, strict=True)]))
    if kind == "clip":
        act = {"clip_score": _clip_score, "fid_clip": _fid_clip, "kid_clip": _kid_clip}[name]
        return Ready(lambda made, samples: act(loaded, made, samples), loaded.weights.to_json())
    if kind == "lpips":
        return Ready(lambda made, samples: _lpips(loaded, made, samples), _package("lpips", "AlexNet"))
    if kind == "cdfvd":
        return Ready(lambda made, samples: _fvd(loaded, made, samples), _package("cd-fvd", "I3D"))
    return Ready(lambda made, samples: _inception(loaded, name, made, samples), _package("clean-fid", "Inception v3"))


def _package(package: str, network: str) -> dict[str, str]:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # put on the path by hand
        version = "of unknown version"
    return {"source": f"{network} of {package}", "revision": version}


def _lpips(network: Any, made: Sequence[ByteArray], samples: Sequence[Sample]) -> Measured:
    import torch

    small = [image.shape[:2] for image in made if min(image.shape[:2]) < _LPIPS_LEAST]
    if small:
        height, width = small[0]
        raise LisaError(
            f"lpips needs pictures of {_LPIPS_LEAST} pixels a side at least; {len(small)} are smaller "
            f"({width}x{height} ...)",
            "Judge larger ones",
        )

    def tensor(image: ByteArray) -> Any:
        return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().to(device()) / 127.5 - 1

    with torch.no_grad():
        pairs = zip(made, samples, strict=True)
        return Measured([float(network(tensor(image), tensor(sample.image))) for image, sample in pairs])


def _clip_score(clip: ClipReader, made: Sequence[ByteArray], samples: Sequence[Sample]) -> Measured:
    """100 times the cosine, not below 0, as torchmetrics has it."""
    silent = [sample.key for sample in samples if not sample.caption.strip()]
    if silent:
        raise LisaError(f"clip_score needs captions; {len(silent)} samples have none ({silent[0]!r} ...)", "Add them")
    pictures, words = (_unit(each) for each in (clip.images(made), clip.captions([s.caption for s in samples])))
    return Measured([float(value) for value in np.clip(100 * (pictures * words).sum(-1), 0, None)])


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _fid_clip(clip: ClipReader, made: Sequence[ByteArray], samples: Sequence[Sample]) -> Measured:
    value = frechet_distance(clip.images([s.image for s in samples]), clip.images(made))
    return Measured([value], of_set=True, notes=_few("fid_clip", len(made)))


def _kid_clip(clip: ClipReader, made: Sequence[ByteArray], samples: Sequence[Sample]) -> Measured:
    return Measured([kernel_distance(clip.images([s.image for s in samples]), clip.images(made))], of_set=True)


def frechet_distance(true: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Frechet distance of the normal distributions fitted to features (N, D) and (M, D), by torchmetrics.

    Raises:
        LisaError: fewer than two of either, or torchmetrics is not installed.
    """
    return _torchmetrics("FrechetInceptionDistance", true, made)


def kernel_distance(true: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, by torchmetrics.

    Over 100 random subsets of 1,000 where there are more; of smaller sets, all at once.

    Raises:
        LisaError: as :func:`frechet_distance`.
    """
    size = min(len(true), len(made), 1000)
    whole = size == len(true) == len(made)
    return _torchmetrics("KernelInceptionDistance", true, made, subset_size=size, subsets=1 if whole else 100)


def _torchmetrics(name: str, true: NDArray[np.float64], made: NDArray[np.float64], **options: Any) -> float:
    kind = getattr(need("torchmetrics.image." + {"F": "fid", "K": "kid"}[name[0]], "metrics"), name)
    import torch

    if min(len(true), len(made)) < 2:
        raise LisaError(f"{name} of {len(true)} and {len(made)} pictures", "Give at least two of each")
    given = torch.nn.Identity()  # in place of its network: these are features already
    given.num_features = true.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features: they are here already
        metric = kind(feature=given, **options).set_dtype(torch.float64)
    metric.update(torch.from_numpy(true), real=True)
    metric.update(torch.from_numpy(made), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the subsets
        value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)


def _fvd(load: Callable[[], Any], made: Sequence[ByteArray], samples: Sequence[Sample]) -> Measured:
    notes = _few("fvd", len(made), "clips")
    return Measured([fvd.frechet_video_distance(load, made, samples)], of_set=True, notes=notes)


def _inception(fid: Any, name: str, made: Sequence[ByteArray], samples: Sequence[Sample]) -> Measured:
    """Both sets are written anew, so that no stale folder is ever measured."""
    with tempfile.TemporaryDirectory() as folder:
        places = []
        for place, images in (("true", [s.image for s in samples]), ("made", made)):
            for i, image in enumerate(images):
                save_png(image, Path(folder) / place / f"{i:06d}.png")
            places.append(str(Path(folder) / place))
        compute = {"fid": fid.compute_fid, "kid": fid.compute_kid}[name]
        options = {"mode": "clean", "num_workers": 0, "device": device(), "verbose": False, "use_dataparallel": False}
        state = np.random.get_state()
        np.random.seed(0)  # of the subsets that kid is the mean over
        try:
            value = float(compute(*places, **options))
        except Exception as error:  # whatever the library raises: the other metrics are worth having
            raise LisaError(f"clean-fid could not measure these pictures ({first_line(error)})") from error
        finally:
            np.random.set_state(state)
    return Measured([value], of_set=True, notes=_few(name, len(made)))


def _few(name: str, count: int, what: str = "pictures") -> tuple[str, ...]:
    if count >= _ENOUGH or name.startswith("kid"):
        return ()
    advice = "" if name == "fvd" else ", and prefer kid"
    return (f"{name} of {count} {what} is biased upwards: compare it at equal numbers only{advice}",)
