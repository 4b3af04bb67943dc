"""The model card beside a side network's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lisa.common.files import write_text
from lisa.common.model_folders import SINGLE_FILES


def write_card(folder: Path, facts: Mapping[str, Any], *, loader: str, ema: float | None) -> None:
    """Write ``README.md`` with what the weights are, how they were trained and how to load them.

    Args:
        folder: of the side network.
        facts: rows of the table.
        loader: Python code that loads the network.
        ema: decay of the exponential average these weights are, or None for the raw weights.
    """
    weights = "the raw weights of the last step" if ema is None else f"an exponential average (decay {ema}) over steps"
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    text = f"""---
library_name: diffusers
tags: [controlnet, diffusers, lisa]
---

# Side network trained with LISA

These are {weights}. The alignment decoder is not part of them: at inference this is a plain diffusers model.

| | |
|---|---|
{rows}

```python
{loader}
```
"""
    write_text(folder / "README.md", text)


def loading_code(side_class: str, pipeline_class: str, folder: str, model: str, *, argument: str = "controlnet") -> str:
    """The three lines that load a side network into its pipeline.

    Args:
        side_class: of diffusers.
        pipeline_class: of diffusers.
        folder: of the side network.
        model: a path, a Hub name, or ``tiny-sd``.
        argument: what the pipeline calls its side network.
    """
    embedded = model == "tiny-sd"
    source = f"lisa.zoo.path({_quoted(model)})" if embedded else _quoted(model)
    loader = "from_single_file" if model.endswith(SINGLE_FILES) else "from_pretrained"
    return (
        f"{'import lisa' if embedded else ''}\n"
        f"from diffusers import {side_class}, {pipeline_class}\n"
        f"side = {side_class}.from_pretrained({_quoted(folder)})\n"
        f"pipe = {pipeline_class}.{loader}({source}, {argument}=side)"
    ).lstrip()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # double quotes; what it escapes, Python reads back
