"""The model card beside a side network's weights: README.md, its curves and its samples."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa.common.files import atomic_write, write_text
from lisa.export.curves import draw_curves
from lisa.export.metadata import on_hub, public_name
from lisa.export.usage import calling_code, loading_code
from lisa.pairs import PipelineCall

CURVES, SAMPLES, MOVING = "curves.png", "samples.png", "samples.webp"
#: The files of a card.
CARD_FILES = ("README.md", CURVES, SAMPLES, MOVING)

_PAPER = "[arXiv:2606.27192](https://arxiv.org/abs/2606.27192)"
_WIDTH = 96


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        title: of the model.
        side_kind: class of the side network.
        pipeline: class of the pipeline that takes it.
        package: where both are imported from.
        call: how that is called.
        model: the main network, as the run named it; what of it is a path here is not told.
        data: the data set, as the run named it.
        conditions: what they are; several where they are stacked.
        size: (height, width) of the pictures it was trained on.
        rate: frames per second of the clips, where all have one.
        steps: of the training.
        aligned: whether it was trained with alignment.
        ema: decay of the exponential average the weights are, or None for the raw weights.
        settings: more rows for the table of the training.
        summary: of the finished run; None before.
        readings: its ``held_out`` events.
        fidelity_readings: its ``fidelity`` events.
        samples: picture of held-out samples; of clips their contact sheet.
        moving: of clips, their animation.
    """

    title: str
    side_kind: str
    pipeline: str
    call: PipelineCall
    model: str
    data: str
    conditions: tuple[str, ...]
    size: tuple[int, int]
    steps: int
    aligned: bool
    ema: float | None
    settings: Mapping[str, Any]
    package: str = "diffusers"
    summary: Mapping[str, Any] | None = None
    readings: Sequence[Mapping[str, Any]] = ()
    fidelity_readings: Sequence[Mapping[str, Any]] = ()
    samples: Path | None = None
    moving: Path | None = None
    rate: float | None = None


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write ``README.md`` and, of a finished run, the pictures it shows, into ``folder``."""
    sections = [_front_matter(facts), _introduction(facts)]
    shown = {name: file for name, file in ((MOVING, facts.moving), (SAMPLES, facts.samples)) if file is not None}
    for name, file in shown.items():
        with atomic_write(folder / name) as temporary:
            shutil.copyfile(file, temporary)
    if shown:
        sections += [*[f"![Held-out samples]({name})" for name in shown], _captions()]
    if facts.summary is not None:
        sections += ["## Figures", _figures(facts.summary)]
        if facts.readings:
            draw_curves(
                folder / CURVES,
                facts.readings,
                onset=facts.summary["onset"],
                fidelities=facts.summary["fidelities"],
                fidelity_readings=facts.fidelity_readings,
                steps=facts.steps,
            )
            sections += [f"![Held-out readings over the training steps, with 95% intervals]({CURVES})"]
            sections += [_explained(facts.fidelity_readings)]
    code = loading_code(
        facts.side_kind,
        facts.pipeline,
        "path/to/side_network",
        _shared_path(facts.model),
        argument=facts.call.network,
        package=facts.package,
        joins=facts.call.joins,
    )
    sections += ["## How to load it", f"```python\n{code}\n{calling_code(facts.call, facts.rate)}\n```"]
    sections += ["## Training", _table(("setting", "value"), _training(facts))]
    sections += ["## Limitations", "\n".join(_limitations(facts))]
    sections += [
        "## Paper",
        _wrapped(f'"LISA: Likelihood Score Alignment for Visual-condition Controllable Generation", {_PAPER}.'),
    ]
    write_text(folder / "README.md", "\n\n".join(sections) + "\n")


def _task(call: PipelineCall) -> str:
    """As the Hub calls it."""
    if call.clips:
        return "image-to-video" if call.begins == "frame" else "text-to-video"
    return "text-to-image"


def _front_matter(facts: CardFacts) -> str:
    """What the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    from huggingface_hub import ModelCardData

    base = facts.model if on_hub(facts.model) else None
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=_task(facts.call),
        base_model=base,
        base_model_relation=None if base is None else "adapter",
        datasets=facts.data if on_hub(facts.data) else None,
        tags=[
            "t2i-adapter" if facts.call.network == "adapter" else "controlnet",
            *("diffusers", "diffusers-training", "lisa", *facts.conditions),
        ],
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(facts: CardFacts) -> str:
    weights = "the raw weights of the last step"
    if facts.ema is not None:
        weights = f"an exponential average (decay {facts.ema}) over steps"
    base = public_name(facts.model)
    how = f"with Likelihood Score Alignment ({_PAPER})" if facts.aligned else "without alignment"
    what = f"A `{facts.side_kind}` that makes {base} follow {_named(facts.conditions)}, trained {how}."
    plain = "a plain diffusers model"
    if facts.package != "diffusers":
        plain = f"a plain diffusers `ModelMixin`, whose class is in `{facts.package}` (`pip install lisa-diffusion`)"
    which = f"These are {weights}. The alignment decoder is not part of them: at inference this is {plain}."
    return f"# {facts.title}\n\n{_wrapped(what)}\n\n{_wrapped(which)}"


