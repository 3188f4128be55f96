"""Scores (MusicXML, compressed MusicXML, MEI) to `Performance`: what the page says, played without expression.

partitura does the reading. It accepts impossible octaves, divisions and durations, and fails in many ways on damaged
files, so that every file passes one scan of ours first, which also keeps entities and archive bombs away from it.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

import numpy as np

from midisynth.errors import ScoreError
from midisynth.music.clock import DEFAULT_USEC_PER_QUARTER, TempoMap
from midisynth.music.notes import (
    DRUM_CHANNEL,
    KEY_SIGNATURE_DTYPE,
    NOTE_DTYPE,
    TIME_SIGNATURE_DTYPE,
    Performance,
)

if TYPE_CHECKING:
    from partitura.score import Part

_MAX_BYTES = 64 * 2**20  # of XML, unpacked; the longest real scores have a quarter of it
_MAX_QUARTERS = 4096  # of one note
_VELOCITY = 64  # a score says nothing of it here
_GRACE_SHARE = 8  # grace notes last an eighth of a quarter note


def read_score(path: str | os.PathLike[str], *, repeats: bool = True, max_duration_sec: float = 7200.0) -> Performance:
    """Read a score as strictly quantised notes at its own tempo (120 quarters a minute where it has none).

    Every part becomes a track with program 0, every note has velocity 64, grace notes sound with their main note.

    Args:
        path: .musicxml, .xml, .mxl or .mei file.
        repeats: Play repeats, voltas and da capo as a player would; otherwise read the page once.
        max_duration_sec: Longest score that is accepted (seconds).

    Raises:
        ScoreError: The file cannot be read, or is refused; the text names the cause.
    """
    path = os.fspath(path)
    data = _load(path)
    scan = _Scan(path)
    scan.run(data)
    parts = _parts(path, data, scan.root, repeats)
    if not parts:
        raise ScoreError(path, "it has no notes")
    try:
        performance = _performance(path, parts)
    except ScoreError:
        raise
    except Exception as error:  # partitura computes much of a part only when it is asked
        raise ScoreError(path, f"partitura cannot play it: {_one_line(error)}") from error
    if performance.end_sec > max_duration_sec:
        raise ScoreError(
            path,
            f"it lasts {performance.end_sec:,.0f} s, over the limit of {max_duration_sec:,.0f} s (`max_duration_sec`)",
        )
    performance.warnings = scan.warnings
    return performance


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _load(path: str) -> bytes:
    """The XML of a score file, unpacked."""
    try:
        data = Path(path).read_bytes()
        if not data.startswith(b"PK"):
            return _bounded(path, data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = _root_file(path, archive)
            with archive.open(name) as member:
                # The size in the directory of an archive may be a lie, so that it is the read that is bounded.
                data = member.read(_MAX_BYTES + 1)
            return _bounded(path, data)
    except OSError as error:
        raise ScoreError(path, error.strerror or str(error)) from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ScoreError(path, f"damaged archive: {_one_line(error)}") from None


def _bounded(path: str, data: bytes) -> bytes:
    if len(data) > _MAX_BYTES:
        raise ScoreError(path, f"more than {_MAX_BYTES // 2**20} MiB of XML")
    return data


def _root_file(path: str, archive: zipfile.ZipFile) -> str:
    """Name of the score in a compressed MusicXML archive."""
    found: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda tag, attributes: (
        found.append(attributes.get("full-path", "")) if tag.rpartition(":")[2] == "rootfile" else None
    )
    try:
        with archive.open("META-INF/container.xml") as member:
            parser.Parse(member.read(2**16), True)
    except KeyError:
        raise ScoreError(path, "no META-INF/container.xml: it is not a compressed MusicXML file") from None
    except expat.ExpatError as error:
        raise ScoreError(path, f"META-INF/container.xml is damaged: {error}") from None
    if not found:
        raise ScoreError(path, "META-INF/container.xml names no score")
    name = PurePosixPath(found[0])
    if name.is_absolute() or ".." in name.parts:
        raise ScoreError(path, f"META-INF/container.xml names a file outside the archive: {found[0]!r}")
    if found[0] not in archive.namelist():
        raise ScoreError(path, f"{found[0]!r}, the score that META-INF/container.xml names, is not in the archive")
    return found[0]


@dataclass
class _Scan:
    """One pass over the XML that refuses what partitura would swallow.

    Attributes:
        path: The file, for errors.
        root: Name of the root element once `run` is through.
        warnings: What is odd but has one plain meaning.
    """

    path: str
    root: str = ""
    warnings: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _divisions: float = 1.0
    _seen: set[str] = field(default_factory=set)
    _ids: set[str] = field(default_factory=set)

    def run(self, data: bytes) -> None:
        if not data.strip():
            raise ScoreError(self.path, "it is empty")
        self._parser = expat.ParserCreate()
        self._parser.EntityDeclHandler = self._refuse_entity
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append
        try:
            self._parser.Parse(data, True)
        except (expat.ExpatError, ValueError, LookupError) as error:
            raise ScoreError(self.path, f"not well-formed XML: {error}") from None
        if self.root == "score-partwise" and "divisions" not in self._seen:
            self.warnings.append("no divisions; 1 a quarter note assumed")

    def _refuse(self, reason: str) -> None:
        raise ScoreError(self.path, f"line {self._parser.CurrentLineNumber}: {reason}")

    def _refuse_entity(self, name: str, *_: Any) -> None:
        self._refuse(f"it defines an entity ({name}), which no score needs")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rpartition(":")[2]
        if not self.root:
            self.root = tag
            if tag == "score-timewise":
                self._refuse("timewise MusicXML; export it as partwise")
            if tag not in ("score-partwise", "mei"):
                self._refuse(f"not a score: its root is <{tag}> instead of <score-partwise> or <mei>")
        self._text.clear()
        if tag == "note":
            self._note(attributes)

    def _note(self, attributes: dict[str, str]) -> None:
        identity = attributes.get("id") or attributes.get("xml:id")
        if identity is not None and identity in self._ids and "ids" not in self._seen:
            self._seen.add("ids")
            self.warnings.append(f"several notes have the id {identity!r}")
        if identity is not None:
            self._ids.add(identity)
        if "oct" in attributes:
            self._check_octave(attributes["oct"])
        if "pname" in attributes and attributes["pname"] not in "abcdefg":
            self._refuse(f"there is no note {attributes['pname']!r}")

    def _end(self, tag: str) -> None:
        text = "".join(self._text).strip()
        self._text.clear()
        if tag == "divisions":
            self._seen.add(tag)
            self._divisions = self._number(tag, text)
            if self._divisions <= 0:
                self._refuse(f"{text} divisions a quarter note")
        elif tag == "duration":
            quarters = self._number(tag, text) / self._divisions
            if not 0 <= quarters <= _MAX_QUARTERS:
                self._refuse(f"a duration of {quarters:.6g} quarter notes; 0 to {_MAX_QUARTERS} are possible")
        elif tag == "octave":
            self._check_octave(text)
        elif tag == "step" and text not in ("A", "B", "C", "D", "E", "F", "G"):
            self._refuse(f"there is no note {text!r}")
        elif tag == "octave-change" and text != "0" and tag not in self._seen:
            self._seen.add(tag)
            self.warnings.append("instruments that sound in another octave than written are played as written")

    def _number(self, tag: str, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self._refuse(f"{tag} is {text[:20]!r} instead of a number")
        return number

    def _check_octave(self, text: str) -> None:
        if text not in tuple("0123456789"):
            self._refuse(f"octave {text[:20]!r}; octaves are 0 to 9")


def _parts(path: str, data: bytes, root: str, repeats: bool) -> list[Part]:
    """The parts of a score that have notes as partitura objects, unfolded."""
    try:
        import partitura
        from partitura.score import unfold_part_maximal
    except Exception as error:  # some versions reach for the network at import and fail with URLError
        raise ScoreError(path, f"partitura, which reads scores, cannot be imported: {_one_line(error)}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # partitura reports every slur that a repeat cuts
            # Of MusicXML it gets the bytes that were scanned, so that an archive is not opened a second time.
            score = partitura.load_mei(path) if root == "mei" else partitura.load_musicxml(io.BytesIO(data))
            sounding = [part for part in score.parts if part.notes_tied]
            return [unfold_part_maximal(part) if repeats else part for part in sounding]
    except Exception as error:  # partitura has no error type of its own
        raise ScoreError(path, f"partitura cannot read it: {_one_line(error)}") from error


def _performance(path: str, parts: list[Part]) -> Performance:
    from partitura.score import KeySignature, Tempo, TimeSignature

    resolution = math.lcm(480, *(int(divisions) for part in parts for divisions in part.quarter_durations()[:, 1]))
    if resolution >= 0x8000:
        resolution = 10080  # a multiple of 2 to 10 and 12; what is finer is rounded by half a tick
    tempos: dict[int, Any] = {0: DEFAULT_USEC_PER_QUARTER}
    metres: dict[int, Any] = {}
    keys: dict[int, Any] = {}
    tables = []
    for track, part in enumerate(parts):
        to_tick = _tick_map(part, resolution)
        tables.append(_notes(path, part, track, to_tick, resolution))
        for kind, found in ((Tempo, tempos), (TimeSignature, metres), (KeySignature, keys)):
            found |= {int(to_tick(event.start.t)): event for event in part.iter_all(kind)}
    usec = {tick: event if isinstance(event, int) else event.microseconds_per_quarter for tick, event in tempos.items()}
    if not all(0 < value < 2**24 for value in usec.values()):
        raise ScoreError(path, "its tempo is impossible; quarter notes last up to 16.7 s")
    clock = TempoMap(sorted(usec), [usec[tick] for tick in sorted(usec)], resolution)
    metre_rows = [(float(clock.seconds(t)), t, e.beats, e.beat_type) for t, e in sorted(metres.items())]
    key_rows = [(float(clock.seconds(t)), t, e.fifths, e.mode == "minor") for t, e in sorted(keys.items())]
    notes = np.concatenate(tables)
    notes["onset_sec"] = clock.seconds(notes["onset_tick"])
    notes["duration_sec"] = clock.seconds(notes["onset_tick"] + notes["duration_tick"]) - notes["onset_sec"]
    return Performance(
        notes=notes[np.lexsort((notes["pitch"], notes["channel"], notes["track"], notes["onset_tick"]))],
        tempos=clock.table(),
        time_signatures=np.array(metre_rows, TIME_SIGNATURE_DTYPE),
        key_signatures=np.array(key_rows, KEY_SIGNATURE_DTYPE),
        ticks_per_quarter=resolution,
        track_names=[part.part_name or "" for part in parts],
    )


def _tick_map(part: Part, resolution: int) -> Callable[[Any], np.ndarray]:
    """Times of the part (divisions) to ticks; the first bar begins at 0, also if it is a pick-up."""
    quarters = part.quarter_map
    start = float(quarters(part.first_point.t))
    return lambda time: np.rint((np.asarray(quarters(time), np.float64) - start) * resolution).astype(np.int64)


def _notes(path: str, part: Part, track: int, to_tick: Callable[[Any], np.ndarray], resolution: int) -> np.ndarray:
    """[notes] of `NOTE_DTYPE` without seconds, at sounding pitch."""
    from partitura.score import Transposition

    written = part.note_array()
    notes = np.zeros(len(written), NOTE_DTYPE)
    notes["onset_tick"] = to_tick(written["onset_div"])
    duration = to_tick(written["onset_div"] + written["duration_div"]) - notes["onset_tick"]
    notes["duration_tick"] = np.where(written["duration_div"] > 0, np.maximum(duration, 1), resolution // _GRACE_SHARE)
    notes["pitch"] = written["pitch"]
    for change in part.iter_all(Transposition):
        following = written["onset_div"] >= change.start.t
        notes["pitch"][following] = written["pitch"][following] + (change.chromatic or 0)
    if (notes["pitch"] < 0).any() or (notes["pitch"] > 127).any():
        raise ScoreError(path, "a note lies outside the range of MIDI (C-1 to G9)")
    notes["velocity"] = _VELOCITY
    melodic = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    notes["channel"] = melodic[track % len(melodic)]
    notes["track"] = track
    return notes
