"""Does it learn sooner? One comparison of docs/evidence.md: a model and a condition, all arms, several seeds.

    python benchmarks/evidence.py tiny-sd skeleton --jobs 2
    python benchmarks/evidence.py tiny-sd edges --name low-rate --set train.learning_rate=3e-4 train.steps=800

Trains with ``lisa compare`` in RUNS/MODEL-CONDITION, by the settings of ``benchmarks/evidence/MODEL.yaml``, and writes
one JSON of rows under ``benchmarks/results/``, from which ``docs/make_evidence.py`` makes the page; of one seed under
the name of ``leads``, which the page leaves out. Started again, it goes on where it was. ``--jobs``: seeds trained at
the same time, each in a share of the cores; arms of one seed follow each other, so that times per step are comparable
between them. ``commits.json`` there: the code that was checked out when it was started; leave it so until it ends.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from threading import Event
from typing import Any

from lisa.common.files import read_json, write_json
from lisa.compare.aligned import read_comparison
from lisa.compare.results import summarise
from lisa.compare.runs import read_run

HERE = Path(__file__).parent
BF16 = "train.mixed_precision=bf16"
#: Condition -> steps, and steps between held-out readings: sparse strokes are learnt late.
CONDITIONS = {"edges": (400, 25), "segmentation": (400, 25), "skeleton": (1500, 50), "lowres": (400, 25)}
#: The same where a model differs: readings of clips cost as many pictures as they have frames.
OTHERWISE = {("tiny-svd", "edges"): (400, 50)}
#: Settings where they are not the file's: bfloat16, in which a plain step takes 0.67 (tiny-sd) and 0.79 (tiny-sd3) of
#: the time with one thread (benchmarks/step_time.py, 2026-11-30); the better of two rates for plain (docs/evidence.md).
#: The skeletons of tiny-sd were trained before, in float32.
SETTINGS = {
    **{(model, name): [BF16] for model in ("tiny-sd", "tiny-sd3") for name in ("edges", "segmentation", "lowres")},
    ("tiny-sd3", "skeleton"): [BF16, "train.learning_rate=0.0007"],
}
#: The preset of the trainer, which does not align. (Until 2026-12-01 it did: in recorded
#: comparisons of several seeds the arms have been renamed to what they are here, in leads of one seed not.)
RECIPE = "recipe"
#: ``lisa`` is the reference, ``aligned`` the same on top of the preset; ``shuffled`` and ``aligned-shuffled`` are these
#: with another sample's residual: what they gain is owed to an extra head.
ARMS = (
    "plain",
    "lisa",
    f"{RECIPE}:preset=sooner",
    "aligned:preset=sooner;align.enabled=true",
    "shuffled",
    "aligned-shuffled:preset=sooner;align.enabled=true;align.target=shuffled",
)


def settings_of(model: str, condition: str, changed: Sequence[str] = ()) -> dict[str, str]:
    """What is not as the file of the model has it: key -> value, ``changed`` last."""
    steps, every = OTHERWISE.get((model, condition), CONDITIONS[condition])
    ours = [f"data.condition={condition}", f"train.steps={steps}", f"log.held_out_every={every}"]
    return dict(part.split("=", 1) for part in (*ours, *SETTINGS.get((model, condition), []), *changed))


def arguments(model: str, settings: dict[str, str], arms: list[str], seeds: str, out: Path) -> list[str]:
    """What follows ``lisa``; the same for every job and every time."""
    named = [part for arm in arms for part in ("--arms", arm)]
    file = Path(os.path.relpath(HERE / "evidence" / f"{model}.yaml"))
    told = [f"{key}={value}" for key, value in settings.items()]
    return ["compare", str(file), *told, *named, "--seeds", seeds, "--out", str(out)]


def train(command: list[str], arms: list[str], seeds: list[int], jobs: int) -> None:
    """All runs, a seed at a time per job; begins no more where one fails."""
    names = [arm.partition(":")[0] for arm in arms]
    only = [",".join(f"{name}:{seed}" for name in names) for seed in seeds]
    run_all([[*command, "--only", each] for each in only], jobs, "a training")


def run_all(commands: list[list[str]], jobs: int, what: str) -> None:
    """``lisa`` with each of these, so many at a time, each in a share of the cores; begins no more where one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    failed = Event()

    def run(command: list[str]) -> None:
        if not failed.is_set() and subprocess.run([sys.executable, "-m", "lisa", *command], env=environment).returncode:
            failed.set()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, commands))
    if failed.is_set():
        sys.exit(f"{what} failed or was stopped; the same command goes on from there")


