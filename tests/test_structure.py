"""The rules of docs/architecture.md: who imports whom, what stays light, who is named where, which files exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from midisynth import registry

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "midisynth"
MODELS = PACKAGE / "models"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODEL_FOLDERS = sorted(folder for folder in MODELS.iterdir() if (folder / "__init__.py").is_file())
MODEL_FILES = {"__init__.py", "codec.py", "network.py", "model.py", "data.py", "checkpoint.py"}
ENTRIES = [entry for entry in registry.entries("models") if entry.package == registry.DISTRIBUTION]

# Part of the package -> parts that it may import, besides itself and `errors`.
SHARED = {"music", "nn", "diffusion", "generation", "audio", "metrics", "training", "datasets"}
# The contract and what carries it out; they may know each other, and everything shared.
RUN_TIME = {
    *("module", "data_module", "render", "checkpoints", "registry", "inputs", "outputs", "parts", "tensor_files"),
    "stored_parts",
    *(
        "weights",
        "render_progress",
        "render_report",
        "evaluation",
        "embeddings",
        "pictures",
        "vocoders",
        "reports",
        "interpretations",
    ),
    "summaries",
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "interrupts": set(),
    "registry": {"datasets", "module"},  # in functions, and for annotations
    "__init__": {"checkpoints", "module", "music", "render"},  # for annotations
    "__main__": {"main"},
    "music": set(),
    "nn": set(),
    "diffusion": set(),
    "generation": set(),
    "audio": set(),
    "training": set(),
    "metrics": {"audio", "music"},
    "datasets": {"music", "audio", "training"},
    **{name: SHARED | RUN_TIME | {"__init__"} for name in RUN_TIME - {"registry"}},
    "models": SHARED | RUN_TIME,
}
STANDARD_LIBRARY_ONLY = {"errors", "interrupts", "registry", "main", "__init__", "__main__"}
# Third parties with one door each, or a few; those marked True are imported in functions alone.
DOORS = {
    "torchaudio": ("audio/backend.py", False),
    "diffusers": (("diffusion/sampling.py", "models/phrase_ldm/ldm.py"), True),
    "transformers": (("models/phrase_ldm/network.py", "audio/neural_codec.py"), True),
    "audiocraft": ("audio/neural_codec.py", True),
    "pretty_midi": ("music/midi.py", True),
    "partitura": (
        tuple(
            f"music/{name}.py"
            for name in (
                "score",
                "score_files",
                "score_marks",
                "score_parts",
                "score_repeats",
                "score_rows",
                "alignment_files",
            )
        ),
        True,
    ),
    "parangonar": ("music/alignment.py", True),
    "h5py": ("models/dexter/archives.py", True),
    "transkun": ("metrics/transcription.py", True),
    "miditok": ("models/spectrogram_diffusion/miditok_codec.py", True),
    "symusic": ("models/spectrogram_diffusion/miditok_codec.py", True),
    "gradio": ("demo.py", True),
    "onnxruntime": ("audio/onnx.py", True),
    "torchcrepe": ("metrics/embeddings.py", True),
    "numba": ("models/midi2wave/engines/numba_engine.py", True),
}
# Names of models that are also names of interfaces.
INTERFACES = {"vocoder"}
HEAVY = (
    *("torch", "numpy", "yaml", "jsonargparse", "lightning", "soundfile", "partitura", "diffusers", "pretty_midi"),
    "transformers",
)


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        target: Dotted name.
        line: Where.
        lazy: In a function.
        typing: Under `if TYPE_CHECKING`.
    """

    target: str
    line: int
    lazy: bool
    typing: bool


