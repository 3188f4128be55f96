"""Songs from a trained `PhraseLdm`: what is asked for, what is given, and the way from latents to music."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.diffusion.inpainting import Known
from midisynth.errors import UsageError
from midisynth.metrics.structure import bar_vectors, self_similarity
from midisynth.models.phrase_ldm.codec import PUBLISHED_PLAYBACK, Playback, Song
from midisynth.models.phrase_ldm.layouts import Layout, parse_layout
from midisynth.models.phrase_ldm.ldm import PhraseDenoiser
from midisynth.models.phrase_ldm.operations import transposed
from midisynth.models.phrase_ldm.remiz import Bar, sort_tracks
from midisynth.models.phrase_ldm.sections import Section, bar_count, check_sections, parse_sections, plan_text
from midisynth.models.phrase_ldm.vae import SPECIAL_IDS, PhraseVae
from midisynth.models.phrase_ldm.vocabulary import INST, SEP
from midisynth.module import Noise, Rendering
from midisynth.music.keys import parse_key
from midisynth.pictures import draw_similarity

if TYPE_CHECKING:
    from midisynth.models.phrase_ldm.model import PhraseLdm

#: What is done with a song.
Mode = Literal["compose", "continue", "infill", "vary", "interpolate"]
#: A song is over where the latent of a bar's first slot points at least as closely to that of the end (cosine).
#: Published models pad songs with latents of the right direction and another length.
END_COSINE = 0.9
#: Index of the end among `SPECIAL_IDS`.
END = 2


@dataclass
class Request:
    """One song to make.

    Attributes:
        song: What it is made from, or None.
        bars: Its length; 0: the model chooses.
        sections: Its plan, perhaps nothing.
        given: [rows] bool, True for slots that are taken from the song.
        latents: [rows, latent] of the song, and after it the end; None without a song.
        layout: Programs of every bar, perhaps nothing.
        cut: Whether the song ends after `bars` because that is given; else the model is told so, and ends it itself.
    """

    song: Song | None
    bars: int
    sections: Sequence[Section]
    given: Tensor
    latents: Tensor | None = None
    layout: Layout = ()
    cut: bool = True


def compose(model: PhraseLdm, songs: Sequence[Song | None], noise: Noise) -> list[Rendering]:
    """Make one song for each of `songs`.

    Args:
        model: Its options say what is done with them.
        songs: Inputs, or None for a song from nothing.
        noise: The only source of randomness.

    Raises:
        UsageError: The options do not fit the songs.
    """
    requests = [request(model, song) for song in songs]
    latents = sample_latents(model, requests, noise)
    counts = [
        (wanted.bars or song_end(model, rows)) * model.hparams.slots
        for wanted, rows in zip(requests, latents, strict=True)
    ]
    songs = [rows[:count] for rows, count in zip(latents, counts, strict=True)]
    texts = decode_songs(model.vae, songs)
    return [finish(model, *made) for made in zip(requests, songs, texts, strict=True)]


def decode_songs(vae: PhraseVae, songs: Sequence[Tensor]) -> list[list[str]]:
    """Texts of the slots of songs [rows, latent], decoded together."""
    texts = iter(vae.decode(torch.cat(list(songs)), vae.shortcuts()))
    return [list(islice(texts, len(song))) for song in songs]


def request(model: PhraseLdm, song: Song | None) -> Request:
    """What the options ask for.

    Raises:
        UsageError: They do not fit together, or not to the song.
    """
    options = model.hparams
    if (options.mode == "compose") != (song is None):
        raise UsageError(
            f"mode {options.mode} works on a song: name a MIDI file"
            if song is None
            else "mode compose makes songs from nothing: set mode to continue, infill, vary or interpolate"
        )
    sections: Sequence[Section] = song.sections if song is not None else ()
    if options.sections is not None:
        sections = parse_sections(options.sections)
        check_sections(sections, options.max_bars)
    layout = () if options.layout is None else parse_layout(options.layout)
    told = {"sections": bar_count(sections), "layout": len(layout), "bars": options.bars or 0}
    if len({bars for bars in told.values() if bars}) > 1:
        which = ", ".join(f"{name} {bars}" for name, bars in told.items() if bars)
        raise UsageError(f"how many bars the song has is told in several ways ({which}): leave all but one out")
    rows = model.network.rows
    given = torch.zeros(rows, dtype=torch.bool)
    if song is None:
        return Request(None, max(told.values()), sections, given, layout=layout)
    second = None if options.other is None else model.codec.encode(Path(options.other).expanduser())["song"]
    # What comes after the end of the shorter one is the other's.
    length = max(len(song.bars), 0 if second is None else len(second.bars))
    bars = max(told.values()) or (length if options.mode != "continue" else 0)
    if options.mode == "continue":
        if bars and bars <= length:
            raise UsageError(f"the song has {length} bars already: continue it to more than {bars}")
        if length >= options.max_bars:
            raise UsageError(f"the song has {length} bars, and the model makes no more than {options.max_bars}")
        given[: length * options.slots] = True
    elif bars != length:
        which = "song has" if second is None else "longer song has"
        raise UsageError(f"the {which} {length} bars: mode {options.mode} keeps them")
    elif options.mode == "infill":
        given[: length * options.slots] = kept_slots(song, options.redo, options.keep or ())
    latents = padded(model, song)
    if second is not None:
        latents = torch.lerp(latents, padded(model, second), options.share)
    return Request(song, bars, sections, given, latents, layout)


def padded(model: PhraseLdm, song: Song) -> Tensor:
    """Latents of a song and after it the end, [rows, latent]."""
    latents = model.vae.encode(song.slots)
    end = model.padding().expand(model.network.rows - len(latents), -1)
    return torch.cat([latents, end])


def kept_slots(song: Song, redo: str | None, keep: Sequence[int]) -> Tensor:
    """Slots that stay as they are, [bars * slots] bool.

    Args:
        song: The song.
        redo: Bars to compose anew; None: all.
        keep: Programs of its file that stay in these bars.

    Raises:
        UsageError: Nothing is to be done, or there are no such bars or programs.
    """
    length, size = len(song.bars), song.slots_per_bar
    if redo is None and not keep:
        raise UsageError("infill: name the bars to compose anew (redo), or the programs that stay (keep)")
    anew = set(range(length)) if redo is None else parse_bars(redo, length)
    present = {song.instruments.played(track.program) for bar in song.bars for track in bar.tracks}
    if missing := set(keep) - present:
        known = ", ".join(map(str, sorted(present)))
        raise UsageError(f"keep: the song has no program {min(missing)}; it has {known}")
    names = {f"i-{song.instruments.known(program)}" for program in keep}
    return torch.tensor(
        [
            index // size not in anew or text.split()[0] in names or index % size == size - 1
            for index, text in enumerate(song.slots)
        ]
    )


def parse_bars(text: str, count: int) -> set[int]:
    """Bars such as "5-8,17", counted from 1, as indices.

    Raises:
        UsageError: It is no such list, or a song of `count` bars has not all of them.
    """
    bars: set[int] = set()
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"redo: cannot read '{item.strip()}': write bars as 5-8,17")
        start, end = int(first), int(last or first)
        if not 1 <= start <= end <= count:
            raise UsageError(f"redo: {item.strip()} is not within the bars of the song, 1 to {count}")
        bars |= set(range(start - 1, end))
    return bars


def sample_latents(
    model: PhraseLdm, requests: Sequence[Request], noise: Noise, network: PhraseDenoiser | None = None
) -> Tensor:
    """Latents of songs.

    Args:
        model: Its options say how they are sampled.
        requests: What is asked for.
        noise: The only source of randomness.
        network: Denoiser in evaluation mode that takes the place of the model's.

    Returns:
        [songs, rows, latent] in the autoencoder's scale.
    """
    options, device, diffusion = model.hparams, model.device, model.diffusion
    network = network or model.network
    shape = network.rows, options.latent
    end = model.padding()
    # What follows the end of a song of known length is given, too.
    ends = ((r.cut and r.bars) or options.max_bars for r in requests)
    after = [torch.arange(shape[0]) >= end_bar * options.slots for end_bar in ends]
    mask = torch.stack([r.given | beyond for r, beyond in zip(requests, after, strict=True)])[..., None].to(device)
    base = torch.stack([end.expand(shape) if r.latents is None else r.latents for r in requests])
    base = torch.where(torch.stack(after)[..., None].to(device), end, base) / model.scale
    types, lengths = model.section_ids.encode([r.sections for r in requests])
    told = {"bars": torch.tensor([r.bars for r in requests]), "types": types, "lengths": lengths}
    told["layout"] = torch.stack([model.layout_ids.encode(r.layout, options.slots, shape[0]) for r in requests])
    told = {name: values.to(device) for name, values in told.items()}
    conditioning = model.condition(told, guided=options.guidance != 1, network=network)

    def draw(number: int) -> Tensor:
        return torch.stack([noise.normal(place, number, shape, device) for place in range(len(requests))])

    every_step = options.solver == "ddpm" and options.sample_steps == options.diffusion_steps
    if options.compat and every_step and options.guidance == 1 and not mask.any():
        return diffusion.sample_published(network, conditioning, draw) * model.scale
    start = 1.0
    source = draw
    if options.mode in ("vary", "interpolate"):
        if options.strength == 0:
            return base * model.scale
        start = options.strength

        def source(number: int) -> Tensor:
            if number:
                return draw(number)
            return diffusion.start_from(base, draw(0), options.solver, options.sample_steps, start)

    known = Known(base, mask, options.repeats) if mask.any() else None
    found = diffusion.sample(
        network,
        conditioning,
        source,
        options.solver,
        options.sample_steps,
        options.guidance,
        known,
        start,
    )
    return found * model.scale


def finish(model: PhraseLdm, wanted: Request, latents: Tensor, texts: Sequence[str]) -> Rendering:
    """Music of a song.

    Args:
        model: Its options say how the song is played.
        wanted: What was asked for.
        latents: [bars * slots, latent].
        texts: What they are decoded to.

    Returns:
        The song, its report, and if pictures are wanted the similarity of its bars.
    """
    slots = model.hparams.slots
    if wanted.song is not None:
        texts = [wanted.song.slots[index] if wanted.given[index] else text for index, text in enumerate(texts)]
    early = sum(SEP in text for text in texts) if wanted.bars else 0
    if early:
        # The song is as long as was asked for.
        texts = [INST if SEP in text else text for text in texts]
    decoded = model.codec.decode_texts(texts)
    bars = decoded.bars
    if wanted.song is not None:
        keep = {wanted.song.instruments.known(program) for program in model.hparams.keep or ()}
        bars = with_originals(wanted.song, bars, wanted.given, keep)
    report: dict[str, Any] = {"bars": len(bars)}
    if wanted.sections:
        report["sections"] = plan_text(wanted.sections)
    repairs = dict(decoded.repaired) | ({"end within the song": early} if early else {})
    report |= {"dropped_tokens": dict(decoded.dropped), "repairs": repairs}
    figure = None
    if model.plot:
        vectors = bar_vectors(latents[: len(bars) * slots].float().cpu(), slots)
        figure = draw_similarity(self_similarity(vectors), wanted.sections)
    return Rendering(performance=perform(model, wanted.song, bars), figure=figure, report=report)


def song_end(model: PhraseLdm, latents: Tensor) -> int:
    """Bars of a song before its end [rows, latent], at least 1."""
    specials = F.normalize(model.vae.encode([[number] for number in SPECIAL_IDS]), dim=-1)
    first = F.normalize(latents[:: model.hparams.slots].float(), dim=-1)
    cosine, nearest = (first @ specials.T).max(dim=1)
    over = ((nearest == END) & (cosine >= END_COSINE)).nonzero()
    return max(int(over[0]) if len(over) else len(first), 1)


def with_originals(song: Song, bars: Sequence[Bar], given: Tensor, keep: set[int]) -> list[Bar]:
    """Bars in which what was given is the original, with its velocities and tempi.

    Args:
        song: The original.
        bars: Decoded ones, as many or more.
        given: [rows] bool, slots that are taken from the song.
        keep: Programs that stay everywhere: what was composed for them besides is left out.
    """
    whole = given[: len(song.slots)].view(-1, song.slots_per_bar).all(dim=1).tolist()
    result = []
    for index, bar in enumerate(bars):
        if index >= len(song.bars):
            result.append(replace(bar, tempo=song.tempo))
            continue
        original = song.bars[index]
        if whole[index]:
            result.append(original)
            continue
        kept = [track for track in original.tracks if track.program in keep]
        new = [track for track in bar.tracks if track.program not in keep]
        result.append(replace(original, tracks=sort_tracks([*kept, *new])))
    return result


def perform(model: PhraseLdm, song: Song | None, bars: Sequence[Bar]) -> Any:
    """Music of bars that are in C major or A minor, in the key that was asked for."""
    options = model.hparams
    key = None if options.key is None else parse_key(options.key)
    if song is None:
        played = PUBLISHED_PLAYBACK if options.arranged else Playback(tempo=PUBLISHED_PLAYBACK.tempo)
        playback = replace(played, key=key, tempo=options.tempo or played.tempo)
    else:
        bars = bars if key is not None else transposed(bars, -song.shift)
        playback = Playback.of(song, key, options.tempo)
    return model.codec.perform(bars, playback)
