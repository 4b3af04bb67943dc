"""``lisa compare``: every arm and seed trained as an ordinary run, one process after the other.

Each run has a process of its own: its peak memory is then its own, a crash takes nothing else along, and a process that
trained before leaves nothing behind that could make a difference.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa.build import parts
from lisa.build.arms import Arm
from lisa.common.errors import LisaError
from lisa.common.mappings import flat
from lisa.common.runfolder import RunFolder
from lisa.compare.aligned import hindrance, of_the_place
from lisa.compare.runs import read_run
from lisa.pairs import Pair
from lisa.train.config import TrainConfig
from lisa.train.interrupt import StopRequest
from lisa.train.presets import refuse_idle
from lisa.train.settings import changed_settings, check_settings, merge, save_settings

#: Trains the configuration in a file and returns the exit code of ``lisa train``; asked to stop, it does so soon.
Launch = Callable[[Path, StopRequest], int]
_INTERRUPTED, _DIVERGED = 128 + signal.SIGINT, 3


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        out: folder of the comparison.
        arms: in order.
        seeds: of every arm.
        configs: by arm and seed, every run of the comparison.
    """

    out: Path
    arms: Sequence[Arm]
    seeds: Sequence[int]
    configs: dict[tuple[str, int], TrainConfig]

    def chosen(self, only: set[tuple[str, int]] | None) -> list[TrainConfig]:
        """Seed by seed, all arms of one before the next: a machine that slows down does so for every arm alike."""
        order = [(arm.name, seed) for seed in self.seeds for arm in self.arms]
        return [self.configs[key] for key in order if only is None or key in only]


def make_plan(
    file: str | Path | None, overrides: Sequence[str], arms: Sequence[Arm], seeds: Sequence[int], out: Path
) -> Plan:
    """The configuration of every run: the common one, the arm's overlay, the seed, and one cache for all.

    Raises:
        LisaError: a configuration is wrong (the message names the arm), or two arms are the same.
    """
    networks = _Networks()
    common = check_settings(TrainConfig, merge(file, overrides))
    if common.resume is not None or common.overwrite:
        raise LisaError(
            "a comparison always goes on with the runs that are there", "Leave resume and overwrite out of it"
        )
    configs: dict[tuple[str, int], TrainConfig] = {}
    for arm in arms:
        try:
            raw = merge(file, [*overrides, *arm.resolved(lambda: networks.layers(common))])
            config = check_settings(TrainConfig, raw)
            if not config.align.enabled:
                refuse_idle(arm.overrides, config.preset)
        except LisaError as error:
            raise LisaError(f"arm {arm.name}: {error.problem}", error.remedy, error.choices) from None
        data = config.data.model_copy(update={"cache_dir": config.data.cache_dir or out / "cache"})
        log = config.log.model_copy(update={"fidelity_share": None})  # the clock must not decide what is read
        for seed in seeds:
            place = out / arm.name / f"seed-{seed}"
            configs[arm.name, seed] = config.model_copy(
                update={"out": place, "seed": seed, "data": data, "log": log, "resume": "latest"}
            )
    _check_different(arms, seeds, configs)
    return Plan(out, arms, seeds, configs)


