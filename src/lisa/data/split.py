"""The held-out split: which samples are never trained on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lisa.common.errors import LisaError
from lisa.data.samples import Source, Subset

#: Stated in records and cards.
RULE = (
    "held out are the samples whose group has the smallest sha256('<seed>:<group>'); the group is the key without "
    "a '__shot<number>', a '__crop<number>' or both at its end, so that shots of one film and crops of one picture are "
    "never on both sides"
)
_PART = re.compile(r"(__shot\d+)?(__crop\d+)?$")


@dataclass(frozen=True)
class Split:
    """Positions in the source: ``held_out`` in the rule's order, ``train`` in the source's order.

    ``unused`` are further samples of the last held-out group: on neither side.
    """

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    unused: tuple[int, ...] = ()

    def apply(self, source: Source) -> tuple[Subset, Subset]:
        """(training samples, held-out samples) of the source."""
        return Subset(source, self.train), Subset(source, self.held_out)


def group_of(key: str) -> str:
    """The picture or film that a key belongs to: crops of one picture share it, and shots of one film."""
    return _PART.sub("", key, count=1)


def held_out_split(keys: Sequence[str], count: int, seed: int = 0) -> Split:
    """Split samples by :data:`RULE`.

    The rule looks at keys, not at positions: adding samples never moves one that was trained on into the held-out
    set unless it was added itself, and reordering changes nothing.

    Args:
        keys: the source's keys, unique.
        count: how many samples to hold out; 0 holds out none.
        seed: of the rule.

    Raises:
        LisaError: keys that are not unique, a negative count, or nothing left to train on.
    """
    if count < 0:
        raise LisaError(f"the held-out count is {count}, it must not be negative")
    if len(set(keys)) != len(keys):
        raise LisaError("the keys of the samples are not unique", "Rename the samples")
    if count == 0:
        return Split(tuple(range(len(keys))), ())
    rank = {group: _rank(seed, group) for group in map(group_of, keys)}
    ordered = sorted(range(len(keys)), key=lambda i: (rank[group_of(keys[i])], _rank(seed, keys[i])))
    held_out = ordered[:count]
    groups = {group_of(keys[i]) for i in held_out}
    train = tuple(i for i in range(len(keys)) if group_of(keys[i]) not in groups)
    if not train or len(held_out) < count:
        raise LisaError(
            f"holding out {count} of {len(keys)} samples ({len(rank)} different pictures) leaves nothing to train on",
            "Hold out fewer, or add pictures",
        )
    unused = tuple(sorted(i for i in ordered[count:] if group_of(keys[i]) in groups))
    return Split(train, tuple(held_out), unused)


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
