"""``lisa analyse`` on tiny networks whose features are known: what they see, what they cannot, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import lisa
import runs
from conformance import row, tiny_sd3
from fake_runs import fake_run
from lisa.analyse.words import bag
from lisa.build import parts
from lisa.build.analysis import features
from lisa.build.analysis.decoded import DRAWS, decoded_scores, find_decoder, load_decoder
from lisa.build.analysis.measuring import Subjects, _mixed, measure
from lisa.build.analysis.setup import load_main, load_pair, open_run
from lisa.cli.app import app
from lisa.common.errors import LisaError
from lisa.common.files import write_json
from lisa.common.runfolder import RunFolder
from lisa.data.samples import Subset
from lisa.pairs import pair_spec
from lisa.processes.draws import Draws
from lisa.processes.flow import RectifiedFlowProcess
from lisa.sides.base import SideOptions
from lisa.train.config import TrainConfig
from lisa.train.settings import check_settings, save_settings

CPU = torch.device("cpu")
CHANGES = {"data__scenes": 32, "data__held_out": 8, "sample__batch_size": 16}
LAYERS = [*[f"down.{i}" for i in range(9)], "mid"]


def with_decoder(run, bias):
    """A checkpoint whose decoder says ``bias`` everywhere."""
    config = open_run("run", run).config
    pair = load_pair(open_run("run", run), load_main(config, CPU), CPU)
    aligner, _ = parts.build_alignment(config, pair)
    state = {name: torch.zeros_like(value) for name, value in aligner.state_dict().items()}
    state["decoders.down_5.out.bias"] = torch.tensor(bias)
    folder = RunFolder(run).checkpoints / "step-000002"
    folder.mkdir(parents=True)
    save_file(state, folder / "decoder.safetensors")
    return run


@pytest.fixture(scope="module")
def pair_of_runs(sd_small, tmp_path_factory):
    root = tmp_path_factory.mktemp("analysis")
    torch.manual_seed(0)  # how much a random network lets through is a matter of chance
    seeing = with_decoder(fake_run(root / "seeing", sd_small, "edges", **CHANGES), [0.5, 0.0, -1.0, 0.0])
    write_json(seeing / "summary.json", {"steps": 2})
    blind = fake_run(root / "blind", sd_small, "edges", seed=1, align__enabled=False, **CHANGES)
    module = pair_spec("sd-controlnet").load_side(str(seeing / "side_network")).module
    for layer in module.controlnet_cond_embedding.modules():
        if isinstance(layer, torch.nn.Conv2d):  # of each place how bright it is: random ones hardly tell
            torch.nn.init.constant_(layer.weight, 4 / layer.weight[0].numel())
            torch.nn.init.zeros_(layer.bias)
    module.save_pretrained(seeing / "side_network")
    module = pair_spec("sd-controlnet").load_side(str(blind / "side_network")).module
    torch.nn.init.zeros_(module.controlnet_cond_embedding.conv_out.weight)
    torch.nn.init.zeros_(module.controlnet_cond_embedding.conv_out.bias)
    module.save_pretrained(blind / "side_network")
    return seeing, blind


@pytest.fixture(scope="module")
def result(pair_of_runs, tmp_path_factory):
    seeing, blind = pair_of_runs
    before = {file: file.stat().st_mtime_ns for file in seeing.rglob("*")}
    out = tmp_path_factory.mktemp("out") / "analysis"
    found = lisa.analyse(seeing, against=blind, levels=2, out=out)
    assert {file: file.stat().st_mtime_ns for file in seeing.rglob("*")} == before  # a run is only read
    return found


def test_a_network_blind_to_the_condition_is_told(result):
    """Its condition embedding ends in zeros: the feature owes the condition nothing, exactly."""
    assert [layer["name"] for layer in result["layers"]] == LAYERS
    for each in result["by_level"]:
        blind = each["against"]
        assert blind["total"]["condition"] == {"value": 0, "low": 0, "high": 0}
        assert blind["first"]["condition"]["value"] == pytest.approx(0, abs=0.35)
        assert blind["first"]["condition"]["low"] <= 0.05
        assert blind["r2"]["condition"]["value"] < 0.1
    first = next(each for each in result["by_level"] if each["layer"] == "down.0")
    assert first["run"]["disentanglement"]["value"] > 0.7 and first["run"]["r2"]["condition"]["low"] > 0.2
    assert first["difference"]["disentanglement"]["low"] > 0.5
    assert first["against"]["r2"]["noise"]["low"] > 0.05  # x_t goes straight into it
    assert "seeing is more disentangled than" in result["verdict"]


def test_how_like_the_layers_of_two_runs_are(result):
    """CKA of each layer with the same of the other run: the diagonal of the table of all layers, mean of the levels."""
    for number, each in enumerate(result["by_layer"]):
        levels = [level["cka"]["value"] for level in result["by_level"] if level["layer"] == each["layer"]]
        assert each["cka"] == pytest.approx(result["between_layers"][number][number])
        assert each["cka"] == pytest.approx(np.mean(levels))
    assert result["by_layer"][0]["cka"] < 0.9, "one of the two is blind"


def test_the_caption_reaches_only_what_lies_behind_attention(result):
    """down.0 is the first convolution and down.1 the first block, with attention."""
    totals = {each["layer"]: each["against"]["total"]["caption"]["value"] for each in result["by_layer"]}
    assert totals["down.0"] == 0 < totals["down.1"]


def test_levels_are_the_middles_of_equal_parts(result):
    assert result["levels"] == pytest.approx([250, 750], abs=1)
    flow = features.noise_levels(RectifiedFlowProcess(shift=3.0), 4)
    assert [level.time for level in flow] == pytest.approx([125, 375, 625, 875], abs=2)
    assert [float(level.t) * 1000 for level in flow] == pytest.approx([level.time for level in flow], abs=0.01)


def test_what_is_written(result):
    out = Path(result["out"])
    assert json.loads((out / "analysis.json").read_text()) == {k: v for k, v in result.items() if k != "out"}
    report = (out / "report.md").read_text()
    written = {file.name for file in out.glob("*.png")}
    assert written == set(result["pictures"]) and all(f"]({name})" in report for name in written)
    assert {
        "scores-run-t0250.png",
        "features-against-t0750.png",
    } <= written and "scores-against-t0250.png" not in written
    assert "not aligned" in result["decoded"]["against"]["left_out"] and "No decoded score of" in report
    assert result["samples"] == 8 and result["pairs"] == 4 and result["fit_samples"] == 16
    assert result["aligned"] == {"run": ["down.5"], "against": []}
    for name in written:
        assert np.asarray(Image.open(out / name).convert("L")).std() > 5
    # Six rows of condition and eight layers, 32 pixels four times enlarged.
    assert Image.open(out / "features-run-t0250.png").width == (9 * 32 + 8 * 4) * 4


def test_the_decoded_score_and_the_residual(pair_of_runs, result):
    """The planted decoder says one number per channel; the residual is that of the main network, averaged by hand."""
    run = open_run("run", pair_of_runs[0])
    pair = load_pair(run, load_main(run.config, CPU), CPU)
    reader = features.FeatureReader(pair, Draws(0), 4, CPU)
    data = parts.open_data(run.config.data, 0, check=False)
    samples = features.encode("held_out", data.held_out, data.transform, pair, Draws(0), 4, CPU)
    level = features.noise_levels(pair.main.process, 2)[1]
    aligner = load_decoder(run.config, reader, RunFolder(run.path).checkpoints / "step-000002/decoder.safetensors")
    scores = decoded_scores(aligner, reader, samples, level, 6)
    planted = np.broadcast_to(np.array([0.5, 0, -1, 0]).reshape(1, 4, 1, 1), scores.decoded.shape)
    np.testing.assert_allclose(scores.decoded, planted, atol=1e-6)
    np.testing.assert_allclose(scores.mean_decoded, planted, atol=1e-6)
    residuals = []
    for draw in range(DRAWS):
        noise = reader.noise(samples, range(6), level, draw)
        with torch.no_grad():
            prior = pair.prior(reader.as_they_are(samples, range(6), level, draw))
        residuals.append((noise - prior).numpy())  # epsilon: the target is the noise
    np.testing.assert_allclose(scores.residual, residuals[0], atol=1e-4)
    np.testing.assert_allclose(scores.mean_residual, np.mean(residuals, 0), atol=1e-4)
    flat = [np.mean(residuals, 0).reshape(6, -1), planted.reshape(6, -1)]
    cosines = (flat[0] * flat[1]).sum(1) / np.linalg.norm(flat[0], axis=1) / np.linalg.norm(flat[1], axis=1)
    assert result["decoded"]["run"]["by_level"][1]["mean"]["value"] == pytest.approx(cosines.mean(), abs=1e-5)
    np.testing.assert_allclose(reader.residuals(samples, level)[:6], residuals[0], atol=1e-4)


@pytest.fixture(scope="module")
def bench(pair_of_runs):
    """A reader of the network that sees x_t alone, and its fit and held-out samples."""
    run = open_run("run", pair_of_runs[1])
    pair = load_pair(run, load_main(run.config, CPU), CPU)
    data = parts.open_data(run.config.data, 0, check=False)
    chosen = {"fit": Subset(data.train, range(16)), "held_out": data.held_out}
    encoded = [features.encode(name, each, data.transform, pair, Draws(0), 16, CPU) for name, each in chosen.items()]
    return features.FeatureReader(pair, Draws(0), 16, CPU), *encoded


def test_the_score_is_read_from_the_samples_it_belongs_to(bench):
    """Planted as residuals: the noise, which down.0 holds; and the noise of other samples."""
    reader, fit, held_out = bench
    level = features.noise_levels(reader.pair.main.process, 1)[0]
    noise = [reader.noise(each, range(len(each)), level) for each in (fit, held_out)]

    def r2(held_out_residuals):
        found = measure(reader, Subjects(fit, held_out, noise[0], held_out_residuals), level, 2).readings["down.0"]
        return 1 - found.errors["score"].sum() / found.totals["score"].sum()

    assert r2(noise[1]) > 0.1 > 0 > r2(noise[1].roll(1, 0))


def test_what_probes_look_at_comes_from_different_samples(bench, monkeypatch):
    reader, fit, _ = bench
    seen = {}
    original = features.FeatureReader.inputs

    def inputs(self, samples, level, **rows):
        seen.update(rows)
        return original(self, samples, level, **rows)

    monkeypatch.setattr(features.FeatureReader, "inputs", inputs)
    level = features.noise_levels(reader.pair.main.process, 1)[0]
    batch = _mixed(reader, fit, range(14, 16), level, ["red", "star"])
    assert (list(seen["condition"]), seen["picture"], seen["caption"]) == ([14, 15], [15, 0], [0, 1])
    assert batch.words.tolist() == bag(fit.captions[:2], ["red", "star"]).tolist()
    pixels = torch.from_numpy(np.stack(fit.pictures[14:])).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(batch.pixels, pixels)
    torch.testing.assert_close(fit.conditions[14:], pixels)  # which is what the network was given


def make_run(out, model, pair, **changes):
    """A run of any pair, with a random side network."""
    config = check_settings(TrainConfig, runs.settings(out, model, model__pair=pair, **{**CHANGES, **changes}))
    out.mkdir(parents=True)
    save_settings(config, RunFolder(out).config)
    spec = pair_spec(pair)
    side = spec.make_side(spec.load_main(str(model)), SideOptions())
    row.randomise_zero_modules(side)
    side.save(RunFolder(out).side_network)
    return out


def test_an_adapter_sees_the_condition_alone(sd_small, tmp_path):
    run = make_run(tmp_path / "adapter", sd_small, "sd-t2i-adapter")
    found = lisa.analyse(run, levels=1)
    assert found["out"] == str(run / "analysis") and len(found["layers"]) >= 3
    for each in found["by_level"]:
        assert each["run"]["disentanglement"] == {"value": 1, "low": 1, "high": 1}
        assert [each["run"]["total"][name]["value"] for name in ("picture", "noise", "caption")] == [0, 0, 0]
        assert each["run"]["r2"]["noise"]["value"] < 0.05
    assert found["by_layer"][0]["run"]["r2"]["condition"]["low"] > 0.05
    assert "no checkpoint left" in found["decoded"]["run"]["left_out"]
    # The same again is the same, and as JSON it is all there is on standard output.
    command = ["analyse", str(run), "--levels", "1", "--overwrite", "--json"]
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert json.loads(again.stdout) | {"seconds": 0, "out": found["out"]} == found | {"seconds": 0}


def test_tokens_of_a_flow_transformer(tmp_path):
    model = tiny_sd3.make_folder(tmp_path / "model")
    run = make_run(tmp_path / "sd3", model, "sd3-controlnet", data__size=64, align__layer="block.1")
    found = lisa.analyse(run, levels=1)
    assert [layer["name"] for layer in found["layers"]] == ["block.0", "block.1"]
    first = found["by_level"][0]["run"]
    total = {name: first["total"][name]["value"] for name in ("condition", "picture", "noise", "caption")}
    assert all(0 < value < 1 for value in total.values()) and sum(total.values()) > 0.5
    assert first["r2"]["noise"]["low"] > 0.02  # tokens are at the place of their patch: a transpose would lose it


def test_the_decoder_is_of_the_step_that_the_side_network_is_of(tmp_path):
    """A run that was resumed and stopped has later checkpoints; its side network is still the one it ended with."""
    config = check_settings(TrainConfig, runs.settings(tmp_path / "run", "x"))
    assert find_decoder(tmp_path / "run", config)[1].startswith("the run has no checkpoint left;")
    for step in (2, 3, 5):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "decoder.safetensors").touch()
    write_json(tmp_path / "run" / "summary.json", {"steps": 3})
    file, note = find_decoder(tmp_path / "run", config)
    assert file.parent.name == "step-000003" and note == ""
    file.unlink()
    assert find_decoder(tmp_path / "run", config) == (
        None,
        "the run has no checkpoint left of step 3, as its side network is; only checkpoints hold the decoder",
    )


def test_what_is_refused(pair_of_runs, sd_small, sd15, tmp_path, monkeypatch):
    """Before anything is encoded."""
    seeing, _ = pair_of_runs
    monkeypatch.setattr("lisa.build.analysing.encode", lambda *args: pytest.fail("work was done"))

    def refused(*args, **options):
        with pytest.raises(LisaError) as error:
            lisa.analyse(*args, **options)
        return str(error.value)

    assert "not a run folder" in refused(tmp_path)
    assert "--levels is 0" in refused(seeing, levels=0)
    assert "9 held-out samples were asked for, the run holds out 8" in refused(seeing, samples=9)
    assert "4 held-out samples" in refused(seeing, samples=4)
    few = fake_run(tmp_path / "few", sd_small, "edges", data__held_out=4)
    assert "larger data.held_out" in refused(few)
    other = fake_run(tmp_path / "other", sd_small, "depth", **CHANGES)
    assert "data.condition is edges and depth" in refused(seeing, against=other)
    assert "data.held_out is 8 and 4" in refused(seeing, against=few)
    column = fake_run(tmp_path / "column", sd_small, "edges", **CHANGES, data__condition_column="hed")
    assert "data.condition_column is conditioning_image and hed" in refused(seeing, against=column)
    elsewhere = fake_run(tmp_path / "elsewhere", sd15, "edges", **CHANGES)
    assert "model.path is" in refused(seeing, against=elsewhere)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(seeing, out=tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    assert "holds no analysis" in refused(seeing, out=tmp_path / "mine", overwrite=True)
    (tmp_path / "mine" / "analysis.json").write_text("")
    assert "--overwrite" in refused(seeing, out=tmp_path / "mine")


def test_a_damaged_decoder_is_told(pair_of_runs, tmp_path):
    run = open_run("run", pair_of_runs[0])
    reader = features.FeatureReader(load_pair(run, load_main(run.config, CPU), CPU), Draws(0), 4, CPU)
    (tmp_path / "decoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(LisaError, match="is damaged"):
        load_decoder(run.config, reader, tmp_path / "decoder.safetensors")