def train_runs(
    plan: Plan,
    only: set[tuple[str, int]] | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    launch: Launch | None = None,
) -> bool:
    """Train what is not finished yet; true if all chosen runs are, false if it was asked to stop before.

    A run that was interrupted goes on from its checkpoint; so does one that is finished, where more steps are asked for
    than it has and nothing hinders it (:func:`lisa.compare.aligned.hindrance`): the readings and weights are those of a
    run of so many steps. One that diverged is not tried again.

    Args:
        plan: from :func:`make_plan`.
        only: (arm, seed) of the runs to train here; None: all.
        say: is told what happens, a line at a time.
        launch: trains one run; default: in a process of its own.

    Raises:
        LisaError: before any training, if a run that is there has other settings, or an arm does not fit the model;
            later, if a run fails.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LisaError("lisa compare was started in several processes", "Start it alone: it starts its runs itself")
    chosen = plan.chosen(only)
    for config in chosen:
        _check_same(config)
    waiting = [config for config in chosen if not _done(config)]
    if not waiting:
        say(f"all {len(chosen)} runs are there")
        return True
    _check_arms(waiting)
    stop = StopRequest()
    with stop.listening():
        for number, config in enumerate(waiting, start=1):
            name = f"{config.out.parent.name}, seed {config.seed}"
            say(f"[{number}/{len(waiting)}] {name}: {config.out}")
            code = _INTERRUPTED if stop.requested else _train(config, stop, launch or train_in_process)
            if code == _DIVERGED:
                say(f"{name} diverged; the others go on")
            elif stop.requested or code == _INTERRUPTED:
                return False
            elif code != 0:
                raise LisaError(
                    f"{name} failed ({_explain(code)}); runs that are finished stay so",
                    "Its message is above. When that is mended, the same command goes on",
                )
    return True


def train_in_process(file: Path, stop: StopRequest) -> int:
    """``lisa train FILE`` as a child; a request to stop is passed on to it, and it writes its checkpoint."""
    command = [sys.executable, "-m", "lisa", "train", str(file), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    asked = False
    try:
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if stop.requested and not asked:
                    process.send_signal(signal.SIGTERM)
                    asked = True
    except BaseException:  # a second Ctrl-C: at once
        process.kill()
        process.wait()
        raise


def parse_seeds(text: str) -> list[int]:
    """``5``: 0 to 4. ``3-4``: 3 and 4. ``0,2,7-8``: these. ``7,``: 7 alone.

    Raises:
        LisaError: it is none of these, or no seed at all.
    """
    if text.strip().isdecimal() and int(text) > 0:
        return list(range(int(text)))
    return sorted(_numbers("" if text.strip().isdecimal() else text, text))


def parse_only(text: str, plan: Plan) -> set[tuple[str, int]]:
    """``plain:0,lisa:1-2,shuffled``: seeds of arms; an arm without seeds means all of its own.

    Raises:
        LisaError: an arm or a seed is none of the comparison's.
    """
    found: set[tuple[str, int]] = set()
    names = [arm.name for arm in plan.arms]
    for item in text.split(","):
        name, colon, seeds = item.strip().partition(":")
        if name not in names:
            raise LisaError(f"--only names the arm {name!r}, which is not compared", "Write ARM or ARM:SEED", names)
        wanted = _numbers(seeds, item) if colon else set(plan.seeds)
        strange = sorted(wanted - set(plan.seeds))
        if strange:
            raise LisaError(f"--only names seed {strange[0]}, which is not compared", choices=map(str, plan.seeds))
        found |= {(name, seed) for seed in wanted}
    return found


def _numbers(text: str, whole: str) -> set[int]:
    found: set[int] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise LisaError(f"{whole!r} tells no seeds", "Write 5 for 0 to 4, 3-4, or 0,2,7")
        found |= set(range(int(first), int(last or first) + 1))
    if not found:
        raise LisaError(f"{whole!r} tells no seeds", "Write 5 for 0 to 4, 3-4, or 0,2,7")
    return found


class _Networks:
    """Main and side networks, loaded once for configurations that have the same: some things only they can tell."""

    def __init__(self) -> None:
        self._made: dict[str, Pair] = {}

    def of(self, config: TrainConfig) -> Pair:
        """Built as a training builds it."""
        key = json.dumps([config.model.model_dump(mode="json"), config.side.model_dump(mode="json")])
        if key not in self._made:
            self._made.clear()  # one at a time: they are large
            self._made[key] = parts.build_pair(config)
        return self._made[key]

    def layers(self, config: TrainConfig) -> tuple[list[str], str]:
        """Names of the layers that can be aligned, and the default: what is set (the first of it), or the pair's."""
        pair, given = self.of(config), config.align.layer
        default = pair.spec.default_layer if given is None else given if isinstance(given, str) else given[0]
        return [layer.name for layer in pair.side.layers()], default


def _check_arms(waiting: Sequence[TrainConfig]) -> None:
    """Whatever a training would refuse at its start is refused now, for every arm, before the first one begins."""
    parts.open_data(waiting[0].data, waiting[0].seed)
    for config in waiting:
        RunFolder(config.out).check(overwrite=False, resume=True)
    networks = _Networks()
    for config in {config.out.parent.name: config for config in waiting}.values():
        try:
            parts.check_before_loading(config)
            aligner, _ = parts.build_alignment(config, networks.of(config))
        except LisaError as error:
            raise LisaError(f"arm {config.out.parent.name}: {error.problem}", error.remedy, error.choices) from None
        if aligner is not None:
            aligner.remove()
    del networks
    gc.collect()  # the trainings want the memory


def _check_different(arms: Sequence[Arm], seeds: Sequence[int], configs: dict[tuple[str, int], TrainConfig]) -> None:
    seen: dict[str, str] = {}
    for arm in arms:
        config = configs[arm.name, seeds[0]]
        # What is set for an alignment that there is none of makes no other training.
        idle: dict[str, Any] = {} if config.align.active else {"align": True, "train": {"decoder_lr_multiplier"}}
        settings = config.model_dump_json(exclude={"out": True, "preset": True, **idle})
        if settings in seen:
            raise LisaError(f"the arms {seen[settings]!r} and {arm.name!r} are the same", "Leave one of them out")
        seen[settings] = arm.name


def _check_same(config: TrainConfig) -> None:
    """A run that is there was made with the settings that it would be made with now, or is a beginning of that."""
    changed = changed_settings(RunFolder(config.out).config, config)
    before, steps = changed.get("train.steps", (0, 0))
    hindered = hindrance(flat(config.model_dump(mode="json")), before) if before < steps else None
    if before < steps and hindered is None:
        changed.pop("train.steps")
    told = [f"{name} is {now!r} now, it was {old!r}" for name, (old, now) in changed.items() if not _indifferent(name)]
    if told:
        remedy = "Use another --out, go back to these settings, or delete that folder to train it anew"
        if hindered is not None:
            remedy += f". It cannot go on with more steps: {hindered}"
        raise LisaError(f"{str(config.out)!r} was trained with other settings: {'; '.join(told)}", remedy)


def _indifferent(name: str) -> bool:
    return (
        of_the_place(name)
        or name.startswith("log.checkpoint")
        or name in ("log.tracker", "log.fidelity_share", "preset")
    )


def _done(config: TrainConfig) -> bool:
    if not RunFolder(config.out).config.is_file():
        return False
    return read_run(config.out, config.out.parent.name, config.seed).done(config.train.steps)


def _train(config: TrainConfig, stop: StopRequest, launch: Launch) -> int:
    """Through a file beside the run folder's own, which the training writes itself."""
    with tempfile.TemporaryDirectory(prefix="lisa-compare-") as folder:
        file = Path(folder) / "config.yaml"
        save_settings(config, file)
        return launch(file, stop)


def _explain(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed, perhaps because the memory was not enough"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
