"""The web demo, through a browser's way in: HTTP against a server that runs in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile
from lightning.pytorch import Trainer

import midisynth
from midisynth import weights

ROOT = Path(__file__).resolve().parents[2]
BACH = ROOT / "examples" / "bach.mid"
SHIPPED = [one.name for one in weights.shipped() if ".mid" in one.reads and one.writes == ".wav"]
# A checkpoint as a user would name it.
OWN = str(weights.find(SHIPPED[0]).folder)

# Loaded by every interpreter that has this folder on its path; what is tried is written down.
LOOPBACK_ALONE = """
import os, socket

connect = socket.socket.connect

def connect_here(self, address):
    if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "localhost", "::1"):
        with open(os.environ["TRIED"], "a") as file:
            print(address, file=file)
        raise OSError("no network in this test")
    return connect(self, address)

socket.socket.connect = connect_here
"""


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        process: Of it.
        port: Of it.
        temporary: The folder in which it makes its own.
        tried: File of the addresses that it wanted to reach.
    """

    process: subprocess.Popen
    port: int
    temporary: Path
    tried: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(folder: Path, *words: str) -> Iterator[Server]:
    """`midisynth demo`, from its first line on."""
    site, temporary = folder / "site", folder / "temporary"
    site.mkdir()
    temporary.mkdir()
    (site / "sitecustomize.py").write_text(LOOPBACK_ALONE)
    tried = folder / "tried"
    tried.touch()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TMPDIR": str(temporary),
        "TRIED": str(tried),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    port = free_port()
    command = [sys.executable, "-m", "midisynth", "demo", "--port", str(port), *words]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            line = process.stdout.readline()
            assert line.startswith(f"http://127.0.0.1:{port}/ "), line + (folder / "log").read_text()
            yield Server(process, port, temporary, tried)
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio", "6.16", reason="the extra `demo` is not installed")
    with running(tmp_path_factory.mktemp("demo"), "--ckpt_path", OWN) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Any:
    return connected(server)


def connected(server: Server) -> Any:
    from gradio_client import Client

    return Client(server.url, verbose=False, analytics_enabled=False)


def played(client: Any, path: Path, checkpoint: str = SHIPPED[0], seed: int = 0) -> tuple[str, str]:
    from gradio_client import handle_file

    return client.predict(handle_file(path), checkpoint, seed, api_name="/render")


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return excerpt(tmp_path_factory.mktemp("music") / "d\u00e9j\u00e0 vu.mid")


def excerpt(path: Path, stretch: int = 1) -> Path:
    """Two seconds of a piece, or many times as many."""
    from dataclasses import replace

    from midisynth.music.midi import read_midi, write_midi

    piece = read_midi(BACH)
    notes = piece.notes[piece.notes["onset_sec"] < 2].copy()
    if stretch != 1:
        for field in ("onset", "duration"):
            notes[f"{field}_tick"] *= stretch
            notes[f"{field}_sec"] *= stretch
    write_midi(replace(piece, notes=notes), path)
    return path


def result_files(server: Server) -> list[Path]:
    return [path for path in server.temporary.rglob("*") if path.is_file() and path.suffix == ".wav"]


@pytest.mark.parametrize("checkpoint", [SHIPPED[0], OWN], ids=["shipped", "own"])
def test_a_file_is_played_as_predict_plays_it(client: Any, song: Path, tmp_path: Path, checkpoint: str):
    audio, told = played(client, song, checkpoint, seed=3)
    assert Path(audio).name == f"{song.stem}.wav"
    samples, rate = soundfile.read(audio)
    assert abs(samples).max() > 0.05
    assert told.startswith(f"{len(samples) / rate:.1f} s of audio")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    midisynth.predict(midisynth.load_model(checkpoint), song, tmp_path / "own.wav", seed=3, trainer=trainer)
    assert soundfile.read(tmp_path / "own.wav")[0] == pytest.approx(samples, abs=1e-3)


def test_the_example_of_the_page_is_a_midi_file(client: Any):
    (name,) = [endpoint for endpoint in client.endpoints.values() if endpoint.api_name == "/load_example"]
    loaded = client.predict(0, api_name=name.api_name)
    assert Path(loaded["value"]).read_bytes()[:4] == b"MThd"


def test_it_offers_what_it_was_given_and_what_ships(client: Any):
    described = client.view_api(return_format="dict")["named_endpoints"]["/render"]["parameters"]
    choices = [parameter["type"]["enum"] for parameter in described if "enum" in parameter["type"]]
    assert choices == [[OWN, *SHIPPED]]


@pytest.mark.parametrize(
    ("content", "suffix", "cause"),
    [(b"RIFF nothing", ".mid", "not a MIDI file"), (b"", ".mid", "empty"), (b"MThd", ".txt", "nvalid file type")],
)
def test_a_file_that_cannot_be_played_is_one_line(client: Any, tmp_path: Path, content: bytes, suffix: str, cause: str):
    from gradio_client.exceptions import AppError

    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(AppError) as caught:
        played(client, path)
    text = str(caught.value)
    assert cause in text
    assert "\n" not in text.strip()
    assert "Traceback" not in text


