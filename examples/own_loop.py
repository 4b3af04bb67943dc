"""LISA in a training loop of your own: the three lines are marked. Runs in seconds on the embedded tiny model."""

from __future__ import annotations

import torch
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline
from torch.nn.functional import mse_loss

import lisa
from lisa.data.sources import ScenesSource


def main(steps: int = 10) -> list[float]:
    """Train a ControlNet on scenes; returns the decoder's R2 per step."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline.from_pretrained(lisa.zoo.path("tiny-sd"))
    pipe.unet.requires_grad_(False)
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32, 96)).train()
    noise_schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    scenes = ScenesSource("edges", count=64)

    aligner = lisa.attach(controlnet, layer="down.5", out_channels=4)  # 1
    optimizer = torch.optim.AdamW([*controlnet.parameters(), *aligner.parameters()], lr=5e-4)
    readable = []
    for step in range(steps):
        batch = [scenes[(8 * step + i) % len(scenes)] for i in range(8)]
        pixels = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) / 127.5 - 1 for s in batch])
        condition = torch.stack([torch.from_numpy(s.condition).permute(2, 0, 1) / 255 for s in batch])
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent_dist.sample() * pipe.vae.config.scaling_factor
            text, _ = pipe.encode_prompt([s.caption for s in batch], "cpu", 1, False)
        target = torch.randn_like(latents)
        t = torch.randint(0, 1000, (len(batch),))
        x_t = noise_schedule.add_noise(latents, target, t)

        with torch.no_grad():
            prior = pipe.unet(x_t, t, text).sample  # the main network without control
        down, mid = controlnet(x_t, t, text, controlnet_cond=condition, return_dict=False)
        controlled = pipe.unet(
            x_t, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

        terms = aligner(target=target, prior=prior, timesteps=t)  # 2
        loss = mse_loss(controlled, target) + terms.loss  # 3
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        readable.append(float(terms.r2))
    aligner.remove()  # the ControlNet is again exactly diffusers' own
    return readable


if __name__ == "__main__":
    print("readable likelihood score (R2) by step:", [round(r2, 3) for r2 in main()])
