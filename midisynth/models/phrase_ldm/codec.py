"""Songs to slots of phrases and back: the codec of PhraseVAE and PhraseLDM.

A bar is a fixed number of slots: the phrases of its tracks from the highest to the lowest, `[INST]` for those that are
free, and `b-1` as the last. With four slots, as published, a latent sequence has four rows a bar. Where a bar is not in
4/4 its last slot says so, `s-8 b-1`, so that music in other metres survives; the published models know 4/4 alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from midisynth.datasets.corpus import Record
from midisynth.errors import DataError, MidiError
from midisynth.models.phrase_ldm.grid import DRUMS, Compat
from midisynth.models.phrase_ldm.instruments import Instruments
from midisynth.models.phrase_ldm.operations import key_and_range, transposed
from midisynth.models.phrase_ldm.remiz import Bar, bars_from_performance, performance_from_bars
from midisynth.models.phrase_ldm.sections import Section, bar_count, parse_sections, plan_text, prompt
from midisynth.models.phrase_ldm.texts import parse, phrases
from midisynth.models.phrase_ldm.vocabulary import BAR, BOS, EOS, INST, PAD, SEP, time_signature_token, to_ids
from midisynth.music.keys import C_MAJOR, Key, in_range, normalising_shift, shift_to
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance

logger = logging.getLogger(__name__)

#: Slots of a bar in the published models: three tracks and the bar line.
SLOTS = 4
#: Longest song of the published models (bars).
MAX_BARS = 128
#: Tempo where nothing says one (quarter notes a minute).
DEFAULT_TEMPO = 120.0


@dataclass
class Song:
    """A song as the models see it.

    Attributes:
        bars: In C major or A minor, unless the codec leaves keys alone.
        slots: Texts of all slots, bar by bar, `slots_per_bar` each.
        slots_per_bar: Phrases in a bar, its end among them.
        sections: What is known of its structure, perhaps nothing.
        key: The key it was in.
        shift: Semitones by which it was moved.
        warnings: What was lost, one sentence each.
        instruments: What its file plays in place of programs of the texts.
    """

    bars: list[Bar]
    slots: list[str]
    slots_per_bar: int = SLOTS
    sections: tuple[Section, ...] = ()
    key: Key = C_MAJOR
    shift: int = 0
    warnings: list[str] = field(default_factory=list)
    instruments: Instruments = field(default_factory=Instruments)

    @property
    def layout(self) -> list[list[str]]:
        """Instruments of each bar in the order of its slots, and the bar line: `i-13 i-0 b-1`."""
        size = self.slots_per_bar
        bars = (self.slots[start : start + size] for start in range(0, len(self.slots), size))
        return [[*(text.split()[0] for text in bar[:-1] if text != INST), BAR] for bar in bars]

    @property
    def tempo(self) -> float:
        """Median of the bars' tempi (quarter notes a minute)."""
        return float(np.median([bar.tempo for bar in self.bars])) if self.bars else DEFAULT_TEMPO

    @property
    def prompt(self) -> str:
        """Its sections as the published models name them."""
        return prompt(self.sections)


@dataclass(frozen=True)
class Playback:
    """How decoded bars are played. Programs are those of the text.

    Attributes:
        key: Key to end in, from C major or A minor; the text's own when None. The key that `Song` notes is where the
            song came from.
        tempo: Quarter notes a minute; the bars' own when None.
        programs: Program to play in place of another.
        transpose: Semitones to add to the notes of a program.
        velocities: Velocity of all notes of a program.
    """

    key: Key | None = None
    tempo: float | None = None
    programs: Mapping[int, int] = field(default_factory=dict)
    transpose: Mapping[int, int] = field(default_factory=dict)
    velocities: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, song: Song, key: Key | None = None, tempo: float | None = None) -> Playback:
        """By the instruments that a song came with."""
        return cls(key, tempo, song.instruments.programs, song.instruments.transpose)


#: How the authors play what their models make of POP909's melody (13), bridge (25) and piano (0).
PUBLISHED_PLAYBACK = Playback(tempo=90.0, programs={13: 87}, transpose={13: 12}, velocities={0: 96, 13: 70, 25: 100})


@dataclass
class Decoded:
    """What texts became.

    Attributes:
        performance: The music.
        bars: The same as bars, before `Playback`.
        dropped: Tokens that said nothing, see `texts.Parsed`.
        repaired: Faults in the structure of bars that were mended, by their kind.
    """

    performance: Performance
    bars: list[Bar]
    dropped: Counter[str]
    repaired: Counter[str]


