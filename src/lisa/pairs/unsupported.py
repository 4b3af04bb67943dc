"""Side networks of diffusers that are not supported, and why."""

from __future__ import annotations

#: class of the side network -> reason
UNSUPPORTED = {
    "UNetControlNetXSModel": "diffusers has deprecated its pipelines (pipelines/deprecated) and will drop them",
    "CosmosControlNetModel": "its pipeline will not run without NVIDIA's guardrail models, so that nothing trained for "
    "it could be checked here",
    "SparseControlNetModel": "replaces x_t by zeros and reads a few key frames, whose mask no source of data gives",
}
