"""The table: every pair, with every kind of prediction its main network may have."""

from __future__ import annotations

from conformance import (
    tiny_animatediff,
    tiny_flux,
    tiny_hunyuan,
    tiny_qwen,
    tiny_sana,
    tiny_sd,
    tiny_sd3,
    tiny_sdxl,
    tiny_svd,
    tiny_t2i,
    tiny_wan,
    tiny_zimage,
)
from conformance.row import Row

#: of pictures
ROWS: list[Row] = [
    *tiny_sd.ROWS,
    *tiny_sdxl.ROWS,
    *tiny_t2i.ROWS,
    *tiny_hunyuan.ROWS,
    *tiny_sd3.ROWS,
    *tiny_flux.ROWS,
    *tiny_sana.ROWS,
    *tiny_qwen.ROWS,
    *tiny_zimage.ROWS,
]

#: of clips
VIDEO_ROWS: list[Row] = [*tiny_wan.ROWS, *tiny_animatediff.ROWS, *tiny_svd.ROWS]
