"""The tokenizer and text encoder of a small model: CLIP's classes, with the captions' own words."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lisa.train.pretrain.config import TextSettings

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(captions: Iterable[str], settings: TextSettings) -> Any:
    """A ``CLIPTokenizer`` trained on ``captions``: frequent words are one token, any other text is still encodable."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # CLIP's base alphabet: every byte, inside a word and at its end.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary - len(letters) - 2,
        min_frequency=2,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    with TemporaryDirectory() as folder:
        bpe.model.save(folder)
        learnt = json.loads((Path(folder) / "vocab.json").read_text(encoding="utf-8"))
        merges = [tuple(line.split()) for line in (Path(folder) / "merges.txt").read_text("utf-8").splitlines()[1:]]
    words = [*letters, *[f"{letter}</w>" for letter in letters]]
    words += [word for word, _ in sorted(learnt.items(), key=lambda item: item[1]) if word not in set(words)]
    vocabulary = {word: number for number, word in enumerate([*words, _BOS, _EOS])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=settings.length)


def make_text_encoder(tokenizer: Any, settings: TextSettings) -> Any:
    """A randomly initialised ``CLIPTextModel`` for ``tokenizer``."""
    from transformers import CLIPTextModel

    return CLIPTextModel(_clip_config(tokenizer, settings))


def make_clip_with_projection(tokenizer: Any, settings: TextSettings) -> Any:
    """A randomly initialised ``CLIPTextModelWithProjection`` of half the width: SD3 joins two of them."""
    from transformers import CLIPTextModelWithProjection

    half = settings.model_copy(update={"hidden": settings.hidden // 2, "heads": max(1, settings.heads // 2)})
    return CLIPTextModelWithProjection(_clip_config(tokenizer, half))


def make_t5_tokenizer(captions: Iterable[str], settings: TextSettings) -> Any:
    """A ``T5Tokenizer`` whose pieces are the captions' frequent words, and letters for any other word in ASCII.

    Scores are log frequencies; a letter's is so low that a word known whole is never spelt.
    """
    from transformers import T5Tokenizer

    counts = Counter(word for caption in captions for word in caption.split())
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -50.0) for letter in ["\u2581", *map(chr, range(33, 127))]]
    words = counts.most_common(settings.vocabulary - len(special) - len(letters))
    total = sum(counts.values())
    pieces = [*special, *letters, *[(f"\u2581{word}", math.log(count / total)) for word, count in words]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=settings.length)


def make_t5(tokenizer: Any, settings: TextSettings) -> Any:
    """A randomly initialised ``T5EncoderModel`` for ``tokenizer``."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=settings.hidden,
            d_kv=settings.hidden // settings.heads,
            d_ff=2 * settings.hidden,
            num_layers=settings.layers,
            num_heads=settings.heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _clip_config(tokenizer: Any, settings: TextSettings) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        projection_dim=settings.hidden,
        intermediate_size=4 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