@pytest.mark.parametrize("inputs", [(None, SHIPPED[0], 0), ("song", "/etc", 0), ("song", SHIPPED[0], None)])
def test_wrong_inputs_are_refused(client: Any, song: Path, inputs: tuple):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    upload, *others = inputs
    with pytest.raises(AppError, match=r"choose a MIDI file|not in the list|whole number"):
        client.predict(upload and handle_file(song), *others, api_name="/render")


def post(server: Server, path: str, **options: Any) -> Any:
    import httpx

    return httpx.post(f"{server.url}/gradio_api/{path}", timeout=60, **options)


def test_large_uploads_are_refused(server: Server, song: Path):
    content = song.read_bytes()
    accepted = post(server, "upload", files={"files": ("song.mid", content + bytes(19 * 2**20))})
    assert accepted.status_code == 200
    refused = post(server, "upload", files={"files": ("song.mid", content + bytes(21 * 2**20))})
    assert refused.status_code == 413
    assert not [path for path in server.temporary.rglob("*") if path.is_file() and path.stat().st_size > 20e6]


@pytest.mark.parametrize("path", [str(BACH), "/etc/passwd", "../../../../etc/passwd"])
def test_files_outside_the_temporary_folder_are_refused(server: Server, path: str):
    """As an input, and to look at."""
    import httpx

    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, SHIPPED[0], 0]
    event = post(server, "call/render", json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{server.url}/gradio_api/call/render/{event}", timeout=60).text
    assert "event: error" in answer
    assert ".wav" not in answer
    for address in (f"gradio_api/file={path}", f"file={path}", f"static/{path}"):
        looked = httpx.get(f"{server.url}/{address}", timeout=60)
        assert looked.status_code in (400, 403, 404)
        assert b"root:" not in looked.content
        assert b"MThd" not in looked.content


def test_one_job_at_a_time_and_only_its_owner_cancels_it(server: Server, song: Path, tmp_path: Path):
    from gradio_client import handle_file

    long = excerpt(tmp_path / "long.mid", stretch=900)
    first, second = connected(server), connected(server)
    job = first.submit(handle_file(long), SHIPPED[0], 0, api_name="/render")
    waited_until(lambda: job.status().code.name == "PROCESSING")
    waiting = second.submit(handle_file(song), SHIPPED[0], 0, api_name="/render")
    waited_until(lambda: waiting.status().code.name == "IN_QUEUE")
    second.predict(api_name="/cancel")
    time.sleep(1)
    assert job.status().code.name == "PROCESSING"
    assert not waiting.done()
    before = time.monotonic()
    first.predict(api_name="/cancel")
    with pytest.raises(Exception, match="cancelled"):
        job.result(timeout=30)
    assert time.monotonic() - before < 10
    audio, _ = waiting.result(timeout=90)
    assert soundfile.info(audio).duration > 1


def waited_until(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_listens_on_the_loopback_alone(server: Server):
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("no /proc/net/tcp on this system")
    local = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    listening = [address for address in local if int(address.split(":")[1], 16) == server.port]
    assert [address.split(":")[0] for address in listening] == ["0100007F"]
    assert not Path("/proc/net/tcp6").exists() or f":{server.port:04X} " not in Path("/proc/net/tcp6").read_text()


def test_it_reaches_for_nothing_and_results_are_not_kept_twice(server: Server, client: Any, song: Path):
    played(client, song)
    assert server.tried.read_text() == ""
    # gradio's copy is all that is left of a job.
    waited_until(lambda: not list(server.temporary.glob("midisynth-demo-*/job-*")))
    assert result_files(server)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_removes_its_files(number: int, code: int, tmp_path: Path):
    pytest.importorskip("gradio", "6.16", reason="the extra `demo` is not installed")
    with running(tmp_path) as server:
        assert list(server.temporary.iterdir())
        # To all processes of the group, as a terminal would.
        os.killpg(server.process.pid, number)
        assert server.process.wait(timeout=30) == code
    assert not [path for path in server.temporary.iterdir() if path.name.startswith("midisynth-demo")]
    assert "Traceback" not in (tmp_path / "log").read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--port", "0"], "expected a number from 1 to 65535, got '0'"),
        (["--port", "http"], "expected a number from 1 to 65535, got 'http'"),
        (["--prot", "80"], "unrecognized arguments: --prot 80"),
    ],
)
def test_wrong_options_are_one_line(midisynth: Any, words: list[str], cause: str):
    result = midisynth("demo", *words)
    assert result.code == 2
    assert cause in result.error


def test_a_wrong_checkpoint_is_one_line(midisynth):
    pytest.importorskip("gradio", "6.16", reason="the extra `demo` is not installed")
    result = midisynth("demo", "--port", str(free_port()), "--ckpt_path", "nosuch.ckpt")
    assert result.code == 1
    assert result.error.startswith("nosuch.ckpt: no such checkpoint")


def test_a_port_that_is_taken_is_one_line(midisynth):
    pytest.importorskip("gradio", "6.16", reason="the extra `demo` is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = midisynth("demo", "--port", str(port))
    assert result.code == 2
    assert result.error.startswith(f"--port {port}: cannot be used")


def test_without_gradio_it_says_how_to_get_it(midisynth, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = midisynth("demo")
    assert result.code == 2
    assert result.error == "the demo needs gradio; install it with: pip install 'gradio>=6.16'"
