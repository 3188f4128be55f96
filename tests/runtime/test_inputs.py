"""Which files are meant, and names of outputs: none lost, none twice, none outside the output folder."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from midisynth_sines import Octaves, Sines

from midisynth.errors import UsageError
from midisynth.inputs import Source, expand_inputs, plan, plan_pieces
from midisynth.render import predict

READS = (".mid", ".midi")


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return [folder / name for name in names]


def found(*inputs: object) -> list[str]:
    sources, errors = expand_inputs([str(i) for i in inputs], READS)
    assert not errors
    return [source.path.name for source in sources]


def outputs(sources: list[Source], output: object = None, count: int = 1) -> list[Path]:
    return [task.output for task in plan(sources, output, ".wav", (".wav", ".flac", ".ogg"), count)]


def test_folders_are_searched_and_give_what_the_model_reads(tmp_path: Path):
    touch(tmp_path, "b.mid", "a.MIDI", "sub/c.mid", "notes.txt", "sub/.hidden.mid")
    assert found(tmp_path) == ["a.MIDI", "b.mid", "c.mid"]


def test_patterns_and_names_that_look_like_patterns(tmp_path: Path):
    touch(tmp_path, "a1.mid", "a2.mid", "b.mid", "x[1].mid", "deep/er/c.mid", "a.txt")
    assert found(tmp_path / "a*") == ["a1.mid", "a2.mid"]
    assert found(tmp_path / "x[1].mid") == ["x[1].mid"]
    assert "c.mid" in found(tmp_path / "**/*.mid")


def test_a_file_that_comes_up_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (path,) = touch(tmp_path, "a.mid")
    monkeypatch.chdir(tmp_path)
    assert found(path, "a.mid", tmp_path, "./*.mid") == ["a.mid"]


def test_links_in_a_circle_end(tmp_path: Path):
    touch(tmp_path, "in/a.mid", "in/sub/b.mid", "elsewhere/c.mid")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "self.mid").symlink_to("self.mid")
    assert found(tmp_path / "in") == ["a.mid", "c.mid", "b.mid"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.mid", "no such file"),
        ("none*.mid", "no files with the suffix .mid or .midi there"),
        ("empty", "no files with the suffix .mid or .midi there"),
        ("pipe.mid", "is not a file"),
        ("song.mp3", "is not read by this model, which reads .mid, .midi"),
        ("x" * 300 + ".mid", "cannot be read (File name too long)"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_rest_goes_on(name: str, reason: str, tmp_path: Path):
    touch(tmp_path, "good.mid", "song.mp3")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.mid")
    sources, errors = expand_inputs([str(tmp_path / name), str(tmp_path / "good.mid")], READS)
    assert [source.path.name for source in sources] == ["good.mid"]
    assert [error.reason for error in errors] == [reason]


def test_foreign_files_alone_are_a_usage_error(tmp_path: Path):
    (path,) = touch(tmp_path, "song.mp3")
    with pytest.raises(UsageError, match=r"song.mp3: is not read by this model, which reads .mid, .midi"):
        expand_inputs([str(path)], READS)


def test_output_is_beside_the_input_or_in_a_folder_or_a_file(tmp_path: Path):
    source = Source(tmp_path / "in" / "song.mid")
    assert outputs([source]) == [tmp_path / "in" / "song.wav"]
    assert outputs([source], tmp_path / "out") == [tmp_path / "out" / "song.wav"]
    assert outputs([source], tmp_path / "v1.2") == [tmp_path / "v1.2" / "song.wav"]
    assert outputs([source], tmp_path / "take.flac") == [tmp_path / "take.flac"]
    assert outputs([source], f"{tmp_path}/odd.wav/") == [tmp_path / "odd.wav" / "song.wav"]
    assert outputs([source], tmp_path, count=2) == [tmp_path / "song-1.wav", tmp_path / "song-2.wav"]
    with pytest.raises(UsageError, match=r"this model writes .wav, .flac, .ogg, not .mp3"):
        outputs([source], tmp_path / "take.mp3")
    with pytest.raises(UsageError, match="2 outputs need a folder"):
        outputs([source], tmp_path / "take.wav", count=2)


def test_pieces_of_a_composer_are_numbered(tmp_path: Path):
    tasks = plan_pieces(tmp_path, "scales", ".wav", (".wav",), 3)
    assert [task.output.name for task in tasks] == ["scales-1.wav", "scales-2.wav", "scales-3.wav"]
    assert plan_pieces(tmp_path / "one.wav", "scales", ".wav", (".wav",), 1)[0].output == tmp_path / "one.wav"


def test_a_searched_folder_keeps_its_shape(tmp_path: Path):
    touch(tmp_path, "in/a/song.mid", "in/b/song.mid", "in/song.mid")
    sources, _ = expand_inputs([str(tmp_path / "in")], READS)
    names = {str(path.relative_to(tmp_path / "out")) for path in outputs(sources, tmp_path / "out")}
    assert names == {"song.wav", "a/song.wav", "b/song.wav"}


def test_clashing_names_get_more_of_their_path_in_any_order(tmp_path: Path):
    paths = touch(
        tmp_path, "a/song.mid", "b/song.mid", "b/other.mid", "b/twin.mid", "b/twin.midi", "b/Case.mid", "b/case.midi"
    )
    names = {}
    for seed in range(5):
        random.Random(seed).shuffle(paths)
        planned = outputs([Source(path) for path in paths], tmp_path / "out")
        names[seed] = {
            path.relative_to(tmp_path): out.relative_to(tmp_path) for path, out in zip(paths, planned, strict=True)
        }
    assert all(found == names[0] for found in names.values())
    assert {str(name) for name in names[0].values()} == {
        "out/a/song.wav",
        "out/b/song.wav",
        "out/other.wav",
        "out/b/twin.mid.wav",
        "out/b/twin.midi.wav",
        "out/b/Case.mid.wav",
        "out/b/case.midi.wav",
    }


def test_names_never_clash_whatever_they_are(tmp_path: Path):
    """Accents composed or not, names that look like the result of a disambiguation, and very long ones."""
    names = ["e\u0301.mid", "\u00e9.mid", "x.mid", "x.midi", "x.mid.mid", "sub/x.mid", "sub/x.midi", "sub/sub/x.mid"]
    names += ["l" * 251 + ".mid", "l" * 250 + "m.mid", "l" * 250 + ".midi", "ü" * 125 + ".mid", "日" * 83 + ".mid"]
    paths = touch(tmp_path, *names)
    planned = outputs([Source(path) for path in paths], tmp_path / "out")
    assert len({str(path).casefold() for path in planned}) == len(names)
    assert all(path.is_relative_to(tmp_path / "out") and ".." not in path.parts for path in planned)
    assert max(len(os.fsencode(path.name)) for path in planned) <= 210


def test_paths_with_dots_stay_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "up.mid", "work/here/a.mid")
    monkeypatch.chdir(tmp_path / "work" / "here")
    for name in ("../../up.mid", str(tmp_path / "up.mid"), "../here/../../up.mid"):
        assert outputs([Source(Path(name))], "out") == [Path("out/up.wav")]


def test_odd_names_are_rendered_and_none_is_lost(tmp_path: Path, write_notes):
    names = [
        "with space",
        "hash#tag",
        "per%20cent",
        "日本語",
        "e\u0301",
        "quote'\"",
        "-dash",
        "n\new line",
        "a\\b",
        "w" * 251,
    ]
    names += [os.fsdecode(b"not\xffutf8")]
    for pitch, name in enumerate(names, start=50):
        source = write_notes(tmp_path / "short.mid", [pitch])
        (tmp_path / "in").mkdir(exist_ok=True)
        source.rename(tmp_path / "in" / f"{name}.mid")
    report = predict(Sines(), tmp_path / "in", tmp_path / "out")
    assert not report.failed, report.text()
    made = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(made) == len(names) == len({path.read_bytes() for path in made})
    report.text().encode()


def test_nothing_is_written_through_a_link_that_leaves_the_folder(tmp_path: Path, write_notes):
    write_notes(tmp_path / "in" / "sub" / "a.mid")
    (tmp_path / "away").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "away")
    (failed,) = predict(Sines(), tmp_path / "in", tmp_path / "out").failed
    assert "outside the output folder" in failed.reason
    assert not list((tmp_path / "away").iterdir())


def test_an_output_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path, write_notes):
    source = write_notes(tmp_path / "a.mid")
    precious = tmp_path / "precious.wav"
    precious.write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.wav").symlink_to(precious)
    assert len(predict(Sines(), source, tmp_path / "out").written) == 1
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "out" / "a.wav").is_symlink()


def test_an_input_is_never_overwritten(tmp_path: Path, write_notes):
    source = write_notes(tmp_path / "a.mid")
    before = source.read_bytes()
    for output in (None, tmp_path, f"{tmp_path}/../{tmp_path.name}/"):
        (written,) = predict(Octaves(), source, output).written
        assert written.output.name == "a-rendered.mid"
        written.output.unlink()
    with pytest.raises(UsageError, match="that is the input"):
        predict(Octaves(), source, source)
    assert source.read_bytes() == before


def test_a_recording_beside_the_input_is_never_overwritten(tmp_path: Path, write_notes):
    source = write_notes(tmp_path / "a.mid")
    (tmp_path / "a.wav").write_bytes(b"RIFF a recording of the piece")
    (failed,) = predict(Sines(), source).failed
    assert "was not made by midisynth" in failed.reason
    assert (tmp_path / "a.wav").read_bytes() == b"RIFF a recording of the piece"
    (tmp_path / "a.wav").unlink()
    for _ in range(2):  # what we made ourselves is made anew
        assert len(predict(Sines(), source).written) == 1