def checked_out() -> str:
    """The commit of this code; with ``-dirty`` where the library has been changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=HERE.parent).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "src") else "")


def commits(out: Path, commit: str | None = None) -> list[str]:
    """Those that have trained in ``out``, in order; from now on with ``commit``, if one is given."""
    file = out / "commits.json"
    found = read_json(file) if file.is_file() else []
    if commit is not None and commit not in found:
        write_json(file, found := [*found, commit])
    return found


def complete(out: Path, arms: list[str], seeds: list[int], steps: int) -> bool:
    """Whether nothing is left to train: every run has its steps, or diverged."""
    names = [arm.partition(":")[0] for arm in arms]
    places = {(arm, seed): out / arm / f"seed-{seed}" for arm in names for seed in seeds}
    if not all((place / "config.yaml").is_file() for place in places.values()):
        return False
    return all(read_run(place, arm, seed).done(steps) for (arm, seed), place in places.items())


def over_recipe(out: Path, arms: list[str], seeds: list[int]) -> dict[str, Any]:
    """Arm -> what alignment adds to ``recipe``: speed-ups (to shares of its plateau), differences at the end.

    Paired by seed, as against the baseline; empty without that arm.
    """
    if RECIPE not in arms:
        return {}
    rows = summarise(read_comparison([out], baseline=RECIPE, arms=arms, seeds=seeds))["arms"]
    return {row["arm"]: {**(row["speedups"] or {}), **_ends(row)} for row in rows if row["arm"] != RECIPE}


def _ends(row: dict[str, Any]) -> dict[str, Any]:
    """Differences at the end: control gain and fidelities."""
    return {name: row["against_baseline"][name] for name in ("final_gain", "fidelities")}


def record(
    summary: dict[str, Any], attributed: dict[str, Any], command: list[str], jobs: int, commit: str
) -> dict[str, Any]:
    """The comparison as one file of rows."""
    about = {"commit": commit, "steps": summary["steps"], "command": shlex.join(["lisa", *command])}
    rows = [
        {**about, **{k: v for k, v in row.items() if k != "per_seed"}, "over_recipe": attributed.get(row["arm"])}
        for row in summary["arms"]
    ]
    return {
        "what": "speed-up and final quality of arms trained with the same seeds; 95% t-intervals over seeds",
        "date": date.today().isoformat(),
        **{name: summary[name] for name in ("model", "condition", "baseline", "plateau", "notes", "settings")},
        "rows": rows,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "jobs": jobs},
        "versions": summary["versions"],
    }


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse settings that are none, and a name that files cannot have."""
    given = dict(part.partition("=")[::2] for part in options.set)
    if given and not options.name:
        parser.error("--set makes another comparison: give it a --name")
    if options.name is not None and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", options.name):
        parser.error(f"--name is {options.name!r}: give it small letters and digits, with '-' between words")
    if not all(given.values()) or "data.condition" in given or not given.get("train.steps", "1").isdecimal():
        parser.error(f"--set is {options.set}: give KEY=VALUE, train.steps as a number; the condition stands before")


def main() -> None:
    """Train what is missing, write the report and the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[path.stem for path in sorted((HERE / "evidence").glob("*.yaml"))])
    parser.add_argument("condition", choices=CONDITIONS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings that differ; needs --name")
    parser.add_argument("--name", help="of the comparison with these settings or arms, where it is not the usual one")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--commit", help="that trains or has trained, where it is not the one checked out")
    options = parser.parse_args()

    check(parser, options)
    what = "-".join(part for part in (options.model, options.condition, options.name) if part)
    out = options.runs / what
    settings = settings_of(options.model, options.condition, options.set)
    command = arguments(options.model, settings, options.arms, str(options.seeds), out)
    seeds = list(range(options.seeds))
    trains = not complete(out, options.arms, seeds, int(settings["train.steps"]))
    trained_by = commits(out, options.commit or (checked_out() if trains else None))
    if trains:
        train(command, options.arms, seeds, options.jobs)
    names = [arm.partition(":")[0] for arm in options.arms]
    chosen = ["--arms", ",".join(names), "--seeds", str(options.seeds)]
    subprocess.run([sys.executable, "-m", "lisa", "compare", "--report", *chosen, "--out", str(out)], check=True)
    commit = ", ".join(trained_by) or parser.error(f"which commit has trained {out}? Give it with --commit")
    rows = record(read_json(out / "summary.json"), over_recipe(out, names, seeds), command, options.jobs, commit)
    rows["name"] = options.name
    kind = "evidence" if options.seeds > 1 else "leads"
    write_json(options.results / f"{rows['date']}-{kind}-{what}-cpu.json", rows)


if __name__ == "__main__":
    main()
