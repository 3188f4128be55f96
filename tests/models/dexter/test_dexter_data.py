"""Windows of notes: what is in them, what changes in training, where the scales come from, and steps on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from midisynth.checkpoints import load_model
from midisynth.errors import DataError, UsageError
from midisynth.models.dexter import DExter, DExterData
from midisynth.models.dexter.expression import BEAT_PERIOD, VELOCITY
from midisynth.models.dexter.features import RICH
from midisynth.models.dexter.predictor import LearnedPrior, SymbolicPrior

ROOT = Path(__file__).resolve().parents[3]
CORPUS = {
    "root": str(ROOT / "examples" / "vienna4x22"),
    "test_pieces": ["chopin op 10 no 3", "chopin op 38"],
    "validation_pieces": ["mozart k 331"],
}
TINY: dict[str, Any] = {"channels": 16, "layers": 2, "objective": "x0", "window": 64, "overlap": 16, "sample_steps": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def connected(cache: str, model: DExter | None = None, **options: Any) -> DExterData:
    """A data module that has its records, and knows a model."""
    data = DExterData({"vienna4x22": CORPUS}, batch_size=2, cache_dir=cache, on_broken="stop", **options)
    data.connect(model or DExter(**TINY))
    data.prepare(workers=1, progress=False)
    data.setup("fit")
    return data


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **options,
    )


def test_windows_cover_every_note_once(cache: str):
    data = connected(cache)
    windows = data.dataset("validation")
    (entry,) = data.parts("validation")[0].prepared
    notes = len(entry.arrays()["matched"])
    assert len(windows) == -(-notes // 64)
    seen = torch.cat([windows[i]["onset"][windows[i]["mask"]] for i in range(len(windows))])
    np.testing.assert_array_equal(seen, entry.arrays()["onset"])
    last = windows[len(windows) - 1]
    assert last["mask"].sum() == (notes - 1) % 64 + 1
    assert not last["matched"][~last["mask"]].any()
    assert last["values"].shape == (64, 5)
    assert last["score"].dtype == last["values"].dtype == torch.float32


def test_an_example_is_always_the_same(cache: str):
    one, other = (connected(cache, mixup=0.5, transpose=3).dataset("train") for _ in range(2))
    for number in (0, 1, 1000):
        for name, value in one[number].items():
            assert torch.equal(value, other[number][name]), name
    assert not torch.equal(one[0]["values"], one[1]["values"])


def test_mixes_lie_between_two_performances_of_one_score(cache: str):
    plain, mixed = connected(cache).dataset("train"), connected(cache, mixup=1.0).dataset("train")
    first, second = (mixed._arrays(index)["values"] for index in mixed.siblings[0])
    scores = plain._arrays(0)["score"]
    between = 0
    for number in range(8):
        values = mixed[number]["values"].numpy()
        # The first note of a window tells where it is: no onset comes twice with the same pitch.
        start = int(np.flatnonzero((scores == plain[number]["score"][0].numpy()).all(axis=1))[0])
        rows = slice(start, start + 64)
        low, high = np.minimum(first[rows], second[rows]), np.maximum(first[rows], second[rows])
        assert (values >= low - 1e-5).all()
        assert (values <= high + 1e-5).all()
        between += not np.array_equal(values, first[rows]) and not np.array_equal(values, second[rows])
        assert not (mixed[number]["matched"] & ~plain[number]["matched"]).any()
    assert between == 8


def test_transposition_moves_pitch_alone(cache: str):
    plain, moved = connected(cache).dataset("train"), connected(cache, transpose=5).dataset("train")
    amounts = set()
    for number in range(12):
        change = (moved[number]["score"] - plain[number]["score"]).numpy()
        columns = [list(RICH).index(name) for name in ("pitch", "piece_pitch")]
        assert np.abs(np.delete(change, columns, axis=1)).max() == 0
        semitones = 12 * change[:, columns][plain[number]["mask"]]
        assert np.ptp(semitones) < 1e-4
        amounts.add(round(float(semitones.mean()), 3))
        assert torch.equal(moved[number]["values"], plain[number]["values"])
    assert len(amounts) > 4
    assert amounts <= set(map(float, range(-5, 6)))
    with pytest.raises(UsageError, match="set features to rich"):
        connected(cache, DExter(**TINY, features="published"), transpose=1).dataset("train")


def test_pairs_are_of_one_score(cache: str):
    model = DExter(**TINY, target="transfer")
    data = connected(cache, model)
    train = data.dataset("train")
    for number in range(6):
        example = train[number]
        assert example["source"].shape == example["values"].shape
        assert not torch.equal(example["source"], example["values"])
        assert example["source_midlevel"].shape == (64, 7)
    # Of the piece for validation there is one performance, of which no pair can be made.
    assert len(data.dataset("validation")) == 0
    alone = {**CORPUS, "test_pieces": ["schubert d 783 no 15"], "validation_pieces": []}
    data = DExterData({"vienna4x22": alone}, batch_size=2, cache_dir=cache)
    data.connect(DExter(**TINY, target="transfer"))
    data.prepare(workers=1, progress=False)
    data.setup("fit")
    with pytest.raises(DataError, match="no two performances of one score"):
        data.dataset("train")


def test_scales_come_from_matched_notes_of_training(cache: str):
    model = DExter(**TINY)
    data = connected(cache, model)
    kept = [entry.arrays() for entry in data.parts("train")[0].prepared]
    values = [arrays["values"][arrays["matched"]] for arrays in kept]
    levels = np.stack([one[:, [BEAT_PERIOD, VELOCITY]].mean(axis=0) for one in values])
    for one, level in zip(values, levels, strict=True):
        one[:, [BEAT_PERIOD, VELOCITY]] -= level
    values = np.concatenate(values)
    np.testing.assert_allclose(model.levels.offset, levels.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(model.mean, values.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(model.std, values.std(axis=0), rtol=1e-4)
    assert isinstance(model.prior, SymbolicPrior)
    assert model.prior.sigma.max() <= 1.001, "the score tells less than nothing"
    assert not any(not arrays["matched"].all() and model.mean.isnan().any() for arrays in kept)
    given = DExter(**TINY)
    given.mean.fill_(3)
    given.measured.fill_(True)
    connected(cache, given)
    assert (given.mean == 3).all(), "scales that came with weights stay"


def test_other_features_are_another_cache(cache: str):
    models = [DExter(**TINY, **options) for options in ({}, {"features": "published"}, {"midlevel": None})]
    folders = {connected(cache, model)._folder("vienna4x22") for model in models}
    assert len(folders) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"midlevel": "learned"},
        {"target": "transfer"},
        {"objective": "v", "norm": "huber", "null": "learned", "cfg_dropout": 0.5},
        {"denoiser": "unet", "dim": 8, "multipliers": [1, 2], "features": "published"},
        {"compat": "2024", "features": "published", "midlevel": None, "objective": "epsilon"},
        {"compat": "2024", "features": "published", "denoiser": "unet", "dim": 8, "multipliers": [1, 2]},
    ],
    ids=["learned", "transfer", "v", "unet", "diffwave-2024", "unet-2024"],
)
def test_every_kind_of_model_trains(options: dict[str, Any], cache: str, tmp_path: Path):
    from midisynth.testing import EveryParameterLearns

    torch.manual_seed(0)
    model = DExter(**{**TINY, **options})
    data = connected(cache, model)
    fitting = trainer(tmp_path, max_steps=3, limit_val_batches=1, callbacks=[EveryParameterLearns()])
    fitting.fit(model, data)
    fitting.validate(model, data, verbose=False)
    fitting.save_checkpoint(tmp_path / "model.ckpt")
    restored = load_model(str(tmp_path / "model.ckpt"))
    torch.testing.assert_close(restored.state_dict(), model.state_dict())


def test_validation_is_the_same_twice_and_in_any_batch(cache: str, tmp_path: Path):
    torch.manual_seed(0)
    model = DExter(**TINY, midlevel="learned")
    torch.nn.init.normal_(model.network.output_projection.weight, 0, 0.1)
    data = connected(cache, model)
    results = []
    for batch_size in (2, 2, 3):
        data.batch_size = batch_size
        torch.manual_seed(len(results))
        results += trainer(tmp_path).validate(model, data, verbose=False)
    assert sorted(results[0]) == ["val/correlation", "val/loss", "val/tempo_correlation", "val/velocity_correlation"]
    assert results[0] == results[1]
    for name in ("val/correlation", "val/tempo_correlation", "val/velocity_correlation"):
        assert results[2][name] == pytest.approx(results[0][name], abs=1e-4)


def test_a_performance_that_is_sampled_exactly_has_correlation_one(cache: str):
    model = DExter(**TINY)
    data = connected(cache, model)
    batch = data.collate([data.dataset("validation")[i] for i in range(2)])
    model.correlations.compare(model, batch, model.normalised(batch["values"], batch["level"]))
    for name, metric in model.correlations.items():
        assert metric.compute() == pytest.approx(1, abs=1e-4), name


def test_the_prior_learns_what_the_score_says():
    """Features that follow from a score column are predicted; those that a performance alone shows need it."""
    torch.manual_seed(0)
    prior = LearnedPrior(3, normalise_score=False, dim=32, layers=1, heads=2)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)

    def batch() -> tuple[torch.Tensor, ...]:
        score, values = torch.randn(8, 16, 3), torch.randn(8, 16, 5)
        wanted = torch.cat([score[..., :2], values], dim=-1)
        return score, values, wanted, torch.ones(8, 16, dtype=torch.bool)

    for _ in range(150):
        optimizer.zero_grad()
        loss, _, _ = prior.loss(*batch())
        loss.backward()
        optimizer.step()
    score, values, wanted, mask = batch()
    with torch.no_grad():
        blind = prior(score, values, torch.zeros(8, dtype=torch.bool), mask)
        seeing = prior(score, values, torch.ones(8, dtype=torch.bool), mask)
    error = [(mean - wanted).square().mean(dim=(0, 1)) for mean, _ in (blind, seeing)]
    assert error[0][:2].max() < 0.3
    assert error[0][2:].min() > 0.7
    assert error[1].max() < 0.5
    assert blind[1][..., :2].mean() < blind[1][..., 2:].mean(), "it knows what it does not know"
    other = values + 10 * torch.randn_like(values)
    torch.testing.assert_close(prior(score, other, torch.zeros(8, dtype=torch.bool), mask)[0], blind[0])


def test_the_symbolic_prior_is_a_line():
    torch.manual_seed(0)
    prior, written = SymbolicPrior(), torch.randn(2000, 7)
    performed = torch.linspace(0, 1, 7) * written + 0.3 + 0.1 * torch.randn(2000, 7)
    prior.fit(written, performed)
    # Shrunk by a tenth of the variance.
    torch.testing.assert_close(prior.slope, torch.linspace(0, 1, 7) / 1.1, atol=0.02, rtol=0)
    torch.testing.assert_close(prior.offset, torch.full((7,), 0.3), atol=0.02, rtol=0)
    assert prior.sigma[0] == pytest.approx(0.1, abs=0.01)
