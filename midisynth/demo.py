"""The web demo: a page on this machine that plays MIDI files on the checkpoints that ship.

The page is gradio's and is served to this machine alone. Files are rendered one at a time in a process of its own,
which keeps its models; to cancel a job is to end that process, and the next job starts another.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midisynth import weights
from midisynth.errors import CheckpointError, MidisynthError, RenderError, UsageError

if TYPE_CHECKING:
    import gradio

#: Files that are larger are not accepted.
MAX_UPLOAD = "20mb"
#: Jobs that may wait; more are turned away.
MAX_WAITING = 8
#: Files that are this old are removed while the server runs (seconds).
MAX_AGE_SEC = 3600

_READS = ".mid"
_WRITES = (".wav", ".flac", ".ogg")
_PACKAGE = Path(__file__).parent
# The wheel carries it inside the package; in a clone it is in the package's sibling examples/.
_EXAMPLES = [folder / "examples" / "mozart_k331.mid" for folder in (_PACKAGE, _PACKAGE.parent)]
_ABOUT = """\
# midisynth
Choose a MIDI file and hear it. Everything is computed on this machine; nothing leaves it.
"""
_EXAMPLE_LABEL = "Mozart, Sonata K. 331, played by a pianist (Vienna 4x22 Piano Corpus, W. Goebl, CC BY 4.0)"


def serve(port: int, checkpoint: str | None = None) -> None:
    """Serve the page on 127.0.0.1 until a signal comes.

    Args:
        port: Where.
        checkpoint: Offered beside those that ship, and before them; as in `midisynth.load_model`.

    Raises:
        MidisynthError: gradio is missing, the port is taken, or the checkpoint cannot be used.
    """
    gradio = _import_gradio()
    with tempfile.TemporaryDirectory(prefix="midisynth-demo-") as name, Worker() as worker:
        folder = Path(name)
        # Uploads and copies of results; gradio reads the variable when a page is made.
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
        if checkpoint is not None:
            _check(checkpoint, *worker.formats(checkpoint))
        page = _page(gradio, worker, _offered(checkpoint), folder)
        try:
            _, url, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                max_file_size=MAX_UPLOAD,
                show_error=True,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                footer_links=[],
                # The default theme's fonts would be fetched from the web.
                theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            )
        except OSError as error:
            raise UsageError(f"--port {port}: cannot be used; another program may have it, take another") from error
        try:
            print(f"{url} (Ctrl+C ends it)", flush=True)
            while True:
                time.sleep(3600)
        finally:
            worker.close()
            page.close(verbose=False)


class Worker:
    """A process that renders one file at a time. It starts with the context and ends with it."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._turn = threading.Lock()
        self._owner: str | None = None
        self._closed = False

    def __enter__(self) -> Worker:
        # It takes seconds to import what it needs; they pass while the page is made.
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def formats(self, checkpoint: str) -> tuple[Sequence[str], str]:
        """Suffixes of the files that a model reads, and the suffix of those that it writes."""
        return self._ask("formats", checkpoint)

    def render(self, owner: str | None, checkpoint: str, source: Path, output: Path, seed: int) -> str:
        """Render a file; wait for the turn before.

        Args:
            owner: Who may cancel it.
            checkpoint: As in `midisynth.load_model`.
            source: MIDI file.
            output: Audio file.
            seed: As in `midisynth.predict`.

        Returns:
            What to tell: length, speed, warnings.

        Raises:
            MidisynthError: It cannot be rendered, or was cancelled.
        """
        with self._turn:
            self._owner = owner
            try:
                return self._ask("render", checkpoint, source, output, seed)
            finally:
                self._owner = None

    def cancel(self, owner: str | None) -> None:
        """End the job that runs if it is of this owner."""
        if owner is not None and owner == self._owner:
            self._process.kill()

    def close(self) -> None:
        """End the process, and with it the job."""
        self._closed = True
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        # With this end closed here, the death of the process ends the wait for its answer.
        theirs.close()

    def _ask(self, *question: Any) -> Any:
        if not self._process.is_alive():
            self._start()
        try:
            self._connection.send(question)
            succeeded, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            if not self._closed:
                # At once: the next job finds it ready.
                self._start()
            raise RenderError("cancelled") from error
        if not succeeded:
            raise answer
        return answer


