"""``lisa export``: a side network in the form that other programs take."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lisa
from lisa.build.card import write_run_card
from lisa.build.chosen import side_of_run, spec_of_side
from lisa.common.errors import LisaError, choose
from lisa.common.files import atomic_dir, read_json
from lisa.common.model_folders import SINGLE_FILES
from lisa.common.runfolder import RunFolder
from lisa.export.card import CARD_FILES
from lisa.export.metadata import model_spec, public_name
from lisa.export.single_file import DTYPES, cast_weights, write_single_file
from lisa.pairs import PairSpec, pair_spec
from lisa.train.config import TrainConfig

#: format -> what it is
FORMATS = {
    "diffusers": "a folder with config.json, safetensors and model card",
    "diffusers-single": "one .safetensors file with diffusers' tensor names",
    "original": "one .safetensors file with the tensor names of the code that the network comes from",
}


@dataclass(frozen=True)
class ExportOptions:
    """What ``lisa export`` was asked for; see its help."""

    source: Path
    out: Path
    format: str = "diffusers-single"
    dtype: str = "fp32"
    overwrite: bool = False


@dataclass(frozen=True)
class _Source:
    """Where the weights are, of which kind of pair, and of which run where that is known."""

    weights: Path
    spec: PairSpec
    run: RunFolder | None = None
    config: TrainConfig | None = None


def export(options: ExportOptions) -> dict[str, Any]:
    """Write a side network in another form. Of a finished run, the model card is also written anew.

    Returns:
        ``out``, ``format``, ``dtype``, ``kind`` (of the network), ``pair``, ``tensors``, ``parameters``, ``bytes`` and,
        of a single file, ``hash`` (of the tensors).

    Raises:
        LisaError: an unknown format or type, one that this kind of network does not have, nothing to export, or
            something in the way of ``out``. Nothing is written then.
    """
    choose("format", options.format, FORMATS)
    choose("dtype", options.dtype, DTYPES)
    source = _find(options.source)
    if options.format == "original" and options.format not in formats_of(source.spec):
        raise LisaError(
            f"a {source.spec.side_kind} ({source.spec.name}) has no format {options.format!r}: there is no other "
            "layout that it could be turned into name by name",
            choices=formats_of(source.spec),
        )
    _check_out(options, source.weights)
    side = source.spec.load_side(str(source.weights))
    weights = cast_weights(side.module.state_dict(), options.dtype)
    result = {
        "out": str(options.out),
        "format": options.format,
        "dtype": options.dtype,
        "kind": source.spec.side_kind,
        "pair": source.spec.name,
        "tensors": len(weights),
        "parameters": sum(value.numel() for value in weights.values()),
    }
    summary = _refresh_card(source)
    if options.format == "diffusers":
        side.module.to(DTYPES[options.dtype])
        with atomic_dir(options.out) as folder:
            side.save(folder)
            _copy_card(source, folder)
        return result | {"bytes": sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())}
    original = options.format == "original"
    if original:
        names = type(side).original_names(side.module)
        weights = {names[name]: value for name, value in weights.items()}
    metadata = model_spec(
        options.out.stem,
        source.spec.name,
        json.loads(side.module.to_json_string()),
        original=original,
        facts=_facts(source, summary),
    )
    digest = write_single_file(options.out, weights, metadata)
    return result | {"bytes": options.out.stat().st_size, "hash": digest}


def formats_of(spec: PairSpec) -> list[str]:
    """The formats that a kind of pair's side network has."""
    original = getattr(type(spec.reference_side()), "original_names", None)
    return [name for name in FORMATS if name != "original" or original is not None]


def _find(path: Path) -> _Source:
    """A run folder (or the side network in it), a side network's folder, or a single file that tells its kind."""
    run = RunFolder(path.parent if path.name == "side_network" else path)
    if run.config.is_file():
        weights, config = side_of_run(run.path)
        return _Source(weights, pair_spec(config.model.pair), run, config)
    spec = spec_of_side(path)
    if spec is None:
        silent = path.is_file() and path.suffix in SINGLE_FILES
        problem = "{!r} does not tell what kind of network it holds" if silent else "there is no side network in {!r}"
        remedy = "Name a run folder, a side network's folder (with config.json), or a file that lisa export wrote"
        raise LisaError(problem.format(str(path)), remedy)
    return _Source(path, spec)


def _check_out(options: ExportOptions, weights: Path) -> None:
    """Refuse what cannot be written, or must not be replaced."""
    out = options.out
    folder = options.format == "diffusers"
    if not folder and out.suffix != ".safetensors":
        raise LisaError(f"--out {str(out)!r} does not end with .safetensors", f"{options.format} is one file")
    if folder and out.suffix in SINGLE_FILES:
        raise LisaError(
            f"--out {str(out)!r} names a file", "diffusers is a folder; for one file: --format diffusers-single"
        )
    if out.resolve() in (weights.resolve(), *weights.resolve().parents) or weights.resolve() in out.resolve().parents:
        raise LisaError(f"--out {str(out)!r} is where the weights come from", "Name another place with --out")
    if not out.exists() or (folder and out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() != folder:
        raise LisaError(
            f"--out {str(out)!r} is a {'folder' if out.is_dir() else 'file'}", "Name another place with --out"
        )
    if not options.overwrite:
        raise LisaError(
            f"{str(out)!r} is there already", "Replace it with --overwrite, or name another place with --out"
        )
    if folder and not (out / "config.json").is_file():
        raise LisaError(f"{str(out)!r} holds no side network, so it is not replaced", "Name another folder with --out")


def _refresh_card(source: _Source) -> dict[str, Any] | None:
    """Write the card of a finished run anew; its summary."""
    if source.run is None or source.config is None or not source.run.summary.is_file():
        return None
    summary: dict[str, Any] = read_json(source.run.summary)
    call_options = summary.get("call_options", source.spec.call.more)
    write_run_card(source.weights, source.run, source.config, summary["steps"], call_options, summary)
    return summary


def _copy_card(source: _Source, folder: Path) -> None:
    for name in CARD_FILES if source.weights.is_dir() else ():
        if (source.weights / name).is_file():
            shutil.copyfile(source.weights / name, folder / name)


def _facts(source: _Source, summary: dict[str, Any] | None) -> dict[str, str]:
    facts = {"version": lisa.__version__}
    if source.config is not None:
        facts |= {
            "base_model": public_name(source.config.model.path),
            "condition": ", ".join(source.config.data.conditions),
        }
    if summary is not None:
        facts |= {"steps": str(summary["steps"])}
    return facts
