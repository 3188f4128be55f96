"""Opening a score file: what is damaged or dangerous is refused before partitura sees it.

partitura accepts impossible octaves, divisions and durations, and fails in many ways on damaged files, so that every
file passes one scan of ours first, which also keeps entities and archive bombs away from it.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.parsers import expat

from midisynth.errors import ScoreError
from midisynth.music.score_repeats import unfolded

if TYPE_CHECKING:
    from partitura.score import Part

_MAX_BYTES = 64 * 2**20  # of XML, unpacked; the longest real scores have a quarter of it
_MAX_QUARTERS = 4096  # of one note

#: Suffix of Humdrum files, which are no XML.
KERN = ".krn"


@dataclass
class OpenScore:
    """A score file as partitura has it.

    Attributes:
        parts: Those that have notes, repeats played or not; at least one.
        title: "" where the file has none.
        warnings: What is odd but has one plain meaning.
    """

    parts: list[Part]
    title: str
    warnings: list[str]


def open_score(path: str | os.PathLike[str], repeats: bool = True) -> OpenScore:
    """Read a MusicXML (.musicxml, .xml, .mxl), MEI or Humdrum (.krn) file.

    Args:
        path: The file.
        repeats: Play repeats, voltas and da capo as a player would; otherwise read the page once.

    Raises:
        ScoreError: The file cannot be read, or is refused; the text names the cause.
    """
    path = os.fspath(path)
    data = _load(path)
    scan = _Scan(path)
    if path.lower().endswith(KERN):
        scan.root = KERN
    else:
        scan.run(data)
    if scan.silent_metronomes:
        data = _with_metronomes_sounding(data)
    parts = _parts(path, data, scan.root, repeats)
    if not parts:
        raise ScoreError(path, "it has no notes")
    return OpenScore(parts, scan.title, scan.warnings)


def one_line(error: BaseException) -> str:
    """Type and first line of an error of another library."""
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
        raise ScoreError(path, f"damaged archive: {one_line(error)}") from None


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
        title: Of the work, else of the movement; "" where the file has none.
        silent_metronomes: It has metronome marks without the tempo for playback that partitura reads.
        warnings: What is odd but has one plain meaning.
    """

    path: str
    root: str = ""
    title: str = ""
    silent_metronomes: bool = False
    warnings: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _divisions: float = 1.0
    _seen: set[str] = field(default_factory=set)
    _ids: set[str] = field(default_factory=set)
    _in_direction: set[str] = field(default_factory=set)
    _unpitched: int = 0

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
        if self._unpitched:
            self.warnings.append(f"{self._unpitched} percussion notes without a pitch are left out")

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
        elif tag == "direction":
            self._in_direction.clear()
        elif tag == "metronome" or (tag == "sound" and "tempo" in attributes):
            self._in_direction.add(tag)

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
        elif tag == "direction":
            self.silent_metronomes |= self._in_direction == {"metronome"}
        elif tag == "unpitched":
            self._unpitched += 1
        elif tag in ("work-title", "movement-title", "title"):
            self.title = self.title or text
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


_QUARTERS = {"long": 16, "breve": 8, "whole": 4, "half": 2, "quarter": 1, "eighth": 1 / 2, "16th": 1 / 4, "32nd": 1 / 8}


def _with_metronomes_sounding(data: bytes) -> bytes:
    """The same MusicXML with a tempo for playback beside every metronome mark that states a number."""
    root = ElementTree.fromstring(data)
    for direction in root.iter("direction"):
        metronome = direction.find("direction-type/metronome")
        if metronome is None or any("tempo" in sound.attrib for sound in direction.iter("sound")):
            continue
        number = re.search(r"\d+(\.\d+)?", metronome.findtext("per-minute") or "")
        unit = _QUARTERS.get(metronome.findtext("beat-unit") or "")
        if number and unit:
            dots = len(metronome.findall("beat-unit-dot"))
            tempo = float(number[0]) * unit * (2 - 0.5**dots)
            ElementTree.SubElement(direction, "sound", {"tempo": f"{tempo:.6g}"})
    return ElementTree.tostring(root)


def _parts(path: str, data: bytes, root: str, repeats: bool) -> list[Part]:
    """The parts of a score that have notes as partitura objects, unfolded."""
    try:
        import partitura
    except Exception as error:  # some versions reach for the network at import and fail with URLError
        raise ScoreError(path, f"partitura, which reads scores, cannot be imported: {one_line(error)}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # partitura reports every slur that a repeat cuts
            if root == "mei":
                score = partitura.load_mei(path)
            elif root == KERN:
                score = partitura.load_kern(path, force_note_ids="keep")
            else:
                # It gets the bytes that were scanned, so that an archive is not opened a second time.
                score = partitura.load_musicxml(io.BytesIO(data), force_note_ids="keep")
            sounding = [part for part in score.parts if part.notes_tied]
            return unfolded(sounding) if repeats else sounding
    except Exception as error:  # partitura has no error type of its own
        raise ScoreError(path, f"partitura cannot read it: {one_line(error)}") from error
