"""What the documentation says is true: commands parse, sessions and code run as printed, links lead somewhere."""

from __future__ import annotations

import inspect
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from midisynth import registry, weights
from midisynth.checkpoints import save_weights
from midisynth.commands import demo_options
from midisynth.datasets.rendered import Rendered
from midisynth.datasets.sampled_piano import SampledPiano
from midisynth.main import main
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.music.midi import read_midi, write_midi

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSED = ("fit", "validate", "test", "predict", "prepare")
MODELS = [
    "dexter",
    "midi2wave",
    "midi_valle",
    "midi_valle_codec",
    "phrase_ldm",
    "phrase_vae",
    "spectrogram_ar",
    "spectrogram_diffusion",
    "vocoder",
]
# Models whose page is that of several.
SHARED_PAGES = {
    "midi_valle": "midi_valle",
    "midi_valle_codec": "midi_valle",
    "phrase_ldm": "phrase_ldm",
    "phrase_vae": "phrase_ldm",
}
# Depends on how busy the machine is.
TIMES = re.compile(r"[\d.]+ s of audio in [\d.]+ s \([\d.]+ x real time\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """Contents of the fenced code blocks of a page in any of some languages."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """`PAGE: midisynth ...` for each command of a shell block, continued lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                # Several commands may share a line: `pip install . && midisynth ...`.
                for command in line.split(" #")[0].split("&&"):
                    if command.split()[:1] == ["midisynth"]:
                        found.append(f"{name(page)}: {' '.join(command.split())}")
    return list(dict.fromkeys(found))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights, and beside it a checkpoint with the data module that it was trained with."""
    folder = tmp_path_factory.mktemp("tiny") / "weights"
    options = yaml.safe_load((ROOT / "cfg/spectrogram_diffusion/tiny.yaml").read_text())["model"]["init_args"]
    save_weights(SpectrogramDiffusion(**options), folder)
    return folder


@pytest.fixture
def song(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first seconds of a piece as `song.mid`, alone in the working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    piece = read_midi(ROOT / "examples" / "bach.mid")
    write_midi(replace(piece, notes=piece.notes[piece.notes["onset_sec"] < 4]), folder / "song.mid")
    return folder / "song.mid"


@pytest.mark.parametrize("line", commands())
def test_commands_parse(
    line: str,
    song: Path,
    tiny_weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """The real parser accepts them, up to where work would begin. Checkpoints and inputs are made if need be."""
    _, _, command = line.partition(": ")
    words = shlex.split(command)[1:]
    for option, value in pairwise(words):
        if value.startswith("hf://"):
            monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tiny_weights))
        elif option in ("--ckpt", "--ckpt_path") and weights.find(value) is None:
            shutil.copytree(tiny_weights, value)
        if option == "--config" and value.endswith(".yaml"):
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "cfg/spectrogram_diffusion/tiny.yaml", value)
    for word in words[1:]:
        if words[0] == "predict" and word.endswith("/") and not Path(word).exists():
            Path(word).mkdir()
            shutil.copy(song, word)
    if words[0] == "demo":
        demo_options(words[1:])
        return
    if words[0] in PARSED and not any(word.endswith("help") for word in words):
        words.append("--print_config")
    code = main(words)
    error = capsys.readouterr().err
    if words[0] == "corpora" and "--root" in words:
        assert error.endswith(f"no such folder: {words[words.index('--root') + 1]}\n")
    elif words[0] == "import":
        assert error == f"midisynth: error: {words[2]}: no such file\n"
    else:
        assert code == 0, error


def sessions() -> list[tuple[str, str, list[str]]]:
    """Page, command line and the lines that it prints, for each `$` of the console blocks."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, *printed = step.splitlines()
                found.append((name(page), command, printed))
    return found


def test_sessions_print_what_the_pages_show(song: Path, capfd: pytest.CaptureFixture[str]):
    Path("songs").mkdir()
    for copy in ("one.mid", "two.mid"):
        shutil.copy(song, Path("songs", copy))
    assert sessions()
    for page, command, printed in sessions():
        words = shlex.split(command)
        if words[0] != "midisynth":
            subprocess.run(command, shell=True, check=True)
            continue
        capfd.readouterr()
        main(words[1:])
        captured = capfd.readouterr()
        # What else is on standard error comes from the Trainer and depends on the machine.
        said = [
            line for line in captured.err.splitlines() if line.startswith("midisynth: ")
        ] + captured.out.splitlines()
        assert [TIMES.sub("", line) for line in said] == [TIMES.sub("", line) for line in printed], f"{page}: {command}"


def test_python_code_of_the_quick_start_runs(song: Path):
    """One process for all blocks; each is written so that it runs by itself."""
    Path("songs").mkdir()
    shutil.copy(song, "songs/one.mid")
    Path("songs/broken.mid").write_bytes(song.read_bytes()[:100])
    programs = blocks(ROOT / "docs" / "quickstart.md", "python")
    assert len(programs) >= 4
    script = "\n".join(
        f"exec(compile({text!r}, 'block {number}', 'exec'), {{}})" for number, text in enumerate(programs)
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {"song.wav", "softer.flac", "renders/one.wav", "my_piano/model.safetensors"} <= {
        path.relative_to(song.parent).as_posix() for path in song.parent.rglob("*")
    }
    assert "1 written, 0 skipped, 0 failed" in done.stdout
    assert "track 1 is cut off" in done.stdout


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples/README.md", ROOT / "examples/plugin/README.md"], ids=name)
def test_relative_links_lead_somewhere(page: Path):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead, f"{name(page)}: {dead}"


def page_of(model: str) -> Path:
    return ROOT / f"docs/models/{SHARED_PAGES.get(model, model)}.md"


def table(page: Path, first: str) -> dict[str, list[str]]:
    """Further cells of the table whose first column is called `first`, by first cell without quotes."""
    text = page.read_text()
    rows = text[re.search(rf"^\| {first} \|.*\n\|[-| ]*\n", text, re.MULTILINE).end() :].split("\n\n")[0]
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows.splitlines()]
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("model", MODELS)
def test_options_of_the_model_are_listed_with_their_defaults(model: str):
    listed = table(page_of(model), f"option of `{model}`" if model in SHARED_PAGES else "option")
    parameters = dict(inspect.signature(registry.load("models", model)).parameters)
    del parameters["optimizer"], parameters["lr_scheduler"]
    assert list(listed) == list(parameters)
    for option, parameter in parameters.items():
        stated = listed[option][0]
        if stated.startswith("ln "):
            assert parameter.default == pytest.approx(math.log(float(stated.removeprefix("ln "))))
        else:
            assert stated == str(parameter.default), option


@pytest.mark.parametrize("model", MODELS)
def test_presets_of_the_model_are_listed(model: str):
    entry = registry.entry("models", model)
    heading = f"`{model}` preset" if model in SHARED_PAGES else "preset"
    assert set(table(page_of(model), heading)) == set(registry.presets(entry))


def test_corpora_are_listed_with_their_options():
    page = ROOT / "docs" / "corpora.md"
    ours = [entry for entry in registry.entries("corpora") if entry.package == registry.DISTRIBUTION]
    assert [re.match(r"\[`(\w+)`\]", cell)[1] for cell in table(page, "corpus")] == sorted(entry.name for entry in ours)
    for entry in ours:
        assert entry.name in anchors(page)
        if entry.name == "rendered":
            continue
        parameters = inspect.signature(entry.load()).parameters
        expected = {name: f"`{p.default}`" for name, p in parameters.items() if name not in ("root", "weight")}
        assert {option: cells[0] for option, cells in table(page, f"`{entry.name}`").items()} == expected


def test_options_of_the_sampled_piano_are_listed_with_their_defaults():
    parameters = inspect.signature(Rendered).parameters
    ours = set(parameters) & (set(inspect.signature(SampledPiano).parameters) - {"root"})
    listed = table(ROOT / "docs/training.md", "sampled piano")
    assert set(listed) == ours
    for option, (default, _) in listed.items():
        value = parameters[option].default
        assert yaml.safe_load(default.strip("`")) == (list(value) if isinstance(value, tuple) else value), option


def test_options_of_predict_are_listed_with_their_defaults(capsys: pytest.CaptureFixture[str]):
    listed = table(ROOT / "docs/quickstart.md", "option")
    assert main(["predict", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    ours = text.partition("Inputs and outputs:")[2].partition("Customize every aspect")[0]
    helped = set(re.findall(r"--\w+", ours)) - {"--inputs"}
    assert helped == set(listed) - {"--ckpt_path"}
    for option, (default, *_) in listed.items():
        if re.fullmatch(r"\d+", default):
            found = re.search(rf"{option} [A-Z_]+ .*?default: ([\d.]+)\)", ours)
            assert float(found[1]) == float(default), option


def test_layout_names_every_part_of_the_package():
    (tree,) = (block for block in blocks(ROOT / "docs/architecture.md", "") if block.startswith("midisynth/"))
    parts = {path.name for path in (ROOT / "midisynth").iterdir() if path.suffix == ".py" or path.is_dir()}
    parts -= {"__pycache__", "__init__.py", "__main__.py"}
    assert not sorted(part for part in parts if not re.search(rf"(?<![\w.]){re.escape(part)}(?![\w.])", tree))
    assert not sorted(word for word in re.findall(r"(\w+\.py)\b", tree) if word not in parts)
