"""Several pictures per sample, as ControlNet++'s protocol has them: sets, each with one picture (or clip) of each.

Of a metric of single pictures a sample's figure is the mean over its pictures; what is counted (pixels of classes,
joints, exact edges) is counted over all of them; distances of sets (FID) are of each set, and averaged. So do
ControlNet++'s scripts. Intervals are over samples: pictures of one sample are too much alike to count as so many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from lisa.common.errors import LisaError
from lisa.data.samples import ByteArray, Sample

#: Pictures (or clips) of each set, one per sample.
Sets = Sequence[Sequence[ByteArray]]


class Files(Sequence[ByteArray]):
    """A set that is read off the disk picture by picture: several sets of a large number need not be in memory.

    Args:
        files: one per sample.
        read: a file to uint8 (H, W, 3), or (F, H, W, 3) of a clip.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[Path], ByteArray]) -> None:
        self.files, self.read = files, read

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> ByteArray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ByteArray]: ...
    def __getitem__(self, index: int | slice) -> ByteArray | Sequence[ByteArray]:
        return Files(self.files[index], self.read) if isinstance(index, slice) else self.read(self.files[index])


def check_sets(sets: Sets, samples: Sequence[Sample]) -> None:
    """Refuse sets that are none, or do not have one picture of every sample.

    Raises:
        LisaError: so it is, or two samples have the same key.
    """
    counts = [len(made) for made in sets]
    if not samples or set(counts) != {len(samples)}:
        found = ", ".join(map(str, counts)) if counts else "no"
        raise LisaError(f"{found} pictures for {len(samples)} samples: there must be as many, and at least one")
    if len({sample.key for sample in samples}) < len(samples):
        raise LisaError("two samples have the same key", "Keys must be unique")


def check_drawn_apart(sets: Sets, names: Sequence[str]) -> None:
    """Refuse two sets that hold the very same: their mean would be of fewer than it says. (Single ones may be equal.)

    Args:
        sets: as many each.
        names: of the sets, for the message.

    Raises:
        LisaError: there are two such.
    """
    for later in range(1, len(sets)):
        for earlier in range(later):
            if all(np.array_equal(one, two) for one, two in zip(sets[earlier], sets[later], strict=True)):
                raise LisaError(
                    f"{names[earlier]!r} and {names[later]!r} hold the same pictures",
                    "Generate each with seeds of its own, as lisa generate --per-condition does",
                )


def mean_scores(of_sets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The scores of one sample: for each metric the mean over its pictures."""
    return {name: float(np.mean([scores[name] for scores in of_sets])) for name in of_sets[0]}


def remedy_of(folder: Path, otherwise: str) -> str:
    """What to do about a folder that does not hold what is judged: its groups may, as ``lisa generate`` names them."""
    groups = sorted((len(path.name), path.name) for path in folder.glob("group-*") if path.is_dir())
    if not groups:
        return otherwise
    return f"Judge what lies in it ({groups[0][1]} ... {groups[-1][1]}): name these folders"
