"""Whole scores: every note, one performance over all windows, and what a user may ask for."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midisynth import render
from midisynth.errors import UsageError
from midisynth.models.dexter import DExter
from midisynth.models.dexter.expression import CHANNELS
from midisynth.models.dexter.midlevel import MIDLEVEL
from midisynth.models.dexter.rendering import Source, kept, midlevel_of, perform, sample_piece
from midisynth.models.dexter.windows import Windows
from midisynth.music.alignment_files import read_match
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.score import read_score_notes
from midisynth.music.score_notes import Score

ROOT = Path(__file__).resolve().parents[3]
VIENNA = ROOT / "examples" / "vienna4x22"
SCORE = VIENNA / "musicxml" / "Schubert_D783_no15.musicxml"
MATCH = VIENNA / "match" / "Schubert_D783_no15_p01.match"
TINY: dict[str, Any] = {"channels": 16, "layers": 4, "window": 64, "overlap": 16, "sample_steps": 4}


def model_of(**options: Any) -> DExter:
    """A small model whose random network says something, with scales as people play."""
    torch.manual_seed(0)
    model = DExter(**{**TINY, "objective": "x0", **options}).eval()
    with torch.no_grad():
        model.network.output_projection.weight.normal_(0, 0.3)
        model.mean.copy_(torch.tensor([0.0, 0.0, 0.0, -0.4, 0.5]))
        model.std.copy_(torch.tensor([0.3, 0.1, 0.02, 0.6, 0.3]))
        model.levels.offset.copy_(torch.tensor([-1.0, 0.5]))
    return model


def draws(seed: int = 0):
    """Draws as `Noise` gives them."""

    def draw(number: int, shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * seed + number))

    return draw


def values_of(model: DExter, piece: dict[str, Any], seed: int = 0) -> np.ndarray:
    """Performance parameters of a piece without a source, [notes, 5]."""
    return sample_piece(model, piece, draws(seed), midlevel_of(model, piece, None))


@pytest.fixture(scope="module")
def score() -> Score:
    return read_score_notes(SCORE)


@pytest.fixture(scope="module")
def piece() -> dict[str, Any]:
    return model_of().codec.encode(SCORE)


@pytest.mark.parametrize("denoiser", ["diffwave", "unet"])
@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
def test_every_note_is_played(denoiser: str, objective: str, piece: dict[str, Any]):
    small = {**TINY, "dim": 8, "multipliers": [1, 2], "sample_steps": 2}
    model = DExter(**small, denoiser=denoiser, objective=objective).eval()
    performance = perform(model, piece, draws()).performance
    assert len(performance.notes) == len(piece["score"].notes)
    np.testing.assert_array_equal(np.sort(performance.notes["pitch"]), np.sort(piece["score"].notes["pitch"]))
    assert performance.notes["duration_sec"].min() > 0


@pytest.mark.parametrize("options", [{"null": "learned"}, {"denoiser": "unet", "dim": 8, "multipliers": [1, 2]}])
@pytest.mark.parametrize("notes", [7, 100])
def test_published_networks_play_pieces_of_any_length(options: dict[str, Any], notes: int, piece: dict[str, Any]):
    published = {"compat": "2024", "features": "published", "midlevel": None, "objective": "epsilon"}
    model = DExter(**{**TINY, "sample_steps": 2, **published, **options}).eval()
    score = model.codec.encode(SCORE)["features"][:notes]
    values = values_of(model, {**piece, "features": score, "written": piece["written"][:notes]})
    assert values.shape == (notes, 5)
    assert np.isfinite(values).all()


def test_memory_does_not_grow_with_the_piece(piece: dict[str, Any]):
    """10,000 notes in batches of 8 windows: what the network needs at once is what 500 notes need."""
    model = model_of(window=200, overlap=50)
    largest = 0
    denoise = model.network.denoise

    def watched(x, t, conditioned):
        nonlocal largest
        largest = max(largest, x.shape[0])
        assert conditioned.rows <= 16
        return denoise(x, t, conditioned)

    model.network.denoise = watched
    features = np.resize(piece["features"], (10_000, piece["features"].shape[1]))
    written = np.resize(piece["written"], (10_000, len(MIDLEVEL)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = values_of(model, {**piece, "features": features, "written": written})
    assert values.shape == (10_000, len(CHANNELS))
    assert np.isfinite(values).all()
    assert largest == 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_the_tempo_does_not_jump_where_windows_meet(piece: dict[str, Any]):
    """Steps of the tempo at the edges of windows, beside those elsewhere; windows that share nothing do jump.

    To what the network says, the mean of all that it sees is added: windows that are sampled apart drift apart.
    """
    steps = {}
    for overlap in (0, 16):
        model = model_of(guidance=1.0, midlevel=None, overlap=overlap)
        denoise = model.network.denoise
        model.network.denoise = lambda x, t, c, d=denoise: d(x, t, c) + 3 * x.mean(dim=1, keepdim=True)
        tempo = np.mean([values_of(model, piece, seed)[:, 0] for seed in range(2)], axis=0)
        windows = Windows(len(tempo), 64, overlap)
        edges = np.unique(np.concatenate([windows.rows[1:, 0].numpy(), windows.rows[:-1, -1].numpy() + 1]))
        # The difference of the levels to both sides of a note.
        level = np.convolve(tempo, np.ones(4) / 4, "valid")
        step = np.abs(level[4:] - level[:-4])
        at_edges = np.isin(np.arange(len(step)) + 4, edges)
        steps[overlap] = step[at_edges].mean() / step[~at_edges].mean()
    assert steps[0] > 2, "the test must be able to fail"
    assert steps[16] < 1.5


def test_seeds_and_copies(piece: dict[str, Any], tmp_path: Path):
    model = model_of()
    report = render.predict(model, [SCORE], tmp_path / "out", count=2)
    again = render.predict(model, [SCORE], tmp_path / "again", count=2)
    other = render.predict(model, [SCORE], tmp_path / "other", count=2, seed=1)
    contents = [[o.output.read_bytes() for o in r.outcomes] for r in (report, again, other)]
    assert contents[0] == contents[1]
    assert len({*contents[0], *contents[2]}) == 4
    read = read_midi(report.outcomes[0].output)
    assert len(read.notes) == report.outcomes[0].report["notes"] == len(piece["score"].notes)


def test_temperature_is_the_scale_of_the_first_noise(piece: dict[str, Any]):
    spread = []
    for temperature in (0.2, 1.0):
        model = model_of(temperature=temperature, objective="epsilon")
        spread.append(np.std([values_of(model, piece, seed)[:, 0] for seed in range(4)], axis=0))
    assert spread[0].mean() < 0.4 * spread[1].mean()
    still = model_of(temperature=0.0)
    np.testing.assert_array_equal(values_of(still, piece, 0), values_of(still, piece, 1))


@pytest.mark.parametrize(("bpm", "dynamics", "velocity"), [(50, "p", 49), (200.5, 90, 90)])
def test_tempo_and_dynamics(bpm: float, dynamics: Any, velocity: int, piece: dict[str, Any]):
    rendering = perform(model_of(tempo=bpm, dynamics=dynamics), piece, draws())
    report, free = rendering.report, perform(model_of(), piece, draws()).report
    # The pianist may hold the last note: its end is not where the tempo puts it.
    assert report["mean_tempo_bpm"] == pytest.approx(bpm, rel=0.03)
    assert report["mean_velocity"] == pytest.approx(velocity, abs=1)
    assert abs(free["mean_tempo_bpm"] - bpm) > 10


def test_steering_moves_what_it_is_told_to(piece: dict[str, Any]):
    model, steered = model_of(), model_of(steer={"articulation": 1.0, "minorness": [[1, -1.0], [9, 0.5]]})
    plain, moved = (midlevel_of(one, piece, None) for one in (model, steered))
    offset = (moved - plain).numpy()
    np.testing.assert_allclose(offset[:, MIDLEVEL.index("articulation")], 1.0, atol=1e-6)
    minorness = offset[:, MIDLEVEL.index("minorness")]
    assert -1 <= minorness[0] < -0.8  # the pick-up is the end of its bar
    assert minorness[-1] == pytest.approx(0.5)
    assert np.abs(np.delete(offset, [MIDLEVEL.index(n) for n in ("articulation", "minorness")], axis=1)).max() == 0
    report = perform(steered, piece, draws()).report["midlevel"]
    assert sorted(report) == sorted(MIDLEVEL)
    assert report["articulation"]["asked"] == pytest.approx(plain[:, 1].mean().item() + 1, abs=0.01)
    assert not np.array_equal(values_of(model, piece), values_of(steered, piece))
    with pytest.raises(UsageError, match="without mid-level"):
        midlevel_of(model_of(midlevel=None, steer={"articulation": 1.0}), piece, None)


@pytest.mark.parametrize("midlevel", ["symbolic", "learned"])
def test_midlevel_of_a_score_is_finite_and_has_its_notes(midlevel: str, piece: dict[str, Any]):
    expected = midlevel_of(model_of(midlevel=midlevel), piece, None)
    assert expected.shape == (len(piece["features"]), len(MIDLEVEL))
    assert expected.isfinite().all()


# A performance to start from


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_transfer_goes_as_far_from_its_source_as_it_is_told_to(fraction: float):
    torch.manual_seed(0)
    model = model_of(source=str(MATCH), sample_steps_frac=fraction, objective="epsilon")
    piece = model.codec.encode(SCORE)
    human = read_score_notes(SCORE)
    assert len(human.notes) == len(piece["source"]["values"])
    rendering = perform(model, piece, draws())
    assert len(rendering.performance.notes) == len(human.notes)
    distance = distance_from_source(model, piece)
    if fraction == 0:
        assert distance < 1e-5
    else:
        nearer = model_of(source=str(MATCH), sample_steps_frac=fraction / 2, objective="epsilon")
        assert 0 < distance_from_source(nearer, piece) < distance


def distance_from_source(model: DExter, piece: dict[str, Any]) -> float:
    """Mean distance of a rendering from its source, in standard deviations."""
    source = Source.of(model, piece)
    values = sample_piece(model, piece, draws(), midlevel_of(model, piece, source), source)
    return float((np.abs(values - piece["source"]["values"]) / model.std.numpy()).mean())


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver"])
def test_transfer_with_a_model_trained_for_it(solver: str):
    model = model_of(source=str(MATCH), target="transfer", beta_end=0.2, solver=solver)
    piece = model.codec.encode(SCORE)
    first, second = (perform(model, piece, draws(seed)).performance for seed in (0, 1))
    assert len(first.notes) == len(piece["score"].notes)
    np.testing.assert_array_equal(first.notes, second.notes)  # no noise is drawn
    del piece["source"]
    with pytest.raises(UsageError, match=r"name one of the same score with --model\.source"):
        perform(model, piece, draws())


def test_a_midi_file_is_aligned(tmp_path: Path):
    pytest.importorskip("parangonar")
    write_midi(read_match(MATCH).performance, tmp_path / "human.mid")
    piece = model_of(source=str(tmp_path / "human.mid")).codec.encode(SCORE)
    matched = piece["source"]["matched"]
    assert matched.mean() > 0.9
    by_file = model_of(source=str(MATCH)).codec.encode(SCORE)["source"]["values"]
    assert np.median(np.abs(piece["source"]["values"] - by_file)[matched]) < 1e-3


def test_channels_and_bars_are_kept(score: Score):
    model = model_of(source=str(MATCH), keep=["velocity"], bars="3-4, 7")
    piece = model.codec.encode(SCORE)
    source = Source.of(model, piece)
    values = sample_piece(model, piece, draws(), midlevel_of(model, piece, source), source)
    given, matched = piece["source"]["values"], piece["source"]["matched"]
    anew = np.isin(score.notes["bar"] + 1, [3, 4, 7])
    np.testing.assert_allclose(values[matched & ~anew], given[matched & ~anew], atol=1e-5)
    np.testing.assert_allclose(values[matched, 1], given[matched, 1], atol=1e-6)
    changed = np.abs(values - given)[anew & matched]
    assert (np.delete(changed, 1, axis=1).mean(axis=0) > 1e-3).all()


@pytest.mark.parametrize("bars", ["x", "1-", "1,,2", "1 2"])
def test_bars_that_are_none(bars: str, score: Score):
    with pytest.raises(UsageError, match="is no span of bars"):
        kept(score, np.ones(len(score.notes), bool), None, bars)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"overlap": 64}, "overlap is 64"),
        ({"target": "transfer", "solver": "ddpm"}, "adds no noise"),
        ({"sample_steps_frac": 1.5}, "it is a share"),
        ({"keep": ["loudness"], "source": "x.mid"}, "no channel 'loudness'"),
        ({"bars": "1-2"}, "name it with source"),
        ({"compat": "2024", "midlevel": None}, "features published"),
        ({"compat": "2024", "features": "published", "objective": "epsilon"}, "set midlevel to null"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], complaint: str):
    with pytest.raises(UsageError, match=complaint):
        model_of(**options)
