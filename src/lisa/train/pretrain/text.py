"""The tokenizer and text encoder of a small model: CLIP's classes, with the captions' own words."""

from __future__ import annotations

import json
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
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
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
    )
