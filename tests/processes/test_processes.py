import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler

from lisa.common.errors import LisaError
from lisa.processes import DDPMProcess, EDMProcess, ForwardProcess, RectifiedFlowProcess

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PROCESSES = {
    "epsilon": DDPMProcess({**SD, "prediction_type": "epsilon"}),
    "v": DDPMProcess({**SD, "prediction_type": "v_prediction"}),
    "v zero SNR": DDPMProcess({**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    "flow": RectifiedFlowProcess(),
    "edm": EDMProcess(),
}
CONTINUOUS = {"flow": [0.01, 0.3, 0.7, 1.0], "edm": [0.002, 0.5, 3.0, 700.0]}


def tensors(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 4, 6, 5, generator=generator), torch.randn(samples, 4, 6, 5, generator=generator)


def times(process: ForwardProcess) -> torch.Tensor:
    return torch.tensor(CONTINUOUS.get(process.prediction, [0, 10, 500, 999]))


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_is_one_and_its_parts_agree(name) -> None:
    process = PROCESSES[name]
    assert isinstance(process, ForwardProcess)
    t = times(process)
    x0, noise = tensors(4)
    alpha, sigma = (each.reshape(-1, 1, 1, 1).float() for each in process.alpha_sigma(t))
    x_t, target = process.x_t(x0, noise, t), process.target(x0, noise, t)
    assert x_t.dtype == target.dtype == torch.float32
    torch.testing.assert_close(x_t, alpha * x0 + sigma * noise)
    expected = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * x0,
        "flow": noise - x0,
        "edm": (noise - sigma * x0) / (sigma**2 + 1).sqrt(),
    }[process.prediction]
    torch.testing.assert_close(target, expected)
    assert torch.equal(process.model_input(x_t, t), x_t) == (process.prediction != "edm")
    estimate = process.denoised(x_t, target, t)
    torch.testing.assert_close(estimate, x0, atol=3e-4, rtol=1e-4)
    torch.testing.assert_close(process.snr(t).float(), (alpha / sigma).square().flatten(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(process.snr_of_decoder_time(process.decoder_time(t)), process.snr(t), rtol=2e-4, atol=0)
    assert 0 <= process.decoder_time(t).min() < process.decoder_time(t).max() <= 1000
    assert process.decoder_time(t).is_floating_point()


@pytest.mark.parametrize("name", PROCESSES)
def test_the_two_factors_are_one_statement(name) -> None:
    """E[x_0|x_t,c] - E[x_0|x_t] is (sigma^2 / alpha) g (Tweedie), wherever alpha is not zero."""
    process = PROCESSES[name]
    t = times(process)[:-1]
    alpha, sigma = (each.double() for each in process.alpha_sigma(t))
    ratio = process.residual_factor(t).double() / process.denoised_factor(t).double()
    torch.testing.assert_close(ratio, sigma**2 / alpha, rtol=1e-5, atol=0)


def test_the_limits_are_infinite_in_one_form_and_finite_in_the_other() -> None:
    last = torch.tensor([999])
    assert PROCESSES["v zero SNR"].residual_factor(last).item() == -math.inf
    assert PROCESSES["v zero SNR"].denoised_factor(last).item() == -1
    assert PROCESSES["v zero SNR"].snr(last).item() == 0
    assert PROCESSES["flow"].residual_factor(torch.tensor([1.0])).item() == -math.inf
    assert PROCESSES["flow"].denoised_factor(torch.tensor([1.0])).item() == -1
    assert PROCESSES["flow"].snr(torch.tensor([0.0])).item() == math.inf
    epsilon = DDPMProcess({**SD, "rescale_betas_zero_snr": True})
    assert epsilon.residual_factor(last).item() == -1
    assert epsilon.denoised_factor(last).item() == 0
    x_t = torch.randn(1, 4, 2, 2)
    assert not epsilon.denoised(x_t, x_t, last).any(), "an epsilon says nothing about x_0 there"


@pytest.mark.parametrize(
    "config",
    [
        SD,
        {},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid", "num_train_timesteps": 200},
        {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"trained_betas": [0.001, 0.01, 0.02, 0.05]},
    ],
)
def test_noising_and_velocity_are_diffusers_own(config) -> None:
    scheduler = DDPMScheduler(**config)
    process = DDPMProcess({**config, "prediction_type": "v_prediction"})
    count = len(scheduler.betas)
    assert process.timesteps == count
    t = torch.tensor([0, 1, count // 2, count - 1])
    x0, noise = tensors(4)
    torch.testing.assert_close(process.x_t(x0, noise, t), scheduler.add_noise(x0, noise, t), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(process.target(x0, noise, t), scheduler.get_velocity(x0, noise, t), atol=1e-6, rtol=1e-5)
    assert process.decoder_time(t)[2].item() == pytest.approx(1000 * (count // 2) / count)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_any_schedulers_config_will_do(cls, tmp_path, capsys, caplog) -> None:
    cls(**SD, prediction_type="v_prediction").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    process = DDPMProcess(config)
    assert process.prediction == "v_prediction"
    alpha, _ = process.alpha_sigma(torch.tensor([321]))
    assert alpha.item() == pytest.approx(float(DDPMScheduler(**SD).alphas_cumprod[321]) ** 0.5)
    assert DDPMProcess(cls(**SD).config).prediction == "epsilon"
    assert "not expected" not in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": "sample"}, "'sample'.*Choices: epsilon, v_prediction"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"beta_schedule": "scaled_liner"}, "unknown beta_schedule 'scaled_liner' .*scaled_linear"),
        ({"beta_end": 3.0}, "betas"),
    ],
)
def test_configs_that_cannot_be_trained_are_errors(config, message) -> None:
    with pytest.raises(LisaError, match=message):
        DDPMProcess(config)


def test_timesteps_of_ddpm_are_uniform() -> None:
    process = DDPMProcess({"num_train_timesteps": 10})
    u = (torch.arange(1000) + 0.5) / 1000
    t = process.sample_timesteps(u)
    assert t.dtype == torch.int64
    assert t.bincount().tolist() == [100] * 10
    assert process.sample_timesteps(torch.tensor([2.0**-24, 1 - 2.0**-24])).tolist() == [0, 9]
    assert torch.equal(process.model_time(t), t)


def test_timesteps_of_flow_follow_their_density() -> None:
    u = (torch.arange(20_000) + 0.5) / 20_000
    logits = torch.logit(RectifiedFlowProcess(logit_mean=-0.5, logit_std=1.5).sample_timesteps(u).double())
    assert logits.mean().item() == pytest.approx(-0.5, abs=1e-3)
    assert logits.std().item() == pytest.approx(1.5, abs=2e-3)
    torch.testing.assert_close(RectifiedFlowProcess("uniform").sample_timesteps(u), u)
    shifted = RectifiedFlowProcess("uniform", shift=3.0)
    assert shifted.sample_timesteps(torch.tensor([0.5])).item() == pytest.approx(0.75)
    extreme = RectifiedFlowProcess(logit_std=50.0, shift=10.0).sample_timesteps(torch.tensor([1e-7, 1 - 6e-8]))
    assert 0 < extreme[0] < extreme[1] < 1
    t = shifted.sample_timesteps(u)
    torch.testing.assert_close(shifted.model_time(t), 1000 * t)
    assert torch.equal(RectifiedFlowProcess(model_time_scale=1.0).model_time(t), t)


def test_sigmas_of_edm_are_log_normal_with_the_defaults_of_svd() -> None:
    u = (torch.arange(20_000) + 0.5) / 20_000
    for process, mean, std in ((EDMProcess(), 0.7, 1.6), (EDMProcess(-1.2, 0.5), -1.2, 0.5)):
        logs = process.sample_timesteps(u).double().log()
        assert logs.mean().item() == pytest.approx(mean, abs=1e-3)
        assert logs.std().item() == pytest.approx(std, abs=2e-3)
    extreme = EDMProcess().sample_timesteps(torch.tensor([2.0**-24, 1 - 2.0**-24]))
    assert 0 < extreme[0] < extreme[1] < 1e5


def test_edm_is_preconditioned_as_svds_scheduler_does_it() -> None:
    """Its sigmas, the time and the input it gives the network, and the x_0 that it reads off the output."""
    scheduler = EulerDiscreteScheduler(
        **SD,
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    scheduler.set_timesteps(7)
    process, (x0, noise) = EDMProcess(), tensors(1)
    decoder_times = []
    for sigma, time in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        t = sigma[None]
        torch.testing.assert_close(process.model_time(t), time[None])
        x_t = process.x_t(x0, noise, t)
        torch.testing.assert_close(process.model_input(x_t, t), scheduler.scale_model_input(x_t, time))
        output = torch.randn_like(x0)
        theirs = scheduler.step(output, time, x_t).pred_original_sample
        torch.testing.assert_close(process.denoised(x_t, output, t), theirs, rtol=1e-5, atol=1e-5)
        decoder_times.append(process.decoder_time(t).item())
    assert decoder_times == sorted(decoder_times, reverse=True) and 998 < decoder_times[0] <= 1000
    assert 0 <= decoder_times[-1] < 3


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_the_loss_of_edm_on_f_with_weight_one_is_that_of_the_paper_on_x_0(sigma) -> None:
    """arXiv 2206.00364, table 1 with sigma_data = 1: w = (1 + sigma^2) / sigma^2."""
    process, t = EDMProcess(), torch.tensor([sigma], dtype=torch.float64)
    x0, noise = (each[:1].double() for each in tensors(1))
    output = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t = process.x_t(x0, noise, t)
    ours = (output - process.target(x0, noise, t)).square().mean()
    theirs = (1 + sigma**2) / sigma**2 * (process.denoised(x_t, output, t) - x0).square().mean()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{"log_mean": math.inf}, {"log_std": 0.0}, {"log_std": math.nan}])
def test_impossible_edms_are_errors(options) -> None:
    with pytest.raises(LisaError, match=next(iter(options))):
        EDMProcess(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "logit_normal"}, "did you mean 'logit-normal'"),
        ({"shift": 0.0}, r"shift is 0\.0"),
        ({"logit_std": -1.0}, "logit_std"),
        ({"model_time_scale": math.nan}, "model_time_scale"),
    ],
)
def test_impossible_flows_are_errors(options, message) -> None:
    with pytest.raises(LisaError, match=message):
        RectifiedFlowProcess(**options)


def test_half_precision_latents_are_noised_in_fp32() -> None:
    x0, noise = tensors(4)
    for process in PROCESSES.values():
        x_t = process.x_t(x0.half(), noise.half(), times(process))
        assert x_t.dtype == torch.float32
