"""``lisa generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder: its model, side network and held-out data.")
    ] = None,
    side: Annotated[
        list[str] | None,
        typer.Option(
            "--side",
            help="Run folder, side network (folder, .safetensors file or Hub name), instead of --run's; A=0.8: with "
            "that weight. Repeat it to use several together.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Main network, instead of --run's.")] = None,
    pair: Annotated[
        str | None, typer.Option("--pair", help="Kind of main and side network (lisa models), where no run tells it.")
    ] = None,
    condition: Annotated[
        list[Path] | None,
        typer.Option(
            "--condition",
            help="Condition image, or a folder of them, instead of held-out data; once per side network, in order. Of "
            "clips a folder of frames or a video, or a folder of these.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Picture that clips go on from (or a folder of them), with --condition."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Frames per second that Stable Video Diffusion is told.")
    ] = None,
    motion: Annotated[
        float | None, typer.Option("--motion", help="Motion bucket id that it is told: 127 is much as usual, 1 little.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Prompt for every condition image.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="JSON file: name of the condition image -> prompt.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("generated"),
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Only the first so many conditions or samples.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Classifier-free guidance; 1: none.")] = 3.0,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", help="What guidance leads away from; else from no text.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option("--solver", help="dpm++, unipc, or own (the model's); else dpm++ where it can be.")
    ] = None,
    scale: Annotated[
        float, typer.Option("--scale", min=0, help="Multiplies the weights of the side networks; 0: none.")
    ] = 1.0,
    per_condition: Annotated[
        int,
        typer.Option(
            "--per-condition", min=1, help="Pictures of every condition, in folders group-1, group-2 ... of --out."
        ),
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first picture; each gets its own.")] = 0,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Pictures sampled together; clips are made one by one.")
    ] = 8,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16; else what the run was trained in, or float32."),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", help="Main network in int8 or nf4, or none; else as the run's, where it can be."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make pictures again that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Generate pictures or clips under conditions; what exists is not made again."""
    from lisa.cli.common import print_json, quiet_libraries, say

    quiet_libraries()
    from lisa.build.generation import GenerateOptions
    from lisa.build.generation import generate as make

    options = GenerateOptions(
        run=run,
        side=side,
        model=model,
        pair=pair,
        condition=condition,
        image=image,
        rate=rate,
        motion=motion,
        prompt=prompt,
        prompts=prompts,
        out=out,
        count=count,
        steps=steps,
        guidance=guidance,
        negative_prompt=negative_prompt,
        solver=solver,
        scale=scale,
        per_condition=per_condition,
        seed=seed,
        batch=batch,
        dtype=dtype,
        quantize=quantize,
        overwrite=overwrite,
    )
    result = make(options, progress=say)
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{result['made']} made, {result['kept']} kept, in {out}")
