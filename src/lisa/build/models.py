"""``lisa models``: the pairs there are, what can be aligned in them, and how each is verified."""

from __future__ import annotations

from typing import Any

from lisa.pairs import PipelineCall, pair_names, pair_spec
from lisa.pairs.unsupported import UNSUPPORTED


def describe_pair(name: str) -> dict[str, Any]:
    """Facts of one kind of pair; layers with their shapes in the side network of ``example``.

    Raises:
        LisaError: there is no such pair.
    """
    spec = pair_spec(name)
    layers = spec.reference_side().layers()
    return {
        "name": spec.name,
        "main": spec.main_kind,
        "side": spec.side_kind,
        "pipeline": spec.pipeline_name,
        "makes": _made(spec.call),
        "prediction": list(spec.predictions),
        "default_layer": spec.default_layer,
        "layers": [{"name": each.name, "channels": each.channels, "stride": each.stride} for each in layers],
        "example": spec.example,
        "shared": spec.shared,
        "verified_by": list(spec.verified_by),
    }


def _made(call: PipelineCall) -> str:
    if not call.clips:
        return "pictures"
    return "clips that go on from a picture" if call.begins == "frame" else "clips"


def describe_pairs() -> list[dict[str, Any]]:
    """All kinds of pairs, in the order of their registration."""
    return [describe_pair(name) for name in pair_names()]


def unsupported() -> dict[str, str]:
    """Side networks of diffusers that are not supported, and why."""
    return dict(UNSUPPORTED)
