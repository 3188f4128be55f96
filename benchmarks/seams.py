"""How segments of a model without context should be joined: quality at the joints of each way.

Renders the pieces of a folder with every way of going on from one segment to the next and compares with recordings of
the same names:

- mel error (nats) of all frames, and of the frames within 160 ms of a joint;
- mel step: how much more the spectrogram changes at the joints than between, as the recording does there (nats);
- sample jump: largest step of the waveform at a joint over the largest within 64 samples (over 2 is a click);
- level: by how much the 20 ms at a joint differ from their neighbourhood, more than they do in the recording through
  the same vocoder (dB, the worst joint);
- seconds of processor time for the spectrogram of a second of music.

    python benchmarks/render_reference.py pieces/ --sound data/salamander --output pieces/
    python benchmarks/seams.py spectrogram_diffusion_piano --pairs pieces/ --output benchmarks/seams.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from midisynth.audio.io import load_audio
from midisynth.audio.vocoder import Vocoder
from midisynth.checkpoints import load_model
from midisynth.metrics.functional import mel_error
from midisynth.metrics.seams import level_steps, mel_step_excess, sample_jumps
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.module import Item, Noise
from midisynth.testing import ReadableVocoder


@dataclass(frozen=True)
class Way:
    """One way of joining."""

    continuation: str
    overlap_frames: int
    margin_frames: int = 0
    inpaint_repeats: int = 1

    def apply(self, model: SpectrogramDiffusion, steps: int) -> None:
        """Set the options of a model."""
        for name, value in vars(self).items():
            model.hparams[name] = value
        model.hparams.sample_steps = steps
        codec = model.codec
        codec.margin_frames = self.margin_frames
        codec.advance_frames = codec.segment_frames - self.overlap_frames - 2 * self.margin_frames


WAYS = (
    Way("crossfade", 0),
    Way("crossfade", 16),
    Way("crossfade", 32),
    Way("crossfade", 16, margin_frames=8),
    Way("inpaint", 16),
    Way("inpaint", 16, margin_frames=8),
    Way("inpaint", 16, inpaint_repeats=3),
    Way("inpaint", 32),
)


def mel_of(model: SpectrogramDiffusion, audio: Tensor) -> Tensor:
    """[samples] -> [frames, mels] natural log, clipped to the model's range."""
    return model.mel_range.inverse(model.mel_range(model.log_mel(audio[None])))[0]


def render_mel(model: SpectrogramDiffusion, path: Path, frames: int) -> tuple[Tensor, float]:
    """The first frames of the spectrogram of a piece, and processor seconds a second of it took."""
    piece = dict(model.codec.encode(path))
    count = -(-frames // model.codec.advance_frames)
    piece["segments"] = piece["segments"][:count]
    start = time.process_time()
    noise = Noise([Item(path, path, path.name)])
    chunks = [chunk.audio.flatten() for _, chunk in model.render([piece], noise)]
    took = time.process_time() - start
    hop, mels = model.hparams.hop_length, model.hparams.mels
    audio = torch.cat(chunks)
    mel = audio[: len(audio) // hop * hop].unflatten(0, (-1, hop))[:, :mels]
    return mel[:frames], took / (len(mel) * hop / model.hparams.sample_rate)


def joints_of(model: SpectrogramDiffusion, way: Way, frames: int) -> list[int]:
    """First and last frame of each fade, away from the ends."""
    starts = range(model.codec.advance_frames, frames, model.codec.advance_frames)
    edges = {start + way.margin_frames + side for start in starts for side in (0, way.overlap_frames)}
    # With inpainting, what is generated starts behind what is given, which reaches to the end of the fade.
    return sorted(edge for edge in edges if 8 <= edge < frames - 8)


def compare(
    model: SpectrogramDiffusion, way: Way, vocoder: Vocoder, mel: Tensor, reference: Tensor, copy: Tensor
) -> tuple[float, float, float, float, float]:
    """Mel error, mel error at joints, mel step, sample jump, level step.

    Args:
        model: With the options of the way.
        way: How segments were joined.
        vocoder: Of the audio that is compared.
        mel: [frames, mels] rendered.
        reference: [frames, mels] of the recording.
        copy: [samples] of the reference through the vocoder.
    """
    hop, rate = model.hparams.hop_length, model.hparams.sample_rate
    joints = joints_of(model, way, len(mel))
    near = torch.zeros(len(mel), dtype=torch.bool)
    for joint in joints:
        near[joint - 8 : joint + 8] = True
    samples = [joint * hop + hop // 2 for joint in joints]
    audio = vocoder(mel).flatten()
    return (
        mel_error(mel[None], reference[None]).item(),
        mel_error(mel[None, near], reference[None, near]).item(),
        mel_step_excess(mel, joints, reference),
        sample_jumps(audio, samples).max().item(),
        (level_steps(audio, samples, rate) - level_steps(copy, samples, rate)).max().item(),
    )


@torch.inference_mode()
def measure(model: SpectrogramDiffusion, pieces: Sequence[Path], seconds: float, steps: Sequence[int]) -> str:
    """Markdown table."""
    vocoder = model.part("vocoder")
    model.part = lambda _: ReadableVocoder(vocoder)
    lines = [
        "| continuation | overlap | margin | repeats | steps | mel error | at joints | mel step | sample jump | level "
        "| s per s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rate, hop = model.hparams.sample_rate, model.hparams.hop_length
    frames = round(seconds * rate / hop)
    audios = [load_audio(path.with_suffix(".wav"), rate).mean(dim=0)[: (frames + 4) * hop] for path in pieces]
    references = [mel_of(model, audio)[:frames] for audio in audios]
    copies = [vocoder(reference).flatten() for reference in references]
    for count in steps:
        for way in WAYS:
            way.apply(model, count)
            results, took = [], []
            for path, reference, copy in zip(pieces, references, copies, strict=True):
                mel, seconds_each = render_mel(model, path, frames)
                results.append(compare(model, way, vocoder, mel, reference, copy))
                took.append(seconds_each)
            values = torch.tensor(results)
            error, near, step = values[:, :3].mean(dim=0).tolist()
            jump, level = values[:, 3:].amax(dim=0).tolist()
            lines.append(
                f"| {way.continuation} | {way.overlap_frames} | {way.margin_frames} | {way.inpaint_repeats} | {count} "
                f"| {error:.4f} | {near:.4f} | {step:+.4f} | {jump:.2f} | {level:+.1f} "
                f"| {sum(took) / len(took):.4f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="anything that --ckpt_path takes")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of .mid files with their .wav recordings")
    parser.add_argument("--seconds", type=float, default=30.0, help="how much of every piece")
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 10], help="of the solver")
    parser.add_argument("--output", type=Path, required=True, help="where the table goes, .md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.checkpoint)
    pieces = sorted(path for path in options.pairs.glob("*.mid") if path.with_suffix(".wav").is_file())
    options.output.write_text(measure(model, pieces, options.seconds, options.steps))


if __name__ == "__main__":
    main()
