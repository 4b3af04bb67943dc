"""Writes the tables of docs/evidence.md and README.md from the results of two benchmarks.

With `--check` it only says, by the exit status, whether they are up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import marked_page

from lisa.compare import wording

ROOT = Path(__file__).parent.parent
TARGET, README = ROOT / "docs" / "evidence.md", ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- tables: docs/make_evidence.py -->\n", "<!-- end of tables -->"
SHORT, SHORT_END = "<!-- in short: docs/make_evidence.py -->\n", "<!-- end of in short -->"
ORDER = ("edges", "segmentation", "skeleton", "lowres")
#: Names of the comparisons that stand beside the usual ones: more steps, and these at half the learning rate or less,
#: which is plain training's best over so many.
SHOWN = (None, "long", "long-lower")
METRICS = {"edge_f1": "F1", "miou": "mIoU", "stroke_pck": "PCK", "psnr": "PSNR, dB:"}
#: The arm of the trainer's preset.
RECIPE = "recipe"


def results(kind: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The newest result of every model, condition and name, in the order of the page."""
    newest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for file in sorted(folder.glob(f"????-??-??-{kind}-*.json")):  # a name begins with its date
        found = {"file": file.name, **json.loads(file.read_text(encoding="utf-8"))}
        newest[found["model"], found["condition"], found.get("name") or ""] = found
    order = sorted(newest, key=lambda key: (key[0], ORDER.index(key[1]), key[2]))
    return [newest[key] for key in order]


def cell(parts: Sequence[str]) -> str:
    """A figure and what stands beneath it, in one cell."""
    return "<br>".join(part for part in parts if part)


def row(of: dict[str, Any], base: str) -> str:
    """One arm."""
    speeds = [wording.speed_of(of, axis, "0.95", base) for axis in ("steps", "seconds")]
    speeds.append(wording.speed_of(of, "steps", "0.5", base))
    over = of.get("over_recipe") or {}
    speeds += [wording.speed(over.get(axis, {}).get("0.95"), RECIPE) for axis in ("steps", "seconds")]
    speeds.append(wording.interval(over.get("final_gain"), 4, signed=True))
    against = of["against_baseline"]["fidelities"].get(of["condition"])
    ends = [
        wording.onset(of["onset"]),
        wording.interval(of["final_gain"]),
        wording.interval(of.get("decoder_r2")),
        wording.interval(of["fidelity"]),
        wording.interval(against, signed=True) if of["arm"] != base else wording.NOTHING,
    ]
    costs = f"{wording.interval(of['seconds_per_step'], 2)[0]}<br>{wording.interval(of['peak_memory_mb'], 0)[0]} MiB"
    settings = wording.settings(of["settings"]) or "as the file has it"
    return f"| {of['arm']} | {' | '.join(cell(each) for each in (*speeds, *ends))} | {costs} | {settings} |"