def imports(source: str, module: str) -> Iterator[Import]:
    """Every import of a module, with relative ones made absolute."""

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            # `from package import name` may name a module: both readings are yielded.
            yield from (Import(f"{base}.{alias.name}", node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from walk(child, lazy, True)
            for child in node.orelse:
                yield from walk(child, lazy, typing)
        else:
            lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, lazy, typing)

    return walk(ast.parse(source), False, False)


def part(dotted: str) -> str | None:
    """Part of the package that a dotted name lies in: `midisynth.music.midi` -> `music`; None for third parties."""
    top, *rest = dotted.split(".")
    if top != "midisynth":
        return None
    if not rest:
        return "__init__"
    known = (PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file()
    return rest[0] if known else "__init__"


def breaches(source: str, relative: str) -> list[str]:
    """What a module of the package imports although it must not.

    Args:
        source: Its text.
        relative: Its path within the package.
    """
    pieces = relative.removesuffix(".py").split("/")
    module = ".".join(["midisynth", *pieces])
    own = pieces[0]
    found = []
    for item in imports(source, module):
        where = f"{relative}:{item.line} imports {item.target}"
        target = part(item.target)
        top = item.target.split(".")[0]
        if target is None:
            if (
                own in STANDARD_LIBRARY_ONLY
                and not item.lazy
                and not item.typing
                and top not in sys.stdlib_module_names
            ):
                found.append(f"{where}: {own} imports the standard library alone")
            door, functions_only = DOORS.get(top, (relative, False))
            if relative not in (door if isinstance(door, tuple) else (door,)) and not item.typing:
                found.append(f"{where}: only {door} may")
            elif functions_only and not item.lazy and not item.typing:
                found.append(f"{where}: only in functions")
            if own == "music" and not item.lazy and not item.typing and top not in sys.stdlib_module_names | {"numpy"}:
                found.append(f"{where}: music imports NumPy alone")
            continue
        if own in STANDARD_LIBRARY_ONLY and not item.lazy and not item.typing:
            if target not in STANDARD_LIBRARY_ONLY:
                found.append(f"{where}: {own} stays light")
        elif own in MAY_IMPORT and target not in MAY_IMPORT[own] | {own, "errors"}:
            found.append(f"{where}: {own} may import {sorted(MAY_IMPORT[own])}")
        if target == "models" and own == "models":
            folder = item.target.split(".")[2]
            if folder != pieces[1]:
                found.append(f"{where}: models never import each other")
        elif target == "models":
            found.append(f"{where}: models are known through their entry points alone")
    return found


def test_imports_point_in_one_direction():
    found = [text for path in SOURCES for text in breaches(path.read_text(), path.relative_to(PACKAGE).as_posix())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("music/midi.py", "import torch"),
        ("music/midi.py", "import pretty_midi"),
        ("music/rolls.py", "def f():\n    import pretty_midi"),
        ("nn/attention.py", "from midisynth.audio import features"),
        ("nn/attention.py", "from ..diffusion.schedules import cosine"),
        ("audio/io.py", "import torchaudio"),
        ("registry.py", "import numpy"),
        ("main.py", "from midisynth.cli import run"),
        ("models/one/model.py", "def f():\n    from midisynth.models.other import Other"),
        ("models/one/model.py", "from midisynth.cli import run"),
        ("cli.py", "def f():\n    import midisynth.models.one"),
        ("training/sampler.py", "from midisynth.module import MidiModule"),
    ],
)
def test_a_forbidden_import_is_found(relative: str, source: str):
    assert breaches(source, relative)


def heavy_modules_after(statement: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after a statement."""
    script = f"import sys\n{statement}\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import midisynth, midisynth.errors, midisynth.registry, midisynth.main",
        "import contextlib, io, midisynth.main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for command in ('--help', '--version', 'models', 'data', 'corpora'):\n"
        "        assert midisynth.main.main([command]) == 0, command",
    ],
)
def test_light_commands_import_nothing_heavy(statement: str):
    assert heavy_modules_after(statement) == set()


def test_a_heavy_import_is_found():
    assert "numpy" in heavy_modules_after("import midisynth.music.notes")


def test_every_import_of_the_package_is_quiet_and_leaves_the_random_state_alone(tmp_path: Path):
    """Every rank of a distributed run imports everything: nothing may be written, printed or drawn meanwhile."""
    names = ["midisynth." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in SOURCES]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith(("__main__", "testing"))]
    script = (
        "import importlib, random, sys, numpy, torch\n"
        "import lightning.pytorch\n"  # draws from `random` itself
        "before = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[1].copy()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert random.getstate() == before[0]\n"
        "assert torch.equal(torch.get_rng_state(), before[1])\n"
        "assert (numpy.random.get_state()[1] == before[2]).all()\n"
        "assert not torch.cuda.is_initialized()\n"
        # torchmetrics imports transformers itself, but no model of it.
        "heavy = {'diffusers', 'transformers.models.t5.modeling_t5', 'partitura', 'pretty_midi'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def squeezed(text: str) -> str:
    """Lower case, without what may join the words of a name; spaces stay, titles of papers are no names."""
    return re.sub(r"[-_]", "", text.lower())


def test_nothing_outside_the_model_folders_names_a_model():
    names = {squeezed(name) for folder in MODEL_FOLDERS for name in [folder.name]}
    names |= {squeezed(name) for entry in ENTRIES for name in (entry.name, entry.attribute)}
    names -= INTERFACES
    assert names
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in SOURCES
        if not path.is_relative_to(MODELS) and not path.is_relative_to(PACKAGE / "weights")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(name in squeezed(line) for name in names)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", MODEL_FOLDERS, ids=lambda folder: folder.name)
def test_model_folders_look_alike(folder: Path):
    files = {path.name for path in folder.iterdir() if path.suffix == ".py"}
    explained = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    odd = {name for name in files ^ MODEL_FILES if name not in explained}
    assert not odd, f"{sorted(odd)} missing or extra, and not explained in {folder.name}/__init__.py"


def test_the_models_package_is_empty():
    assert (MODELS / "__init__.py").read_text() == "", "finding a preset imports it"


def test_everything_public_has_a_docstring():
    missing = []
    for path in SOURCES:
        source = path.read_text()
        if not source:
            continue
        tree = ast.parse(source)
        relative = path.relative_to(PACKAGE)
        if ast.get_docstring(tree) is None:
            missing.append(f"{relative}")
        missing += [
            f"{relative}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
            and not node.name.startswith("_")
            and ast.get_docstring(node) is None
        ]
    assert not missing, "\n".join(missing)


def test_every_entry_has_presets_and_every_preset_an_entry():
    for entry in ENTRIES:
        assert "tiny" in registry.presets(entry), f"{entry.name} lacks cfg/{entry.name}/tiny.yaml"
    folders = {path.name for path in (ROOT / "cfg").iterdir()}
    assert folders == {entry.name for entry in ENTRIES}


def test_every_model_has_a_data_module_of_its_name():
    assert {e.name for e in ENTRIES} <= {e.name for e in registry.entries("data")}


@pytest.mark.parametrize("group", ["models", "data", "corpora"])
def test_every_registered_class_can_be_loaded(group: str):
    for entry in registry.entries(group):
        if entry.package == registry.DISTRIBUTION:
            entry.load()
