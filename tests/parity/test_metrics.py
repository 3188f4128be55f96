"""Embedding distances against the two originals: the evaluation of the PyTorch seed, and fadtk."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from midisynth.metrics.frechet import (
    FrechetAudioDistance,
    Gaussian,
    frechet_distance,
    frechet_infinity,
    frechet_per_file,
)
from midisynth.metrics.scores import ReconstructionDistance


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)]


class TestSeed:
    """Population covariance over all frames of all clips; reconstruction by clip."""

    @pytest.fixture
    def fixture(self, parity_root):
        root = parity_root("spectrogram_diffusion")
        manifest = json.loads((root / "metrics.manifest.json").read_text())
        tensors = {}
        for name in manifest["files"]:
            tensors |= load_file(root / name)
        config = manifest["config"]
        assert tensors["true"].shape == (config["clips"], config["frames_per_clip"], config["embedding_dim"])
        # "1e-8 absolute (float64), frechet 1e-5"
        everything, frechet = re.fullmatch(r"(\S+) absolute.*frechet (\S+)", manifest["tolerance"]["all"]).groups()
        return tensors, float(everything), float(frechet)

    @pytest.mark.parametrize("side", ["true", "pred"])
    def test_statistics(self, fixture, side):
        tensors, tolerance, _ = fixture
        found = Gaussian.of(tensors[side].flatten(0, 1), "population")
        torch.testing.assert_close(found.mean, tensors[f"mu_{side}"], atol=tolerance, rtol=0)
        torch.testing.assert_close(found.covariance, tensors[f"sigma_{side}"], atol=tolerance, rtol=0)

    def test_distance(self, fixture):
        tensors, _, tolerance = fixture
        sides = [Gaussian(tensors[f"mu_{side}"], tensors[f"sigma_{side}"]) for side in ("true", "pred")]
        assert float(frechet_distance(*sides)) == pytest.approx(float(tensors["frechet"]), abs=tolerance)
        metric = FrechetAudioDistance(tensors["true"].shape[-1], "population", min_frames=2)
        for true, pred in zip(tensors["true"], tensors["pred"], strict=True):
            metric.update(true[None], real=True)
            metric.update(pred[None], real=False)
        assert float(metric.compute()["fad"]) == pytest.approx(float(tensors["frechet"]), abs=tolerance)

    def test_reconstruction(self, fixture):
        tensors, tolerance, _ = fixture
        whole = ReconstructionDistance()
        for true, pred, wanted in zip(tensors["true"], tensors["pred"], tensors["recon_per_clip"], strict=True):
            alone = ReconstructionDistance()
            for metric in (whole, alone):
                metric.update(pred[None], true[None])
            assert float(alone.compute()) == pytest.approx(float(wanted), abs=tolerance)
        assert float(whole.compute()) == pytest.approx(float(tensors["recon"]), abs=tolerance)


class TestFadtk:
    """Sample covariance; frames of a common pool."""

    @pytest.fixture
    def fixture(self, parity_root):
        root = parity_root("midi_valle")
        manifest = json.loads((root / "fad.json").read_text())
        (tolerance,) = numbers(manifest["tolerance"])
        return manifest, load_file(root / "fad.safetensors"), tolerance

    def test_statistics(self, fixture):
        _, tensors, tolerance = fixture
        found = Gaussian.of(tensors["eval"])
        torch.testing.assert_close(found.mean, tensors["mu_eval"], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.covariance, tensors["cov_eval"], rtol=tolerance, atol=tolerance)

    def test_distance(self, fixture):
        manifest, tensors, tolerance = fixture
        found = frechet_distance(Gaussian.of(tensors["ref"]), Gaussian.of(tensors["eval"]))
        assert float(found) == pytest.approx(manifest["fad"], rel=tolerance)

    def test_per_file(self, fixture):
        manifest, tensors, tolerance = fixture
        wanted = manifest["per_chunk_of_np_array_split_4"]
        chunks = np.array_split(tensors["eval"].numpy(), len(wanted))
        found = frechet_per_file(
            {str(index): Gaussian.of(torch.from_numpy(chunk)) for index, chunk in enumerate(chunks)},
            Gaussian.of(tensors["ref"]),
        )
        assert found == pytest.approx({str(index): score for index, score in enumerate(wanted)}, rel=tolerance)
        assert list(found.values()) == sorted(found.values())

    def test_infinity(self, fixture):
        manifest, tensors, tolerance = fixture
        wanted = manifest["fad_inf"]
        found = frechet_infinity(
            tensors["eval"],
            tensors["ref"],
            steps=wanted["steps"],
            min_frames=wanted["min_n"],
            random=np.random.RandomState(wanted["numpy_seed"]),
        )
        assert [frames for frames, _ in found.points] == [frames for frames, _ in wanted["points"]]
        scores = [score for _, score in found.points]
        assert scores == pytest.approx([score for _, score in wanted["points"]], rel=tolerance)
        assert found.infinity == pytest.approx(wanted["score"], rel=tolerance)
        assert found.slope == pytest.approx(wanted["slope"], rel=tolerance)
        assert found.r2 == pytest.approx(wanted["r2"], rel=tolerance, abs=1e-9)
