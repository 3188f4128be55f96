"""Joints of segments can neither be seen nor heard, whichever way they are made."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from midisynth.audio.crossfade import CrossFade
from midisynth.checkpoints import load_model
from midisynth.diffusion.inpainting import Known
from midisynth.diffusion.sampling import sample
from midisynth.diffusion.schedules import CosineSchedule
from midisynth.errors import UsageError
from midisynth.metrics.seams import level_steps, mel_step_excess, sample_jumps
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.module import Item, Noise
from midisynth.render import default_checkpoint
from midisynth.testing import ReadableVocoder

EXAMPLE = Path(__file__).parents[3] / "examples" / "mozart_k331.mid"
SEGMENTS = 6
WAYS = {
    "crossfade": {"overlap_frames": 16},
    "margin": {"overlap_frames": 16, "margin_frames": 8},
    "inpaint": {"overlap_frames": 16, "continuation": "inpaint"},
    "inpaint with margin": {"overlap_frames": 16, "margin_frames": 8, "continuation": "inpaint"},
}


@pytest.fixture(scope="module")
def shipped() -> SpectrogramDiffusion:
    """The piano that ships."""
    return load_model(default_checkpoint([str(EXAMPLE)]))


@pytest.fixture(scope="module")
def reference(shipped) -> Tensor:
    """Its spectrogram with other joints.

    A segment as long as the piece would have none, but the network was not trained for it.
    """
    return render(set_way(shipped, overlap_frames=48), mel=True)


def set_way(
    model: SpectrogramDiffusion, overlap_frames: int, margin_frames: int = 0, continuation: str = "crossfade"
) -> SpectrogramDiffusion:
    """Let a model join its segments in one way."""
    model.hparams.update(overlap_frames=overlap_frames, margin_frames=margin_frames, continuation=continuation)
    model.codec.margin_frames = margin_frames
    model.codec.advance_frames = model.codec.segment_frames - overlap_frames - 2 * margin_frames
    return model


def render(model: SpectrogramDiffusion, mel: bool) -> Tensor:
    """The first segments of the example as log mel [frames, mels], or as audio [samples]."""
    piece = dict(model.codec.encode(EXAMPLE))
    piece["segments"] = piece["segments"][:SEGMENTS]
    vocoder = model.part("vocoder")
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "part", lambda _: ReadableVocoder(vocoder) if mel else vocoder)
        chunks = model.render([piece], Noise([Item(EXAMPLE, EXAMPLE, "key")]))
        audio = torch.cat([chunk.audio for _, chunk in chunks], dim=-1).flatten()
    return audio.unflatten(0, (-1, vocoder.hop_samples))[:, : model.hparams.mels] if mel else audio


def joints(model: SpectrogramDiffusion) -> list[int]:
    """First and last frames of the fades."""
    codec, overlap = model.codec, model.hparams.overlap_frames
    starts = [codec.margin_frames + codec.advance_frames * index for index in range(1, SEGMENTS)]
    return sorted({start + side for start in starts for side in (0, overlap)})


def excess(mel: Tensor, joints: list[int], reference: Tensor) -> float:
    """`mel_step_excess` over the frames that both have."""
    frames = min(len(mel), len(reference))
    return mel_step_excess(mel[:frames], [joint for joint in joints if joint < frames], reference[:frames])


def test_segments_of_uneven_level_are_seen(shipped, reference):
    """By a sixth of a nat, 1.5 dB, side by side; so that the next test can fail."""
    model = set_way(shipped, overlap_frames=0)
    mel = render(model, mel=True).clone()
    starts = sorted(set(joints(model)))
    for first, end in zip(starts[::2], starts[1::2], strict=False):
        mel[first:end] += 1 / 6
    assert excess(mel, starts, reference) > 0.06


@pytest.mark.parametrize("way", WAYS)
def test_neither_seen_nor_heard(way: str, shipped, reference):
    model = set_way(shipped, **WAYS[way])
    mel, vocoder = render(model, mel=True), model.part("vocoder")
    hop, rate = vocoder.hop_samples, vocoder.sample_rate
    assert abs(excess(mel, joints(model), reference)) < 0.03
    audio = vocoder(mel).flatten()
    samples = [joint * hop + hop // 2 for joint in joints(model)]
    assert sample_jumps(audio, samples).max() <= 2
    # An iterative vocoder is as uneven between the joints.
    between = [sample + 40 * hop for sample in samples if sample + 60 * hop < len(audio)]
    assert level_steps(audio, samples, rate).mean() <= level_steps(audio, between, rate).mean() + 1.5


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_give_the_whole_piece(way: str, build, excerpts):
    """Same length; and the joints lie where the segments' notes say."""
    model = build(note_roll=True, tokens=False, **WAYS[way])
    lengths = []
    for path in excerpts:
        noise = Noise([Item(path, path, path.name)])
        piece = model.codec.encode(path)
        with torch.inference_mode():
            audio = torch.cat([chunk.audio for _, chunk in model.render([piece], noise)], dim=-1)
        lengths.append(audio.shape[-1] - piece["samples"])
        assert audio.isfinite().all()
    assert lengths == [0, 0]