class PhraseCodec:
    """Songs to slots of phrases and back. It has no weights.

    Args:
        slots: Phrases in a bar, its end among them.
        max_bars: Longest song; None for any.
        drums: Give drums a slot; else they are left out.
        velocity: Write velocities.
        normalize_key: Move songs to C major or A minor.
        crowded: What to do with a bar of more tracks than there are slots: keep those whose programs have most notes
            in the song ("reduce"), or refuse the song ("reject").
        compat: "published" reads bars as the original does, faults included; see `remiz` and `texts`.

    Attributes:
        max_duration_sec: Longest file that is read (seconds).
        repair: Read what is left of damaged files.
        instruments: What files play in place of programs of the texts, for `encode`.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        slots: int = SLOTS,
        max_bars: int | None = MAX_BARS,
        drums: bool = False,
        velocity: bool = False,
        normalize_key: bool = True,
        crowded: Literal["reduce", "reject"] = "reduce",
        compat: Compat = None,
    ):
        self.slots = slots
        self.max_bars = max_bars
        self.drums = drums
        self.velocity = velocity
        self.normalize_key = normalize_key
        self.crowded = crowded
        self.compat = compat
        self.max_duration_sec = 7200.0
        self.repair = False
        self.instruments = Instruments()

    @property
    def key(self) -> dict[str, Any]:
        """What shapes the result, for caches of prepared songs."""
        names = ("slots", "max_bars", "drums", "velocity", "normalize_key", "crowded", "compat")
        return {"version": self.version} | {name: getattr(self, name) for name in names}

    def encode(self, path: Path) -> dict[str, Any]:
        """Read a MIDI file.

        Returns:
            "song": `Song`; "phrases": ids of each slot.

        Raises:
            MidiError: The file cannot be read, or the song does not fit the model.
        """
        overlap = "restrike" if self.compat is None else "fifo"
        performance = read_midi(path, overlap=overlap, repair=self.repair, max_duration_sec=self.max_duration_sec)
        try:
            if self.instruments.fits(performance):
                performance = self.instruments.undone(performance)
                song = replace(self.song(performance), instruments=self.instruments)
            else:
                song = self.song(performance)
        except DataError as error:
            raise MidiError(path, str(error)) from None
        for warning in (*performance.warnings, *song.warnings):
            logger.warning("%s: %s", path, warning)
        return {"song": song, "phrases": [to_ids(text) for text in song.slots]}

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        """What is kept of a record of a corpus (`midisynth.datasets.cache.Encoder`); `song_arrays` of its song.

        Sections come from the record's metadata, where its corpus knows them.

        Raises:
            MidisynthError: It cannot be read, or does not fit the model.
        """
        plan = record.metadata.get("sections")
        return song_arrays(self.song(record.performance(), parse_sections(plan) if plan else ()))

    def song(self, performance: Performance, sections: Sequence[Section] = ()) -> Song:
        """A song from music.

        Args:
            performance: Its bars are those of its own metre.
            sections: Its structure; it then has as many bars as they have.

        Raises:
            DataError: It has no notes that are wanted, too many bars, or a bar too many tracks.
        """
        bars = bars_from_performance(performance, compat=self.compat)
        written = sum(len(track.notes) for bar in bars for track in bar.tracks)
        warnings = []
        if written < len(performance.notes):
            lost = len(performance.notes) - written
            warnings.append(f"{lost} notes begin with another one on their key and program and are left out")
        if not any(phrases(bar, drums=self.drums) for bar in bars):
            raise DataError("has no notes" if self.drums else "has no pitched notes, and this model plays no drums")
        if sections:
            bars = _with_length(bars, bar_count(sections))
        if self.max_bars is not None and len(bars) > self.max_bars:
            raise DataError(f"has {len(bars)} bars, the model takes {self.max_bars} (max_bars)")
        bars, left_out = self._fitted(bars)
        if left_out:
            warnings.append(f"{left_out} phrases are left out: a bar has room for {self.slots - 1}")
        key, lowest, highest = key_and_range(bars)
        shift = in_range(normalising_shift(key), lowest, highest) if self.normalize_key else 0
        bars = transposed(bars, shift)
        slots = [text for bar in bars for text in self._bar_slots(bar)]
        return Song(bars, slots, self.slots, tuple(sections), key, shift, warnings)

    def _fitted(self, bars: Sequence[Bar]) -> tuple[list[Bar], int]:
        """Bars with no more tracks than there is room for, and how many were left out."""
        room = self.slots - 1
        kept = [replace(bar, tracks=[t for t in bar.tracks if self.drums or t.program != DRUMS]) for bar in bars]
        excess = [len(bar.tracks) - room for bar in kept if len(bar.tracks) > room]
        if excess and self.crowded == "reject":
            raise DataError(f"has a bar of {max(excess) + room} tracks, the model takes {room} (slots)")
        played: Counter[int] = Counter()
        for bar in kept:
            for track in bar.tracks:
                played[track.program] += len(track.notes)
        for bar in kept:
            ranked = sorted(range(len(bar.tracks)), key=lambda index, bar=bar: -played[bar.tracks[index].program])
            bar.tracks = [bar.tracks[index] for index in sorted(ranked[:room])]
        return kept, sum(excess)

    def _bar_slots(self, bar: Bar) -> list[str]:
        texts = phrases(bar, drums=self.drums, velocity=self.velocity, compat=self.compat)
        return [*texts, *[INST] * (self.slots - 1 - len(texts)), BAR if self.compat else bar_line(bar)]

    def decode(self, encoded: Mapping[str, Any]) -> Performance:
        """The music of what `encode` returned, on the grid, in its own key and at its median tempo."""
        song: Song = encoded["song"]
        decoded = self.decode_texts(song.slots)
        return self.perform(transposed(decoded.bars, -song.shift), Playback.of(song, tempo=song.tempo))

    def decode_texts(self, texts: Sequence[str], playback: Playback | None = None, slots: int | None = None) -> Decoded:
        """Music from the texts of a song's slots, whatever a decoder wrote into them.

        The song ends at the first `[SEP]`. Then every `slots` texts are a bar: a bar line that stands where a phrase
        should is dropped, one that is missing is added, and notes count wherever they stand in their bar. With `compat`
        the texts are joined and read as they are.

        Args:
            texts: In order, special tokens kept.
            playback: How to play the result; as it is written when None.
            slots: Texts of a bar, its end among them; as many as the codec writes when None.
        """
        playback = playback or Playback()
        repaired: Counter[str] = Counter()
        if self.compat is not None:
            parsed = parse(published_text(texts), compat=self.compat)
        else:
            parsed = parse(" ".join(_mended(texts, slots or self.slots, repaired)))
        return Decoded(self.perform(parsed.bars, playback), parsed.bars, parsed.dropped, +repaired)

    def perform(self, bars: Sequence[Bar], playback: Playback) -> Performance:
        """Music of bars that are in C major or A minor."""
        if playback.key is not None:
            _, lowest, highest = key_and_range(bars)
            bars = transposed(bars, in_range(shift_to(C_MAJOR, playback.key), lowest, highest))
        return performance_from_bars(
            bars,
            programs=playback.programs,
            transpose=playback.transpose,
            velocities=playback.velocities,
            tempo=playback.tempo,
            compat=self.compat,
        )


def published_text(texts: Sequence[str]) -> str:
    """Texts of a song's slots as one, up to the first that has `[SEP]`, without `[BOS]`, `[EOS]` and `[PAD]`."""
    words = [word for text in texts for word in text.split() if word not in (BOS, EOS, PAD)]
    return " ".join(words[: words.index(SEP)] if SEP in words else words)


