"""In what a result by a published protocol is not as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lisa.data.samples import Sample
from lisa.evaluate.published import Published

_SIZE = (512, 512)
_SAMPLING = {"steps": 20, "guidance": 7.5}
_SETS = 4
_SCHEDULER, _NEGATIVE = "UniPCMultistepScheduler", "worst quality, low quality"


def deviations(
    protocol: Published,
    samples: Sequence[Sample],
    settings: Mapping[str, Any] | None,
    extractors: Sequence[Any],
    sets: int = 1,
) -> list[str]:
    """One line for each of them.

    Args:
        protocol: that judged.
        samples: at the size that was judged.
        settings: how the pictures were made, as ``lisa generate`` writes it; None: not known.
        extractors: see :func:`lisa.evaluate.published.readers_record`.
        sets: pictures per condition.
    """
    found = list(protocol.differs)
    used = [each["source"] for each in extractors]
    found += [
        f"{name} {mine} (instead of {theirs})"
        for name, mine, theirs in zip(("extractor", "detector"), used, protocol.weights, strict=False)
        if mine != theirs
    ]
    if not protocol.name.startswith("controlnet++"):
        return found
    sizes = {sample.image.shape[:2] for sample in samples} - {_SIZE}
    found += [f"pictures of {width}x{height} pixels (published: 512x512)" for height, width in sorted(sizes)]
    if settings is None:
        found.append(
            "how the pictures were sampled is not known: there is no settings.json beside them "
            f"(published: 20 steps of UniPC, guidance 7.5, the negative prompt {_NEGATIVE!r})"
        )
    else:
        found += [
            f"{name} {settings.get(name)} (published: {value})"
            for name, value in _SAMPLING.items()
            if settings.get(name) != value
        ]
        scheduler, negative = settings.get("scheduler"), settings.get("negative_prompt")
        if scheduler != _SCHEDULER:
            found.append(f"sampled with {scheduler or 'a scheduler that is not told'} (published: {_SCHEDULER})")
        if negative != _NEGATIVE:
            mine = "no negative prompt" if negative is None else f"the negative prompt {negative!r}"
            found.append(f"{mine} (published: {_NEGATIVE!r})")
    if sets != _SETS:
        found.append(f"{'one picture' if sets == 1 else f'{sets} pictures'} per condition (published: {_SETS})")
    return found