def test_inpainting_begins_a_segment_with_the_end_of_the_one_before(build):
    """The network is asked to go on from the very frames that were generated."""
    model = build(overlap_frames=8, margin_frames=4, continuation="inpaint", note_roll=True, tokens=False)
    made, given = [], []
    generate = model.sample_segments

    def spy(batch, noise):
        given.append(batch.get("known"))
        made.append(generate(batch, noise))
        return made[-1]

    model.sample_segments = spy
    piece = dict(model.codec.encode(EXAMPLE))
    piece["segments"] = piece["segments"][:3]
    list(model.render([piece], Noise([Item(EXAMPLE, EXAMPLE, "key")])))
    assert given[0] is None and len(made) == 3
    for before, known, after in zip(made, given[1:], made[1:], strict=False):
        advance = model.codec.advance_frames
        torch.testing.assert_close(model.mel_range.inverse(known)[0], before[0, advance:-4], rtol=0, atol=1e-4)
        torch.testing.assert_close(after[0, :12], before[0, advance:-4], rtol=0, atol=1e-4)


LENGTH, OVERLAP, REACH = 24, 8, 0.9


def process_denoiser(z: Tensor, t: float) -> Tensor:
    """E[x0 | z] for a stationary process [.., LENGTH] whose neighbours correlate by REACH."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = CosineSchedule().alpha(time).item(), CosineSchedule().sigma(time).item()
    lags = torch.arange(LENGTH, dtype=torch.float64)
    covariance = REACH ** (lags[:, None] - lags).abs()
    gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(LENGTH))
    return (z.double() @ gain.T).to(z)


def continued(inpaint: bool, rows: int = 1500) -> Tensor:
    """Two segments of the process, joined, [rows, frames]."""
    generator = torch.Generator().manual_seed(0)

    def noise(_: int) -> Tensor:
        return torch.randn(rows, LENGTH, generator=generator)

    fade = CrossFade(OVERLAP)
    first = sample(process_denoiser, noise, CosineSchedule(), "ddpm", 60)
    joined = [fade.push(first.T)]
    shared = torch.nn.functional.pad(fade.shared.T, (0, LENGTH - OVERLAP))
    known = Known(shared, torch.arange(LENGTH) < OVERLAP, repeats=4) if inpaint else None
    joined += [fade.push(sample(process_denoiser, noise, CosineSchedule(), "ddpm", 60, known).T), fade.finish()]
    return torch.cat(joined).T


def test_inpainting_keeps_what_a_fade_between_different_samples_loses():
    """Where notes leave the sound open, a fade is a mixture: weaker, and less related to what is around it."""
    middle = LENGTH - OVERLAP // 2
    faded, inpainted = continued(False), continued(True)
    assert faded[:, middle].std() < 0.8 < 0.9 < inpainted[:, middle].std() < 1.1
    last = LENGTH  # the first frame that nothing was known of
    step = (inpainted[:, last] - inpainted[:, last - 1]).std().item()
    assert step == pytest.approx(math.sqrt(2 - 2 * REACH), rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap_frames": 16, "margin_frames": 9}, "at most half"),
        ({"margin_frames": -1}, "at most half"),
        ({"overlap_frames": 0, "continuation": "inpaint"}, "overlap_frames"),
        ({"continuation": "inpaint", "inpaint_repeats": 2, "solver": "dpm_solver"}, "inpaint_repeats"),
        ({"continuation": "inpaint", "inpaint_repeats": 0, "solver": "ddim"}, "inpaint_repeats"),
    ],
)
def test_options_that_do_not_fit(build, options, message):
    with pytest.raises(UsageError, match=message):
        build(**options)
