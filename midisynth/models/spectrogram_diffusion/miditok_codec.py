"""Tokens by MidiTok (Fradet et al. 2021) in place of the published events.

MidiTok counts beats, segments are cut in seconds: here a beat is half a second (MIDI's own tempo, 120 to the minute)
whatever the tempo of the piece, so that a token means the same time everywhere. Notes are cut to the segment.

MidiTok has no notes that began before its music does. The notes that are held into a segment come first, as notes at
its start with what is left of them, then an id of our own ends this tie section as it does in the published tokens,
and the notes that begin in the segment follow on a clock that starts anew. So a held note differs from a struck one,
and keeps its velocity, for every MidiTok class alike.
"""

from __future__ import annotations

import inspect
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midisynth.errors import UsageError
from midisynth.music.notes import is_drum

if TYPE_CHECKING:
    from miditok import MusicTokenizer

SECONDS_PER_BEAT = 0.5
#: Positions in a beat unless the options say otherwise: 1/100 s, as in the published tokens.
POSITIONS_PER_BEAT = 50


class MidiTokTokens:
    """A MidiTok tokenizer for segments.

    Args:
        settings: The name of a MidiTok class whose tokens form one sequence, such as REMI, TSD or MIDILike; or a
            mapping of "tokenization", that name, and options of `miditok.TokenizerConfig`; or the path of a
            `tokenizer.json`; or its content.
        segment_sec: Length of a segment (seconds).

    Attributes:
        content: What `tokenizer.json` would hold: all that is needed to build the same tokenizer again.

    Raises:
        UsageError: MidiTok is missing, or the settings do not describe a tokenizer that can be used here.
    """

    def __init__(self, settings: Mapping[str, Any] | str, segment_sec: float):
        self._segment_sec = segment_sec
        if isinstance(settings, str):
            settings = _read_json(settings) if settings.endswith(".json") else {"tokenization": settings}
        self._tokenizer = _load(settings) if "config" in settings else _build(settings, segment_sec)
        self.content = _content(self._tokenizer)

    def __len__(self) -> int:
        """Number of ids: MidiTok's, and the one that ends the tie section."""
        return len(self._tokenizer) + 1

    @property
    def tie(self) -> int:
        """Id that ends the tie section."""
        return len(self._tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        # A tokenizer that was trained holds functions of its libraries, which cannot go to loader processes.
        return {"content": self.content, "_segment_sec": self._segment_sec}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _tokenizer=_load(state["content"]))

    def segment(self, notes: np.ndarray, start_sec: float) -> list[int]:
        """Tokens of the segment that starts at `start_sec`.

        Args:
            notes: [notes] of `NOTE_DTYPE`, after the pedal has been applied.
            start_sec: Start of the segment (seconds).
        """
        onset_sec = notes["onset_sec"] - start_sec
        end_sec = np.minimum(onset_sec + notes["duration_sec"], self._segment_sec)
        # A note that is over within half a position of the start is not held.
        tied = (onset_sec < 0) & (self._positions(end_sec) > 0) & ~is_drum(notes)
        struck = (onset_sec >= 0) & (onset_sec < self._segment_sec)
        held = self._encode(notes[tied], np.zeros(int(tied.sum())), end_sec[tied])
        return [*held, self.tie, *self._encode(notes[struck], onset_sec[struck], end_sec[struck])]

    def _positions(self, seconds: np.ndarray) -> np.ndarray:
        return np.rint(seconds / SECONDS_PER_BEAT * self._tokenizer.config.max_num_pos_per_beat).astype(np.int32)

    def _encode(self, notes: np.ndarray, onset_sec: np.ndarray, end_sec: np.ndarray) -> Sequence[int]:
        """MidiTok's ids of notes at the given times (seconds from the start of the segment)."""
        if len(notes) == 0:
            return []
        from symusic import Note, Score, Track

        score = Score(self._tokenizer.config.max_num_pos_per_beat)
        begin = self._positions(onset_sec)
        length = np.maximum(self._positions(end_sec) - begin, 1)
        drum = is_drum(notes)
        instrument = np.where(drum, -1, notes["program"])
        for program in np.unique(instrument).tolist():
            chosen = instrument == program
            columns = (begin, length, notes["pitch"].astype(np.int8), notes["velocity"].astype(np.int8))
            track = Track(program=max(program, 0), is_drum=program == -1)
            track.notes = Note.from_numpy(*(np.ascontiguousarray(column[chosen]) for column in columns))
            score.tracks.append(track)
        return self._tokenizer.encode(score).ids