def _work(connection: Connection) -> None:
    """Answer questions until the other side is gone."""
    # Ctrl+C goes to all processes of a terminal; the server ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    models: dict[str, Any] = {}
    from midisynth.checkpoints import load_model
    from midisynth.render import predict

    def loaded(checkpoint: str) -> Any:
        if checkpoint not in models:
            models[checkpoint] = load_model(checkpoint)
        return models[checkpoint]

    def answer(kind: str, checkpoint: str, *rest: Any) -> Any:
        model = loaded(checkpoint)
        if kind == "formats":
            return (model.reads if model.needs_input else ()), model.writes
        source, output, seed = rest
        report = predict(model, source, output, seed=seed)
        if report.failed:
            raise RenderError(f"{source.name}: {report.failed[0].reason}")
        summary = f"{report.audio_sec:.1f} s of audio, {report.real_time_factor:.1f} x real time"
        return "; ".join([summary, *report.written[0].warnings])

    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, answer(*question)))
        except MidisynthError as error:
            connection.send((False, RenderError(str(error))))
        except Exception as error:
            logging.getLogger("midisynth.demo").exception("a job failed")
            connection.send((False, RenderError(f"{type(error).__name__}: {' '.join(str(error).split())}")))


def _import_gradio() -> Any:
    # Both are read on import. Without the first it asks a server which version is the newest.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UsageError("the demo needs gradio; install it with: pip install 'gradio>=6.16'") from error
    return gradio


def _offered(checkpoint: str | None) -> list[str]:
    """References of the checkpoints to choose from."""
    shipped = [one.name for one in weights.shipped() if _READS in one.reads and one.writes in _WRITES]
    return list(dict.fromkeys([checkpoint, *shipped] if checkpoint is not None else shipped))


def _check(checkpoint: str, reads: Sequence[str], writes: str) -> None:
    if _READS not in reads or writes not in _WRITES:
        raise CheckpointError(f"{checkpoint}: the demo plays models from {_READS} to audio; this one writes {writes}")


def _page(gradio: Any, worker: Worker, offered: Sequence[str], folder: Path) -> gradio.Blocks:
    """The page.

    Args:
        gradio: The package.
        worker: Does the work.
        offered: Checkpoints to choose from.
        folder: Of jobs, and of what gradio keeps.
    """

    def render(
        upload: str | None, checkpoint: str, seed: int | None, request: gradio.Request
    ) -> Iterator[tuple[str, str]]:
        try:
            source = _below(folder / "gradio", upload)
            with tempfile.TemporaryDirectory(dir=folder, prefix="job-") as job:
                # Uploads keep their names, and so do downloads of what became of them.
                output = Path(job, f"{source.stem}.wav")
                text = worker.render(request.session_hash, checkpoint, source, output, _seed(seed))
                # gradio copies it when it takes it; what is left is removed when it comes back for more.
                yield str(output), text
        except MidisynthError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    def cancel(request: gradio.Request) -> None:
        worker.cancel(request.session_hash)

    # The types are names of a package that is not imported here; gradio looks at them.
    render.__annotations__["request"] = cancel.__annotations__["request"] = gradio.Request

    with gradio.Blocks(
        title="midisynth", analytics_enabled=False, delete_cache=(MAX_AGE_SEC // 6, MAX_AGE_SEC)
    ) as page:
        gradio.Markdown(_ABOUT)
        with gradio.Row():
            with gradio.Column():
                upload = gradio.File(label="MIDI file", file_types=[".mid", ".midi"])
                checkpoint = gradio.Dropdown(list(offered), value=offered[0], label="Checkpoint")
                seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
                example = next(path for path in _EXAMPLES if path.is_file())
                gradio.Examples([[str(example)]], [upload], label="Example", example_labels=[_EXAMPLE_LABEL])
            with gradio.Column():
                with gradio.Row():
                    play = gradio.Button("Play", variant="primary")
                    stop = gradio.Button("Cancel", variant="stop")
                audio = gradio.Audio(label="Result", interactive=False, buttons=["download"], autoplay=True)
                told = gradio.Textbox(label="Report", interactive=False)
        job = play.click(render, [upload, checkpoint, seed], [audio, told], api_name="render", concurrency_limit=1)
        # Not queued: they have to pass by the job that they end.
        stop.click(cancel, api_name="cancel", queue=False, cancels=[job])
        page.unload(cancel)
    page.queue(max_size=MAX_WAITING)
    return page


def _below(folder: Path, upload: str | None) -> Path:
    """The uploaded file, if it is one: gradio checks that too, but has had holes."""
    if upload is None:
        raise UsageError("choose a MIDI file first")
    path = Path(upload).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UsageError("only files that were uploaded are read")
    return path


def _seed(seed: int | None) -> int:
    if seed is None:
        raise UsageError("seed: give a whole number")
    return int(seed)
