"""The report of a comparison: ``summary.json``, ``report.md`` with ``curves.png``, and ``report.html``, which needs no
other file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lisa.common.files import write_json, write_text
from lisa.compare import curves, wording
from lisa.compare.aligned import Comparison, read_comparison
from lisa.compare.pictures import side_by_side
from lisa.compare.results import summarise
from lisa.compare.speed_up import FLAT, LEVELS, ONSET_SHARE, ONSET_STAYS, WINDOW


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    baseline: str = "plain",
    arms: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
) -> dict[str, Any]:
    """Read the runs in ``folders`` and write the report into ``out``; returns what is in ``summary.json``.

    Args:
        folders: that ``lisa compare`` has written, here or on other machines.
        out: for ``summary.json``, ``report.md``, ``curves.png`` and ``report.html``.
        baseline: name of the arm that the others are compared with.
        arms: in the order of the report; what has no run is said to be missing. None: those that there are.
        seeds: the same for seeds.

    Raises:
        LisaError: see :func:`lisa.compare.aligned.read_comparison`; or the disk is full or not writable.
    """
    comparison = read_comparison(folders, baseline=baseline, arms=arms, seeds=seeds)
    summary, folder = summarise(comparison), Path(out)
    drawn = curves.panels(comparison, summary)
    curves.save_png(folder / "curves.png", drawn)
    write_text(folder / "report.md", _render("report.md.j2", summary))
    write_text(folder / "report.html", _html(comparison, summary, drawn))
    write_json(folder / "summary.json", summary)  # the last: who sees it finds the rest
    return summary


def _html(comparison: Comparison, summary: Mapping[str, Any], drawn: Sequence[curves.Panel]) -> str:
    from markupsafe import Markup

    shades = {arm: curves.colour(place) for place, arm in enumerate(comparison.arms)}
    pictures = [Markup(curves.to_svg(panel, legend=False)) for panel in drawn]
    named = [(panel.title, picture) for panel, picture in zip(drawn, pictures, strict=True)]
    words = {arm: curves.dash(place)[1] for place, arm in enumerate(comparison.arms)}
    return _render(
        "report.html.j2",
        summary,
        panels=named,
        shades=shades,
        dashes={arm: f" ({word})" if word else "" for arm, word in words.items()},
        judged_while_training=curves.judged_while_training(comparison),
        samples=side_by_side(comparison),
    )


def _render(name: str, summary: Mapping[str, Any], **more: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("lisa.compare", "templates"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    facts = {
        "levels": [(str(share), f"{share:.0%}") for share in LEVELS],
        "others": [row for row in summary["arms"] if row["arm"] != summary["baseline"]],
        "conditions": list(dict.fromkeys(name for row in summary["arms"] for name in row["fidelities"])),
        "rules": {"window": WINDOW, "flat": f"{FLAT:.0%}", "onset": f"{ONSET_SHARE:.0%}", "stays": ONSET_STAYS},
    }
    return environment.get_template(name).render(s=summary, w=wording, **facts, **more)