def _import() -> Any:
    try:
        import miditok
    except ImportError as error:
        raise UsageError(
            "this tokenizer needs the package miditok: pip install 'midisynth-lightning[miditok]'"
        ) from error
    return miditok


def _tokenizer_class(name: Any) -> type[MusicTokenizer]:
    miditok = _import()
    found = getattr(miditok, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, miditok.MusicTokenizer)):
        raise UsageError(
            f"tokenizer {name}: neither events, nor a class of MidiTok such as REMI, TSD or MIDILike, nor a .json file"
        )
    return found


def _build(settings: Mapping[str, Any], segment_sec: float) -> MusicTokenizer:
    """A tokenizer from the name of its class and options."""
    miditok = _import()
    options = dict(settings)
    build = _tokenizer_class(options.pop("tokenization", "REMI"))
    known = set(inspect.signature(miditok.TokenizerConfig).parameters) - {"kwargs"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"tokenizer.{unknown[0]}: miditok.TokenizerConfig has no such option")
    beats = math.ceil(segment_sec / SECONDS_PER_BEAT)
    defaults = {
        "pitch_range": (0, 127),
        "drums_pitch_range": (0, 127),
        "beat_res": {(0, beats): POSITIONS_PER_BEAT},
        "special_tokens": ["PAD"],
        "use_programs": True,
        "use_time_signatures": False,
    }
    if "beat_res" in options:
        options["beat_res"] = {_beat_range(key): value for key, value in options["beat_res"].items()}
    try:
        return _checked(build(miditok.TokenizerConfig(**(defaults | options))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"tokenizer: {build.__name__} does not take these options: {error}") from error


def _beat_range(key: Any) -> tuple[int, int]:
    """Range of beats from its form in tokenizer.json, "0_4"."""
    parts = str(key).split("_")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UsageError(f"tokenizer.beat_res has the key {key!r}: write ranges of beats as 0_4")
    return int(parts[0]), int(parts[1])


def _load(content: Mapping[str, Any]) -> MusicTokenizer:
    """A tokenizer from the content of a tokenizer.json; MidiTok reads it from a file alone."""
    build = _tokenizer_class(content.get("tokenization"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(json.dumps(content))
        try:
            return _checked(build(params=path))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"tokenizer: no tokenizer can be built from this tokenizer.json: {error}") from error


def _content(tokenizer: MusicTokenizer) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        tokenizer.save(path)
        return json.loads(path.read_text())


def _checked(tokenizer: MusicTokenizer) -> MusicTokenizer:
    name = type(tokenizer).__name__
    if tokenizer.is_multi_voc:
        raise UsageError(f"tokenizer: {name} makes several ids at once, the model takes one: use REMI, TSD or MIDILike")
    if not tokenizer.one_token_stream:
        raise UsageError(f"tokenizer: {name} makes a sequence for each instrument: set use_programs to true")
    if tokenizer.pad_token_id != 0:
        raise UsageError(f"tokenizer: the id of PAD is {tokenizer.pad_token_id}, which pads batches: it must be 0")
    return tokenizer


def _read_json(path: str) -> Mapping[str, Any]:
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"tokenizer: {path} cannot be read as the tokenizer.json of MidiTok: {error}") from error
    if not isinstance(content, dict) or "config" not in content:
        raise UsageError(f"tokenizer: {path} is not a tokenizer.json of MidiTok: it has no config")
    return content
