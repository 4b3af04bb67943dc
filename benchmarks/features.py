"""Are the features more disentangled? `lisa analyse` of every seed of a comparison, with intervals over seeds.

    python benchmarks/features.py runs/evidence/tiny-sd3-edges --jobs 2

Reads the run folders ``FOLDER/<arm>/seed-<n>`` that ``benchmarks/evidence.py`` has trained, writes each one's analysis
beside it (one that is there, and no older than its run, is not made again), and one JSON of rows under
``benchmarks/results/``, from which ``docs/make_evidence.py`` makes a table. All arms of a seed are analysed on the same
samples with the same noise, so differences between arms are paired by seed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from evidence import HERE, checked_out, run_all

from lisa.common.files import read_json, write_json
from lisa.common.intervals import t_interval

#: An arm, and the one that it differs from by what is asked about: alignment, the start, alignment on that start.
PAIRS = ("lisa:plain", "recipe:plain", "aligned:recipe")
#: What is told: name -> where it stands in the figures of `lisa analyse`.
FIGURES = {
    "disentanglement": ("disentanglement",),
    "r2_condition": ("r2", "condition"),
    "r2_score": ("r2", "score"),
    "total_noise": ("total", "noise"),
}
#: What decides what is measured: the same in all analyses.
ALIKE = ("model", "condition", "samples", "levels", "seed", "versions")


def analysis_of(run: Path) -> Path:
    """Where the analysis of a run lies."""
    return run / "analysis" / "analysis.json"


def analyse(runs: Sequence[Path], jobs: int) -> None:
    """What is missing or older than its run."""
    wanted = [run for run in runs if not _is_analysed(run)]
    run_all([["analyse", str(run), "--overwrite"] for run in wanted], jobs, "an analysis")


def _is_analysed(run: Path) -> bool:
    done = analysis_of(run)
    return done.is_file() and done.stat().st_mtime >= (run / "summary.json").stat().st_mtime


def check_alike(of: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse analyses of other samples, noise or versions than the first: they cannot be paired."""
    first, *others = [each for analyses in of.values() for each in analyses]
    for other in others:
        for name in ALIKE:
            if other[name] != first[name]:
                sys.exit(
                    f"{other['run']}: {name} is {other[name]!r} in its analysis and {first[name]!r} in that of "
                    f"{first['run']}; delete {analysis_of(Path(other['run'])).parent} to have it made again"
                )


def figures(analysis: Mapping[str, Any], layer: str) -> dict[str, float]:
    """The figures of one run at a layer, means over the noise levels; ``all``: means over the layers, too."""
    rows = {**{row["layer"]: row["run"] for row in analysis["by_layer"]}, "all": analysis["overall"]["run"]}
    found = {}
    for name, keys in FIGURES.items():
        value: Any = rows[layer]
        for key in keys:
            value = value[key]
        found[name] = float(value["value"])
    return found


def row(of: Mapping[str, Sequence[Mapping[str, Any]]], pair: str, layer: str) -> dict[str, Any]:
    """One pair of arms at one layer: both, and their difference, with 95% t-intervals over seeds."""
    arm, _, base = pair.partition(":")
    ours, theirs = ([figures(each, layer) for each in of[name]] for name in (arm, base))
    told = {}
    for name in FIGURES:
        values = [[each[name] for each in side] for side in (ours, theirs)]
        values.append([one - other for one, other in zip(*values, strict=True)])
        kinds = ("arm", "against", "difference")
        told[name] = {kind: t_interval(each).to_json() for kind, each in zip(kinds, values, strict=True)}
    return {"arm": arm, "against": base, "layer": layer, **told}


def main() -> None:
    """Analyse what is missing, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a comparison")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), metavar="ARM:AGAINST")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if not all(re.fullmatch("[^:]+:[^:]+", pair) for pair in options.pairs):
        parser.error(f"--pairs is {options.pairs}: give ARM:AGAINST")

    arms = list(dict.fromkeys(arm for pair in options.pairs for arm in pair.split(":")))
    missing = [arm for arm in arms if not (options.folder / arm / "seed-0" / "summary.json").is_file()]
    if missing:
        parser.error(f"there are no finished runs of {', '.join(missing)} in {options.folder}")
    runs = {arm: [options.folder / arm / f"seed-{seed}" for seed in range(options.seeds)] for arm in arms}
    analyse([run for seed in range(options.seeds) for arm in arms for run in [runs[arm][seed]]], options.jobs)
    of = {arm: [read_json(analysis_of(run)) for run in each] for arm, each in runs.items()}
    check_alike(of)
    some = of[arms[0]][0]
    aligned = next((layer for each in of.values() for layer in each[0]["aligned"]["run"]), None)
    layers = [*([] if aligned is None else [aligned]), "all"]
    result = {
        "what": "what side features encode (lisa analyse); 95% t-intervals over training seeds, differences paired",
        "date": date.today().isoformat(),
        **{name: some[name] for name in ("model", "condition", "samples", "levels", "definitions", "versions")},
        "name": options.folder.name.removeprefix(f"{some['model']}-{some['condition']}").removeprefix("-") or None,
        "seeds": list(range(options.seeds)),
        "command": f"python benchmarks/features.py {options.folder} --pairs {' '.join(options.pairs)} "
        f"--seeds {options.seeds}",
        "commit": checked_out(),
        "rows": [row(of, pair, layer) for pair in options.pairs for layer in layers],
    }
    write_json(options.results / f"{result['date']}-features-{options.folder.name}-cpu.json", result)


if __name__ == "__main__":
    main()