def bar_line(bar: Bar) -> str:
    """Text of a bar's last slot."""
    return BAR if bar.time_signature == (4, 4) else f"{time_signature_token(*bar.time_signature)} {BAR}"


def song_arrays(song: Song) -> dict[str, np.ndarray]:
    """A song as plain arrays, for a cache.

    Returns:
        "tokens" [tokens] int16: ids of all slots, one after the other; "lengths" [bars * slots] int32: tokens of each;
        "slots" []: slots of a bar; "sections" []: its plan as text; "key" [2]: tonic and whether minor, of the
        original; "shift" [] semitones; "tempo" [] quarter notes a minute.
    """
    ids = [to_ids(text) for text in song.slots]
    return {
        "tokens": np.array([number for phrase in ids for number in phrase], np.int16),
        "lengths": np.array([len(phrase) for phrase in ids], np.int32),
        "slots": np.array(song.slots_per_bar),
        "sections": np.array(plan_text(song.sections)),
        "key": np.array(song.key, np.int8),
        "shift": np.array(song.shift),
        "tempo": np.array(song.tempo),
    }


def phrases_of(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Ids of each slot, [tokens] int16 each, from `song_arrays`."""
    return np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])


def _with_length(bars: Sequence[Bar], count: int) -> list[Bar]:
    """Bars cut to a number, or filled up with empty ones like the last."""
    rest = [replace(bars[-1], tracks=[]) for _ in range(count - len(bars))]
    return [*bars[:count], *rest]


def _mended(texts: Sequence[str], slots: int, repaired: Counter[str]) -> list[str]:
    """Texts of bars with one bar line each; what had to be mended is added to `repaired`."""
    bars = []
    for start in range(0, len(texts), slots):
        words: list[str] = []
        over = False
        chunk = texts[start : start + slots]
        for place, text in enumerate(chunk):
            tokens = [word for word in text.split() if word not in (BOS, EOS, PAD, INST)]
            if over := SEP in tokens:
                tokens = tokens[: tokens.index(SEP)]
                repaired["song ends within a bar"] += place > 0
            is_line = place == slots - 1
            repaired["bar line in place of a phrase"] += BAR in tokens and not is_line
            repaired["bar line missing"] += is_line and BAR not in tokens
            tokens = [word for word in tokens if word != BAR]
            has_notes = any(word.startswith("d-") for word in tokens)
            repaired["phrase in place of a bar line"] += is_line and has_notes
            if has_notes and not tokens[0].startswith("i-"):
                # Else it would be played by the instrument of the slot before it.
                tokens.insert(0, "i-0")
                repaired["phrase without instrument"] += 1
            words += tokens
            if over:
                break
        if words or not over:
            bars.append(" ".join([*words, BAR]))
        if over:
            break
    repaired["bar cut short"] += not over and len(texts) % slots > 0 if texts else 0
    return bars