def _captions() -> str:
    return _wrapped(
        "*Samples that were held out of the training: the condition, what the main network makes without and with this "
        "side network from the same noise, and the picture that the condition was made of.*"
    )


def _explained(fidelity_readings: Sequence[Mapping[str, Any]]) -> str:
    read = ""
    if fidelity_readings:
        read = (
            f" Fidelity: the line is read on {fidelity_readings[0]['samples']} fixed samples while training, the point "
            "at its end and the dashed level without control are those of the table."
        )
    return _wrapped(
        "*Held-out readings over the steps, with 95% intervals. Control gain: the share of the main network's error "
        "that the side network takes away. Condition gap: the control gain less what it is with conditions exchanged "
        "between samples, which is what is owed to the condition itself. Decoder R2: how much of the likelihood score "
        f"can be read off the side network's features.{read}*"
    )


def _figures(summary: Mapping[str, Any]) -> str:
    rows: dict[str, str] = {
        "control gain": _interval(summary["control_gain"]),
        "condition gap": _interval(summary["condition_gap"]),
    }
    fidelities: Mapping[str, Any] = summary["fidelities"]
    for fidelity in fidelities.values():
        unit = f" {fidelity['unit']}" if fidelity["unit"] else ""
        what = f"{fidelity['metric']}{unit}"
        rows |= {
            f"fidelity without it ({what})": _interval(fidelity["without"]),
            f"fidelity with it ({what})": _interval(fidelity["with"]),
            f"gain in fidelity ({what})": _interval(fidelity["gain"]),
        }
    onset = summary["onset"]
    rows["onset of control"] = "not reached" if onset is None else f"step {onset}"
    table = _table(("held-out samples", "value [95% interval]"), rows)
    notes = [
        f"Fidelity to {name}: protocol `{fidelity['protocol']}`, {fidelity['samples']} held-out samples."
        for name, fidelity in fidelities.items()
    ]
    note = " ".join(notes) or "No protocol judges the fidelity to this condition."
    return f"{table}\n\n{_wrapped(note)}"


def _named(conditions: Sequence[str]) -> str:
    names = " and ".join(f"'{name}'" for name in conditions)
    return f"the condition {names}" if len(conditions) == 1 else f"the stacked conditions {names}"


def _training(facts: CardFacts) -> dict[str, Any]:
    height, width = facts.size
    rows: dict[str, Any] = {
        "main network": public_name(facts.model),
        "condition": ", ".join(facts.conditions),
        "data": public_name(facts.data),
        "size (width x height)": f"{width}x{height}",
        "steps": facts.steps,
        **facts.settings,
    }
    if facts.summary is not None:
        rows |= {"seconds": facts.summary["seconds"], "seed": facts.summary["seed"]}
        rows["made with"] = ", ".join(f"{name} {version}" for name, version in facts.summary["versions"].items())
    return rows


def _limitations(facts: CardFacts) -> list[str]:
    height, width = facts.size
    base = public_name(facts.model)
    return [
        _wrapped(f"- Made for {base} and models tuned from it; it does not fit other architectures.", hang=2),
        _wrapped(
            f"- Trained at {width}x{height} pixels on {_named(facts.conditions)}; conditions made in "
            "another way may be followed less.",
            hang=2,
        ),
        _wrapped("- The figures are of held-out samples of the training's own data set, not of other data.", hang=2),
        _wrapped(
            f"- What {base} cannot draw, or draws with a bias, this does not mend. Its licence goes on to hold.", hang=2
        ),
    ]


def _shared_path(model: str) -> str:
    """Names stay; a path of this machine becomes a place to fill in."""
    name = public_name(model)
    return name if name == model else f"path/to/{name}"


def _interval(interval: Mapping[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    return "\n".join(
        [f"| {head[0]} | {head[1]} |", "|---|---|", *[f"| {name} | {value} |" for name, value in rows.items()]]
    )


def _wrapped(text: str, hang: int = 0) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False)
