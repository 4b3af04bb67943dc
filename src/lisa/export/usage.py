"""How a side network is used from Python, in the few lines that cards and reports show."""

from __future__ import annotations

import json

from lisa import zoo
from lisa.common.model_folders import SINGLE_FILES
from lisa.pairs import PipelineCall


def loading_code(
    side_class: str,
    pipeline_class: str,
    folder: str,
    model: str,
    *,
    argument: str = "controlnet",
    package: str = "diffusers",
    joins: str = "",
) -> str:
    """The three lines that load a side network into its pipeline.

    Args:
        side_class: its name.
        pipeline_class: likewise.
        folder: of the side network.
        model: a path, a Hub name, or an embedded model.
        argument: what the pipeline calls its side network.
        package: where both classes are imported from.
        joins: the side network's method that puts it and the main network into one; empty: the pipeline does.
    """
    embedded = model in zoo.names()
    source = f"lisa.zoo.path({_quoted(model)})" if embedded else _quoted(model)
    loader = "from_single_file" if model.endswith(SINGLE_FILES) else "from_pretrained"
    value = f"side.{joins}({source})" if joins else "side"
    return (
        f"{'import lisa' if embedded else ''}\n"
        f"from {package} import {side_class}, {pipeline_class}\n"
        f"side = {side_class}.from_pretrained({_quoted(folder)})\n"
        f"pipe = {pipeline_class}.{loader}({source}, {argument}={value})"
    ).lstrip()


def calling_code(call: PipelineCall, rate: float | None = None) -> str:
    """The lines that make a picture or a clip with that pipeline, called ``pipe``.

    ``rate``: frames per second that it was trained at, for pipelines that are told it.
    """
    more = "".join(f", {name}={value!r}" for name, value in call.more.items())
    if call.clips:
        size = ", ".join(f"{name}=frames[0].{name}" for name in ("height", "width"))
        given = f"{call.image}=frames, num_frames=len(frames), {size}{more}"
        told = "# frames: PIL images, the condition of each frame"
        if call.begins == "frame":
            given += "" if rate is None else f", fps={rate:g}"
            return f"{told}; image: that with which the clip begins\nclip = pipe(image, {given}).frames[0]"
        return f'{told}\nclip = pipe("a prompt", {given}).frames[0]'
    return f'# condition: a PIL image\npicture = pipe("a prompt", {call.image}=condition{more}).images[0]'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # double quotes; what it escapes, Python reads back
