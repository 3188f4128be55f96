"""The neural codec: training of its codes on one process and two, files of any length, published files, embeddings."""

from __future__ import annotations

import json
import os

import frechet
import numpy as np
import pytest
import soundfile
import torch
import torch.distributed
import torch.multiprocessing
import yaml
from safetensors.torch import save_file

from midisynth.audio.neural_codec import EncodecCodec, EncodecOptions, NeuralCodec
from midisynth.checkpoints import load_model, save_weights
from midisynth.embeddings import load_embedding
from midisynth.errors import CheckpointError, TensorMismatch, UsageError
from midisynth.metrics.embeddings import CodecEmbedding, embed_file
from midisynth.models.midi_valle import NoteRows, PianoCodec
from midisynth.models.midi_valle.codebooks import CodebookLearner
from midisynth.models.midi_valle.neural_codec_model import load_codec, read_codec
from midisynth.models.midi_valle.prompts import default_prompt, load_prompt
from midisynth.module import Item, Noise

SIZES = {"sample_rate": 8000, "ratios": [5, 4], "dim": 8, "filters": 4, "codebooks": 3, "bins": 16, "lstm_layers": 1}


def codebooks_of(dim=4, bins=16, count=3):
    options = EncodecOptions(8000, (2,), dim, 2, count, bins, lstm_layers=1)
    books = [layer.codebook for layer in EncodecCodec(options).network.quantizer.layers]
    for book in books:
        book.inited.zero_()
    return books


def state_of(books):
    return torch.cat([torch.cat([b.embed, b.embed_avg, b.cluster_size[:, None]], dim=1) for b in books])


@pytest.fixture(scope="module")
def trained():
    """A small codec whose codes are not zeros."""
    torch.manual_seed(0)
    model = PianoCodec(**SIZES).eval()
    with torch.no_grad():
        model.learner(model.network.analyse(torch.randn(8, 8000) * 0.1), learn=True)
    return model


@pytest.fixture(scope="module")
def clusters():
    """Vectors [batch, dim, frames] around 16 points."""
    random = torch.Generator().manual_seed(1)
    centres = 3 * torch.randn(16, 4, generator=random)

    def draw(batch=8, frames=50):
        chosen = torch.randint(16, (batch, frames), generator=random)
        return (centres[chosen] + 0.1 * torch.randn(batch, frames, 4, generator=random)).transpose(1, 2)

    return draw


# Codes that learn


def test_codes_find_the_vectors(clusters):
    """Every codebook takes from what is left; all codes are in use."""
    books = codebooks_of()
    learner = CodebookLearner(books)
    assert not learner.initialised
    raw = clusters()
    passed = learner(raw, learn=False)
    assert torch.equal(passed.latents, raw) and passed.commitment == 0
    for _ in range(60):
        found = learner(clusters(), learn=True)
    assert learner.initialised
    assert found.perplexity[0] > 12
    errors = []
    test = clusters()
    for count in (1, 2, 3):
        some = CodebookLearner(books[:count])(test, learn=False)
        errors.append(float((some.latents - test).square().mean()))
    assert errors[0] < 0.1 * float(test.var()) and errors[2] < errors[1] < errors[0]


def test_codes_follow_their_vectors():
    """One step of the means, by hand."""
    books = codebooks_of(bins=2, count=1)
    learner = CodebookLearner(books, decay=0.75, dead_share=0.0)
    book = books[0]
    book.inited.fill_(1)
    book.embed.copy_(torch.tensor([[0.0] * 4, [10.0] * 4]))
    book.cluster_size.fill_(4.0)
    book.embed_avg.copy_(4 * book.embed)
    vectors = torch.tensor([[1.0] * 4, [2.0] * 4, [9.0] * 4])
    learner(vectors.T[None], learn=True)
    torch.testing.assert_close(book.cluster_size, torch.tensor([3 + 0.5, 3 + 0.25]))
    torch.testing.assert_close(book.embed[:, 0], torch.tensor([0.25 * 3 / 3.5, (30 + 0.25 * 9) / 3.25]))


