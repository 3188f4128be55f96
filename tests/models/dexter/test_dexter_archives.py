"""Training data in the published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from midisynth.errors import DataError
from midisynth.models.dexter import DExter, DExterArchives, DExterData
from midisynth.models.dexter.archives import read_archive
from midisynth.models.dexter.codec import DExterCodec
from midisynth.models.dexter.published_data import TransferPairs, channel_statistics, segments, swapped_pairs
from midisynth.music.alignment_files import read_match

EXAMPLES = Path(__file__).parents[3] / "examples" / "vienna4x22"
h5py = pytest.importorskip("h5py")

NOTES, LENGTH = 118, 50


def write_group(file, name: str, performances: list[np.ndarray], split: str = "train") -> None:
    """As the original does: a performance and its mixes behind each other, padded, one text for every window."""
    score = np.stack([np.arange(NOTES) * 4, np.full(NOTES, 4), np.full(NOTES, 60), np.ones(NOTES)], axis=1).astype(
        np.int32
    )
    windows = [segments(values.astype(np.float32), LENGTH) for values in performances]
    group = file.create_group(name)
    group["p_codec"] = np.concatenate(windows)
    group["s_codec"] = np.concatenate([segments(score, LENGTH)] * len(windows))
    group["c_codec"] = np.zeros((len(group["p_codec"]), LENGTH, 7))
    count = len(windows[0])
    texts = {
        "piece_name": [f"piece{'_mixup' * (number > 0)}" for number in range(len(windows)) for _ in range(count)],
        "score_path": ["scores/piece.musicxml"] * (count * len(windows)),
        "split": [split] * (count * len(windows)),
        "snote_id_path": ["ids.npy"] * (count * len(windows)),
    }
    for key, column in texts.items():
        group.create_dataset(key, data=column, dtype=h5py.string_dtype())


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "codec_N=50_mixup.hdf5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(0).normal(size=(3, NOTES, 5))
        write_group(file, "VIENNA422_0", list(values))
        write_group(file, "VIENNA422_1", list(values[:1]), "test")
        file.create_group("VIENNA422_2")["error"] = "no such file"
    return path


def test_pieces_come_whole_from_their_windows(archive):
    with pytest.warns(UserWarning, match="1 performances"):
        found = list(read_archive(archive))
    values = np.random.default_rng(0).normal(size=(3, NOTES, 5)).astype(np.float32)
    assert [piece.is_mix for piece in found] == [False, True, True, False]
    assert [piece.split for piece in found] == ["train"] * 3 + ["test"]
    assert {piece.piece for piece in found} == {"piece"} and len({piece.name for piece in found}) == 4
    for piece, expected in zip(found, [*values, values[0]], strict=True):
        assert np.array_equal(piece.values, expected)
        assert piece.features.shape == (NOTES, 4) and piece.midlevel.shape == (NOTES, 7)
        assert piece.features[-1, 0] == 4 * (NOTES - 1)


def test_performances_have_the_arrays_that_training_takes(archive):
    with pytest.warns(UserWarning):
        arrays = [piece.arrays() for piece in read_archive(archive)]
    match = EXAMPLES / "match" / "Schubert_D783_no15_p01.match"
    expected = DExterCodec("published", compat="2024").encode_performance(read_match(match))
    for piece in arrays:
        assert {name: array.dtype for name, array in piece.items()} == {n: a.dtype for n, a in expected.items()}
        assert {name: array.shape[1:] for name, array in piece.items()} == {n: a.shape[1:] for n, a in expected.items()}
        assert np.array_equal(piece["score_hash"], arrays[0]["score_hash"])


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.hdf5"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="not an HDF5 file"):
        list(read_archive(path))
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DataError, match="no prepared performances"):
        list(read_archive(path))
    with h5py.File(path, "w") as file:
        file.create_group("a")["p_codec"] = np.zeros((1, 50, 5))
    with pytest.raises(DataError, match="has no 's_codec'"):
        list(read_archive(path))


def test_groups_that_do_not_fit_are_refused(archive):
    with h5py.File(archive, "a") as file:
        del file["VIENNA422_0/c_codec"]
        file["VIENNA422_0/c_codec"] = np.zeros((1, 50, 7))
    with pytest.raises(DataError, match="c_codec of group 'VIENNA422_0' has shape"):
        list(read_archive(archive))


def test_pairs_are_counted_without_a_list():
    """As many as the full data of the original has."""
    windows = [("a", 0), ("a", 1), ("a", 0), ("b", 0), ("a", 0)]
    pairs = TransferPairs(windows)
    assert list(pairs) == [(0, 2), (0, 4), (2, 0), (2, 4), (4, 0), (4, 2)]
    assert pairs.unpaired == [1, 3]
    many = TransferPairs(np.repeat(np.arange(1000), 50).tolist())
    assert len(many) == 1000 * 50 * 49
    assert many[len(many) - 1] == (49_999, 49_998)
    assert len(TransferPairs([1, 2])) == 0
    with pytest.raises(IndexError):
        pairs[6]


def test_padding_does_not_count_where_it_is_masked():
    windows = np.zeros((2, 4, 5))
    windows[:, :3] = np.random.default_rng(0).normal(size=(2, 3, 5))
    mask = np.arange(4) < 3
    mean, std = channel_statistics(windows, np.stack([mask, mask]))
    np.testing.assert_allclose(mean, windows[:, :3].mean((0, 1)))
    np.testing.assert_allclose(std, windows[:, :3].std((0, 1)))


def test_an_odd_batch_has_no_pairs():
    with pytest.raises(ValueError, match="not made of pairs"):
        swapped_pairs(3)


def test_archives_are_a_corpus(archive, tmp_path):
    model = DExter(channels=8, layers=1, window=32, overlap=0, features="published", midlevel=None, compat="2024")
    data = DExterData({"dexter_archives": str(archive.parent)}, batch_size=2, cache_dir=str(tmp_path / "cache"))
    data.connect(model)
    with pytest.warns(UserWarning, match="1 performances"):
        data.prepare(workers=1, progress=False)
        data.setup("fit")
    example = data.dataset("train")[0]
    assert example["values"].shape == (32, 5) and example["score"].shape == (32, 4)
    assert len(data.parts("train")[0].prepared) + len(data.parts("validation")[0].prepared) == 3
    without = DExterArchives(str(archive.parent), mixes=False)
    with pytest.warns(UserWarning):
        records = without.records()
    assert [record.split for record in records if record.split != "validation"][-1] == "test" and len(records) == 2
    with pytest.raises(DataError, match="an archive is for training"):
        records[0].aligned()
    data.connect(DExter(channels=8, layers=1))
    with pytest.raises(DataError, match="set these"), pytest.warns(UserWarning):
        data._opened.clear()
        data.prepare(workers=1, progress=False)
    with pytest.raises(DataError, match=r"no \*.hdf5"):
        DExterArchives(str(tmp_path / "cache")).records()
