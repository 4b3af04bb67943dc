"""What a probe for the caption predicts: which words the caption has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST = 64  # words
LEAST = 0.05  # share of captions that must have a word, and of those that must not

_WORD = re.compile(r"\w+")


def vocabulary(captions: Sequence[str]) -> list[str]:
    """Words that split the captions most evenly: of those in 5% to 95% of them the :data:`MOST` nearest to a half.

    A text embedding would be another target for every family, and ruled by a few directions that all captions share.
    """
    counts = Counter(word for caption in captions for word in _words(caption))
    shares = {word: count / len(captions) for word, count in counts.items()}
    telling = [word for word, share in shares.items() if LEAST <= share <= 1 - LEAST]
    return sorted(telling, key=lambda word: (abs(shares[word] - 0.5), word))[:MOST]


def bag(captions: Sequence[str], words: Sequence[str]) -> NDArray[np.float64]:
    """(captions, words): 1 where the caption has the word, else 0."""
    held = [_words(caption) for caption in captions]
    return np.array([[float(word in own) for word in words] for own in held]).reshape(len(captions), len(words))


def _words(caption: str) -> set[str]:
    return set(_WORD.findall(caption.lower()))