def of_the_preset() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The comparisons that are shown, each with the row of its arm ``recipe``."""
    found = [(of, row) for of in results("evidence") for row in of["rows"] if row["arm"] == RECIPE]
    return [(of, row) for of, row in found if of.get("name") in SHOWN]


def sooner(of: dict[str, Any], row: dict[str, Any], axis: str, share: str) -> tuple[str, str]:
    """A speed-up, or nothing where the baseline has no level to be sooner at: its control gain may be none."""
    (base,) = (each for each in of["rows"] if each["arm"] == of["baseline"])
    return wording.speed_of(row, axis, share, of["baseline"]) if base["final_gain"]["low"] > 0 else wording.NOTHING


def rate_of(of: dict[str, Any]) -> str:
    """Learning rate of a comparison: 1.5e-3."""
    digits, _, power = f"{of['settings']['train.learning_rate']:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def short() -> str:
    """The preset against the baseline, a line per comparison: in short."""
    lines = [
        "| model, condition | steps | learning rate | to 95% of plain's level, in steps | in training time "
        "| to 50%, in steps | control gain, difference | fidelity, difference | plain gains in its last fifth |",
        "|---" * 9 + "|",
    ]
    for of, row in of_the_preset():
        against = row["against_baseline"]
        speeds = [("steps", "0.95"), ("seconds", "0.95"), ("steps", "0.5")]
        fidelity = cell(wording.interval(against["fidelities"].get(of["condition"]), signed=True))
        cells = [
            f"{of['model']}, {of['condition']}",
            f"{row['steps']:,}",
            rate_of(of),
            *[cell(sooner(of, row, axis, share)) for axis, share in speeds],
            cell(wording.interval(against["final_gain"], signed=True)),
            f"{METRICS[row['fidelity']['metric']]} {fidelity}",
            f"{of['plateau']['growth']:+.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def door() -> str:
    """What of it the README shows: sooner in steps, by condition and model."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for of, row in of_the_preset():
        told = wording.plainly(sooner(of, row, "steps", "0.95"))
        line = f"{row['steps']:,} steps at {rate_of(of)}: {told}"
        found.setdefault((of["model"], of["condition"]), []).append((row["steps"], line))
    models = list(dict.fromkeys(model for model, _ in found))
    lines = [f"| | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for condition in ORDER:
        cells = [sorted(found.get((model, condition), [])) for model in models]
        lines.append(f"| {condition} | {' | '.join(cell([line for _, line in each]) for each in cells)} |")
    return "\n".join(lines) + "\n"


def parts() -> dict[Path, list[tuple[str, str, str]]]:
    """What is made, by page: mark, text, mark."""
    return {
        TARGET: [(SHORT, short(), SHORT_END), (BEGIN, tables(), END)],
        README: [(SHORT, door(), SHORT_END)],
    }


def section(of: dict[str, Any]) -> str:
    """One comparison: what it is, its table, the command, and what the report noted."""
    seeds = sorted({seed for each in of["rows"] for seed in each["seeds"]})
    first = of["rows"][0]
    lines = [
        "### " + ", ".join(part for part in (of["model"], of["condition"], of.get("name")) if part),
        "",
        f"{first['steps']} steps, seeds {', '.join(map(str, seeds))}; plateau of {of['baseline']}: "
        f"{of['plateau']['level']:.3f}. [Result](../benchmarks/results/{of['file']}), commit {first['commit']}:",
        "",
        "```",
        first["command"],
        "```",
        "",
        "| arm | speed-up at 95%, steps | in training time | at 50%, steps | over `recipe`, 95%, steps "
        "| over it in training time | over it in control gain | onset, step | control gain at the end | decoder R2 "
        f"| fidelity at the end | against {of['baseline']} | seconds per step, peak memory | set otherwise |",
        "|---" * 14 + "|",
        *[row(each, of["baseline"]) for each in of["rows"]],
        "",
        *[f"- {note}" for note in of["notes"]],
    ]
    return "\n".join(lines).rstrip() + "\n"


def features(of: dict[str, Any]) -> list[str]:
    """What the side features of one model and condition encode: a line per pair of arms and layer."""
    names = [name for name, value in of["rows"][0].items() if isinstance(value, dict)]
    lines = []
    for each in of["rows"]:
        cells = [
            cell((f"{each[name]['arm']['value']:.3f} / {each[name]['against']['value']:.3f}", signed(each[name])))
            for name in names
        ]
        condition = ", ".join(part for part in (of["condition"], of.get("name")) if part)
        where = (of["model"], condition, f"{each['arm']} / {each['against']}", each["layer"], *cells)
        lines.append(f"| {' | '.join(where)} |")
    return lines


def signed(figure: dict[str, Any]) -> str:
    """A difference with its interval."""
    return " ".join(wording.interval(figure["difference"], signed=True))


def features_section(found: Sequence[dict[str, Any]]) -> str:
    """All of them in one table; empty where there are none."""
    if not found:
        return ""
    lines = [
        "### What the side features encode",
        "",
        *[
            f"- {of['model']}, {of['condition']}: [result](../benchmarks/results/{of['file']}), commit {of['commit']}, "
            f"`{of['command']}`"
            for of in found
        ],
        "",
        "| model | condition | arm / against | layer | disentanglement | R2 of the condition | R2 of the score "
        "| total index of noise |",
        "|---|---|---|---|---|---|---|---|",
        *[line for of in found for line in features(of)],
    ]
    return "\n" + "\n".join(lines) + "\n"


def tables() -> str:
    """All sections."""
    return "\n".join(section(each) for each in results("evidence")) + features_section(results("features"))


if __name__ == "__main__":
    written = [marked_page.write(page, made) for page, made in parts().items()]
    sys.exit(not all(written))
