"""T2I-Adapters beside Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from functools import partial

from conformance import tiny_sd, tiny_sdxl
from conformance.row import Row

ROWS = [
    Row("sd-t2i-adapter", "epsilon", partial(tiny_sd.make_folder, prediction="epsilon", v2=False)),
    Row("sd-t2i-adapter", "v_prediction", partial(tiny_sd.make_folder, prediction="v_prediction", v2=True)),
    Row("sdxl-t2i-adapter", "epsilon", partial(tiny_sdxl.make_folder, prediction="epsilon")),
    Row("sdxl-t2i-adapter", "v_prediction", partial(tiny_sdxl.make_folder, prediction="v_prediction")),
]
