"""Tiny text encoders with random weights, and tokenizers that know letters only: made here, nothing is downloaded."""

from __future__ import annotations

import string
from typing import Any

import torch


def bert(width: int = 16) -> tuple[Any, Any]:
    """BERT (HunyuanDiT's first): word pieces of one letter."""
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [*string.ascii_lowercase, *string.digits, *".,'-"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *[f"##{letter}" for letter in letters]]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=77)
    torch.manual_seed(20)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=width,
        max_position_embeddings=77,
    )
    return tokenizer, BertModel(config)


def t5(width: int = 16) -> tuple[Any, Any]:
    """T5's encoder (HunyuanDiT's second)."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [*string.ascii_lowercase, *string.digits, *".,'-"]
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *[(letter, -3.0) for letter in letters]]
    tokenizer = T5Tokenizer(vocab=words, extra_ids=0, model_max_length=256)
    torch.manual_seed(21)
    config = T5Config(
        vocab_size=len(words), d_model=width, d_ff=width, d_kv=width // 2, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config)


def umt5(width: int = 16) -> tuple[Any, Any]:
    """UMT5's encoder (Wan's): as T5, with positions of its own in every layer."""
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer, _ = t5(width)
    torch.manual_seed(25)
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=width, d_ff=width, d_kv=width // 2, num_layers=1, num_heads=2,
        is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    return tokenizer, UMT5EncoderModel(config)


def gemma(width: int = 16) -> tuple[Any, Any]:
    """Gemma 2 (Sana's): pieces of one letter."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "\u2581", "\n"]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters]
    tokenizer = GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=300)
    torch.manual_seed(22)
    return tokenizer, Gemma2Model(Gemma2Config(**_decoder(len(tokenizer), width), query_pre_attn_scalar=width // 2))


def qwen_tokenizer(chat_template: str | None = None) -> Any:
    """Letters only, byte for byte."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=2048,
        chat_template=chat_template,
    )


def qwen3(width: int = 16) -> tuple[Any, Any]:
    """Qwen 3 (Z-Image's), with a chat template like the public one's."""
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = qwen_tokenizer(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    torch.manual_seed(23)
    return tokenizer, Qwen3Model(Qwen3Config(**_decoder(len(tokenizer), width) | {"num_hidden_layers": 2}))


def qwen_vl(width: int = 16) -> tuple[Any, Any]:
    """Qwen 2.5 VL (Qwen-Image's), with the smallest vision tower that can be built; nothing looks through it."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = qwen_tokenizer()
    torch.manual_seed(24)
    text = _decoder(len(tokenizer), width) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    }
    vision = {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return tokenizer, Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def _decoder(words: int, width: int) -> dict[str, Any]:
    """What the configurations of Gemma 2, Qwen 2.5 and Qwen 3 have in common."""
    return {
        "vocab_size": words, "hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": width // 2, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