def test_unused_codes_move():
    books = codebooks_of(bins=4, count=1)
    learner = CodebookLearner(books, decay=0.5, dead_share=0.1)
    book = books[0]
    book.inited.fill_(1)
    book.embed.fill_(1000.0)
    book.embed[0] = 0
    book.cluster_size.fill_(1.0)
    book.embed_avg.copy_(book.embed)
    for _ in range(12):
        learner(torch.randn(1, 4, 100), learn=True)
    assert book.embed.abs().max() < 10
    assert state_of(books).isfinite().all()


def test_gradients_pass_once(clusters):
    """To the encoder as if there were no codes, plus its commitment; codes have none."""
    learner = CodebookLearner(codebooks_of())
    learner(clusters(), learn=True)
    latents = clusters().requires_grad_()
    found = learner(latents, learn=False)
    found.latents.sum().backward(retain_graph=True)
    assert torch.equal(latents.grad, torch.ones_like(latents))
    latents.grad = None
    found.commitment.backward()
    assert latents.grad.abs().sum() > 0


def _learn(rank: int, folder: str, vectors: torch.Tensor) -> None:
    """What each of two processes does: codes from nothing, then steps without moving any."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(rank)
    books = codebooks_of()
    learner = CodebookLearner(books, dead_share=0.0)
    mine = vectors[:, rank::2]
    learner(mine[0], learn=True)
    start = state_of(books)
    for batch in mine[1:]:
        learner(batch, learn=True)
    torch.save((start, state_of(books)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork, which this system has not")
def test_two_processes_have_the_same_codes(clusters, tmp_path):
    """They draw from their own vectors, and learn as one process does from all of them."""
    vectors = torch.stack([clusters() for _ in range(5)])
    torch.multiprocessing.start_processes(_learn, (str(tmp_path), vectors), nprocs=2, start_method="fork")
    (start, end), (other_start, other_end) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(start, other_start) and torch.equal(end, other_end)
    books = codebooks_of()
    for book, state in zip(books, start.chunk(3), strict=True):
        book.embed.copy_(state[:, :4])
        book.embed_avg.copy_(state[:, 4:8])
        book.cluster_size.copy_(state[:, 8])
        book.inited.fill_(1)
    learner = CodebookLearner(books, dead_share=0.0)
    for batch in vectors[1:]:
        learner(batch, learn=True)
    torch.testing.assert_close(state_of(books), end, rtol=1e-4, atol=1e-5)


def test_sizes_are_no_buffers(trained):
    """Weight averaging would round them, and convolutions would wait for a GPU to read them."""
    assert not [name for name, buffer in trained.network.named_buffers() if not buffer.is_floating_point()]


# The codec


def test_codes_and_back(trained):
    assert isinstance(trained, NeuralCodec)
    audio = torch.randn(2, 1234) * 0.1
    codes = trained.encode(audio)
    assert codes.shape == (2, 62, 3) and codes.dtype == torch.int64 and codes.max() < 16
    assert trained.decode(codes).shape == (2, 62 * 20)
    latents = trained.latents(audio)
    assert torch.equal(trained.network.synthesise(latents.transpose(1, 2)), trained.decode(codes))
    with torch.no_grad():
        learned, _ = trained._reconstruct(audio, learn=False)
    torch.testing.assert_close(learned, trained(audio), rtol=0, atol=1e-5)


def test_bins_are_a_power_of_two():
    with pytest.raises(UsageError, match="bins is 100: EnCodec takes powers of 2"):
        EncodecCodec(EncodecOptions(bins=100))


@pytest.mark.parametrize("seconds", [0.01, 1.3, 41.7])
def test_files_keep_their_length(trained, tmp_path, seconds):
    """Blocks of 20 s are joined: nothing is missing, doubled or out of place."""
    path = tmp_path / "in.flac"
    samples = round(8000 * seconds)
    soundfile.write(path, 0.1 * np.sin(np.arange(samples) * 0.05), 8000)
    noise = Noise([Item(path, path.with_suffix(".wav"), "key")])
    with torch.inference_mode():
        chunks = [chunk.audio for _, chunk in trained.render([trained.codec.encode(path)], noise)]
        audio = torch.cat(chunks, dim=1)
        assert audio.shape == (1, samples)
        if samples < 8000 * 20:
            torch.testing.assert_close(audio, trained(torch.from_numpy(soundfile.read(path)[0]).float()[None]))


def test_as_a_part_of_a_checkpoint(trained, tmp_path):
    save_weights(trained, tmp_path / "codec", half=False)
    reference = str(tmp_path / "codec")
    again = load_codec(reference, content=read_codec(reference))
    audio = torch.randn(1, 400) * 0.1
    assert torch.equal(again.encode(audio), trained.encode(audio))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    rivalled = PianoCodec(**SIZES, adversarial=True)
    rivalled.network.load_state_dict(trained.network.state_dict())
    save_weights(rivalled, tmp_path / "rivalled")
    content = read_codec(str(tmp_path / "rivalled"))
    assert len(content) < 200_000, "discriminators are of no use to others"
    assert not hasattr(load_codec("rivalled", content=content), "adversary")
    with pytest.raises(CheckpointError, match="not a PianoCodec"):
        load_codec("vocoder_piano")


def test_training_starts_from_another_codec(trained, tmp_path):
    save_weights(trained, tmp_path / "codec", half=False)
    model = PianoCodec(**SIZES, init_from=str(tmp_path / "codec"))
    model.initialise()
    assert model.learner.initialised
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="is a codec of another size"):
        PianoCodec(**{**SIZES, "dim": 4}, init_from=str(tmp_path / "codec")).initialise()


# Published files


@pytest.fixture
def export(tmp_path):
    """Writes a checkpoint as audiocraft exports it, with references in its configuration, and returns the file."""

    def write(content=None, **changes):
        seanet = {
            "dimension": 8,
            "n_filters": 4,
            "n_residual_layers": 1,
            "ratios": [5, 4],
            "activation": "ELU",
            "norm": "weight_norm",
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 7,
            "dilation_base": 2,
            "pad_mode": "reflect",
            "true_skip": True,
            "compress": 2,
            "lstm": 1,
            "causal": "${encodec.causal}",
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None},
        }
        config = {
            "sample_rate": 8000,
            "channels": 1,
            "encodec": {"causal": False, "renormalize": False, "sample_rate": "${sample_rate}"},
            "seanet": {**seanet, **changes},
            "rvq": {"n_q": 3, "bins": 16},
        }
        path = tmp_path / "export.bin"
        torch.save({"xp.cfg": yaml.safe_dump(config), "version": "1.3.0", "exported": True, **(content or {})}, path)
        return path

    return write


def as_audiocraft(model):
    """A state dict under the names of audiocraft."""
    found = {}
    for name, tensor in model.network.network.state_dict().items():
        part = name.split(".")[0]
        if part == "quantizer":
            name = name.replace("quantizer.layers", "quantizer.vq.layers").replace(".codebook.", "._codebook.")
        else:
            weight = name.replace("parametrizations.weight.original0", "weight_g")
            weight = weight.replace("parametrizations.weight.original1", "weight_v")
            # The names of the two kinds of convolution do not matter here.
            name = weight.replace(".layers.", ".model.", 1).replace(".conv.", ".conv.conv.")
        found[name] = tensor
    return found


@pytest.mark.parametrize("nested", [False, True])
def test_exported_and_trained_files(trained, export, nested):
    state = as_audiocraft(trained)
    path = export({"best_state": {"model": state} if nested else state})
    model = PianoCodec.load_published(path).eval()
    assert model.hparams.pad_mode == "reflect"
    assert not model.hparams.causal
    own = trained.network.network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.network.network.state_dict().items())


def test_refused_files(trained, export, tmp_path):
    state = {"best_state": as_audiocraft(trained)}
    for path, error, match in (
        (lambda: export({"pretrained": "facebook/encodec_32khz"}), CheckpointError, "only names a model"),
        (lambda: export(state, pad_mode="replicate"), CheckpointError, "seanet.pad_mode is 'replicate'"),
        (lambda: export({**state, "xp.cfg": "x: ["}), CheckpointError, "its xp.cfg is not that of an EnCodec"),
        (lambda: export({**state, "xp.cfg": "sample_rate: 8000"}), CheckpointError, "its xp.cfg is not that of"),
        (lambda: export({"best_state": 3}), CheckpointError, "expected a compression checkpoint of audiocraft"),
        (lambda: export(state, dimension=4), TensorMismatch, "of another shape"),
    ):
        with pytest.raises(error, match=match) as caught:
            PianoCodec.load_published(path())
        assert "\n" not in str(caught.value)


def test_a_folder_of_transformers(trained, tmp_path):
    """As `facebook/encodec_32khz` lies on the Hub: `load_model` takes it as it is."""
    folder = tmp_path / "encodec"
    folder.mkdir()
    config = trained.network.network.config.to_dict()
    # The files on the Hub have the old names of normalised weights.
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor.contiguous()
        for name, tensor in trained.network.network.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    audio = torch.randn(1, 400) * 0.1
    assert torch.equal(load_model(folder).encode(audio), trained.encode(audio))
    (folder / "config.json").write_text(json.dumps({**config, "audio_channels": 2}))
    with pytest.raises(CheckpointError, match="audio_channels is 2"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert not PianoCodec.is_published(folder)


# Embeddings


def test_latents_are_an_embedding(trained, tmp_path):
    save_weights(trained, tmp_path / "codec", half=False)
    network = load_embedding("codec", str(tmp_path / "codec"))
    assert (network.dim, network.sample_rate, network.frames_per_sec) == (8, 8000, 400.0)
    sound = 0.1 * np.random.default_rng(0).standard_normal((16000, 2))
    path = tmp_path / "sound.wav"
    soundfile.write(path, sound, 16000, subtype="FLOAT")
    rows = embed_file(path, network)
    assert rows.shape == (400, 8)
    assert not (tmp_path / "embeddings").exists()
    kept = embed_file(path, network, cache=True)
    torch.testing.assert_close(kept, rows, rtol=1e-3, atol=1e-3)
    (file,) = (tmp_path / "embeddings").rglob("*.npy")
    assert np.load(file).dtype == np.float16
    assert torch.equal(embed_file(path, network, cache=True), kept)
    # A file that has changed since is embedded anew.
    soundfile.write(path, 0.5 * sound, 16000, subtype="FLOAT")
    os.utime(path, (file.stat().st_mtime + 5,) * 2)
    assert not torch.equal(embed_file(path, network, cache=True), kept)
    with pytest.raises(CheckpointError, match=r"vocoder_piano is a NeuralVocoder, not a neural codec"):
        load_embedding("codec", "vocoder_piano")


def test_the_codec_may_be_on_another_device():
    """Of this one, which every machine has, shapes alone can be asked."""
    codec = PianoCodec(**{**SIZES, "ratios": [20, 20]}).to("meta")
    assert CodecEmbedding(codec, "codec", "1").dim == 8
    prompt = load_prompt(*default_prompt(), codec, NoteRows(), device="meta")
    assert prompt.codes.shape == (60, 3) and prompt.codes.device.type == "meta"


def test_folders_are_compared_file_by_file(trained, tmp_path, capsys):
    """The script of the documentation: what is like the recordings comes first."""
    save_weights(trained, tmp_path / "codec", half=False)
    random = np.random.default_rng(0)
    files = {("made", "near"): 0.1, ("made", "far"): 1.0, ("recorded", "a"): 0.1, ("recorded", "b"): 0.1}
    for (folder, name), gain in files.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        soundfile.write(tmp_path / folder / f"{name}.wav", gain * random.standard_normal(16000), 8000, subtype="FLOAT")
    words = [tmp_path / "made", tmp_path / "recorded", f"--embedding=codec={tmp_path / 'codec'}"]
    assert frechet.main([*map(str, words), f"--csv={tmp_path / 'files.csv'}"]) == 0
    printed = capsys.readouterr().out
    assert "fad_inf" in printed and "8 x 400/s" in printed
    lines = (tmp_path / "files.csv").read_text().split()
    assert [line.split(",")[0] for line in lines] == ["file", "near.wav", "far.wav"]
    (tmp_path / "none").mkdir()
    assert frechet.main([str(tmp_path / "none"), *map(str, words[1:])]) == 1
    assert "no audio files" in capsys.readouterr().err
