"""Videos for tests."""

from __future__ import annotations


def write_video(path, frames, rate=12, codec="mpeg4", turned=0, **options):
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate, stream.gop_size = 4_000_000, 12
        if turned:
            stream.set_display_rotation(turned)
        for each in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        container.mux(stream.encode())
    return path
