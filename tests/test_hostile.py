"""Broken and hostile files: every reader refuses them in one line that names the file, and runs nothing in them."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from conftest import voice
from published import pyannote_shapes, random_state, speechbrain_shapes, taoruijie_shapes, wespeaker_shapes
from test_model import network_of, small_network

from corpora.audio import AudioFile, Folder, UnreadableAudio
from corpora.lists import TrainingList, TrialList, audio_of, check_files
from corpora.pack import Pack, write_pack
from evaluation.backend import read_cohort
from evaluation.records import read_history
from evaluation.scoring import read_scores
from inference.checkpoints import Pretrained, load_pretrained
from inference.encoder import SpeakerEncoder
from inference.gallery import Gallery
from tools import InputError, load_checkpoint

# ---- every reader, with a small valid file for it (broken by the thousand in studies/fuzz.py) ------------------------


class Reader(NamedTuple):
    read: object  # function (folder)
    files: dict  # {name: content} of a valid case; the first is the one to break


def torch_file(content, **settings):
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def sound(form):
    buffer = io.BytesIO()
    soundfile.write(buffer, voice(120, 0.3, 0), 16000, format=form)
    return buffer.getvalue()


def our_checkpoint(kind):
    weights = {f"speaker_encoder.{key}": tensor for key, tensor in small_network().state_dict().items()}
    return torch_file({
        "kind": kind, "settings": {"C": 8}, "weights": {**weights, "speaker_loss.weight": torch.ones(2, 192)},
        "optimizer": {}, "epoch": 3, "step": 2, "speakers": ["a", "b"], "train_list_sha256": "0" * 64,
        "scores": {"trials": {"thresholds": {"EER": 0.5}}},
    })  # fmt: skip


def make_readers(folder):
    """{name: Reader} of everything that reads a file from elsewhere; folder: an empty one to work in."""
    encoder = SpeakerEncoder(small_network())
    trials = TrialList.of("trials.txt", [1, 0], ["a.wav", "b.wav"], ["c.wav", "c.wav"])
    (folder / "a.wav").write_bytes(sound("WAV"))
    write_pack(folder / "pack", Folder(folder), TrainingList.of("list.txt", ["a"], ["a.wav"]))
    packed = {path.name: path.read_bytes() for path in (folder / "pack").iterdir()}
    vectors, model = np.ones((2, encoder.vector_size), np.float32), np.array(encoder.fingerprint())
    gallery = npz(names=np.array(["a", "b"]), vectors=vectors, counts=np.array([1, 2]), model=model)
    brain, wespeaker = (torch_file(random_state(shapes(8))) for shapes in (speechbrain_shapes, wespeaker_shapes))
    lightning = {"state_dict": random_state(pyannote_shapes()), "pyannote.audio": {}, "hyper_parameters": {}}
    classifier, labels = torch_file({"weight": torch.ones(2, 192)}), b"'id1' => 0\n'id2' => 1\n=====\n"
    beside = {"embedding_model.ckpt": brain, "classifier.ckpt": classifier}
    configuration = json.dumps({"model": {"type": "ecapa-tdnn-sv", "yesOrno_thr": 0.37}}).encode()
    history = b'{"epoch": 0, "lists": {}}\n{"epoch": 1, "lists": {}}\n'
    return {
        "training list": Reader(lambda at: TrainingList(at / "l.txt"), {"l.txt": b"a a/1.wav\nb b/1.wav\n"}),
        "trial list": Reader(lambda at: TrialList(at / "l.txt"), {"l.txt": b"1 a.wav b.wav\n0 a.wav c.wav\n"}),
        "files in a list": Reader(lambda at: audio_of(at / "l.txt"), {"l.txt": b"a a/1.wav\nb.wav\n"}),
        "wav": Reader(lambda at: AudioFile(at / "a.wav").read(), {"a.wav": sound("WAV")}),
        "flac": Reader(lambda at: AudioFile(at / "a.flac").read(), {"a.flac": sound("FLAC")}),
        "pack": Reader(Pack, {"pack.json": packed["pack.json"], **packed}),
        "pack index": Reader(Pack, {"index.tsv": packed["index.tsv"], **packed}),
        "our model": Reader(lambda at: load_pretrained(at / "x.model"), {"x.model": our_checkpoint("model")}),
        "training state": Reader(lambda at: load_checkpoint(at / "state.pt", "training state"),
                                 {"state.pt": our_checkpoint("training state")}),
        "TaoRuijie": Reader(load_pretrained, {"pretrain.model": torch_file(random_state(taoruijie_shapes(8, 3)))}),
        "SpeechBrain": Reader(load_pretrained, beside),
        "SpeechBrain classifier": Reader(load_pretrained, {"classifier.ckpt": classifier, **beside}),
        "SpeechBrain labels": Reader(load_pretrained, {"label_encoder.txt": labels, **beside}),
        "ModelScope settings": Reader(load_pretrained, {"configuration.json": configuration, "ecapa_tdnn.bin": brain}),
        "wespeaker": Reader(load_pretrained, {"avg_model.pt": wespeaker}),
        "pyannote": Reader(load_pretrained, {"pytorch_model.bin": torch_file(lightning)}),
        "gallery": Reader(lambda at: Gallery(at / "g.npz", encoder), {"g.npz": gallery}),
        "cohort": Reader(lambda at: read_cohort(at / "c.npz", encoder), {"c.npz": npz(embeddings=np.eye(4, 192))}),
        "records": Reader(lambda at: read_history(at / "metrics.jsonl"), {"metrics.jsonl": history}),
        "scores": Reader(lambda at: read_scores(at / "s.txt", trials),
                         {"s.txt": b"0.5 a.wav c.wav\n0.25 b.wav c.wav\n"}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return make_readers(tmp_path_factory.mktemp("readers"))


NAMES = [
    "training list", "trial list", "files in a list", "wav", "flac", "pack", "pack index", "our model",
    "training state", "TaoRuijie", "SpeechBrain", "SpeechBrain classifier", "SpeechBrain labels",
    "ModelScope settings", "wespeaker", "pyannote", "gallery", "cohort", "records", "scores",
]  # fmt: skip
LENIENT = {"wav", "training list", "files in a list", "records"}  # truncated or empty ones may still be readable


class Harm:
    """Unpickled in the ordinary way, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def broken(content):
    """{what: a broken or hostile file in place of one with this content}."""
    harmful = {"kind": "model", "state_dict": {}, "weights": {}, "x": Harm()}
    return {
        "cut": content[: len(content) * 2 // 3],
        "empty": b"",
        "bytes": np.random.default_rng(0).bytes(5000),
        "another kind": npz(a=np.ones(3)),
        "pickle": pickle.dumps(harmful),
        "torch": torch_file(harmful),
        "torch before 1.6": torch_file(harmful, _use_new_zipfile_serialization=False),
        "numpy": npz(names=np.array([Harm()]), embeddings=np.array([Harm()])),
    }


@pytest.mark.parametrize("name", NAMES)
def test_broken_and_hostile_files_are_refused_in_one_line(name, readers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(readers) == NAMES
    reader = readers[name]
    first, content = next(iter(reader.files.items()))
    for file, whole in reader.files.items():
        (tmp_path / file).write_bytes(whole)
    reader.read(tmp_path)
    for what, bad in broken(content).items():
        (tmp_path / first).write_bytes(bad)
        try:
            reader.read(tmp_path)
            assert what in ("cut", "empty") and name in LENIENT, what
        except InputError as error:
            assert str(tmp_path) in str(error) and str(error).isprintable()
            assert what != "torch" or not first.endswith((".model", ".pt", ".bin", ".ckpt")) or "run code" in str(error)
    assert not Path("harm").exists()
    with pytest.raises(FileExistsError):
        Path("harm").mkdir()
        pickle.loads(pickle.dumps(Harm()))  # the bait does bite when it is unpickled


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (TrainingList, load_pretrained, AudioFile, lambda path: read_cohort(path, None)):
            with pytest.raises(InputError, match="is not a regular file"):
                read(path)


# ---- paths that leave the folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaving", ["../secret.wav", "s0/../../secret.wav", "{root}/s0/0.wav", "/etc/passwd", "s0/.."])
def test_a_path_that_leaves_the_folder_is_refused_with_its_line(leaving, tmp_path):
    root = tmp_path / "root"
    leaving = leaving.format(root=root)
    for file in ("root/s0/0.wav", "secret.wav"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "train.txt").write_text(f"a s0/0.wav\n\nb {leaving}\n")
    (tmp_path / "trials.txt").write_text(f"1 s0/0.wav s0/0.wav\n\n0 s0/0.wav {leaving}\n")
    for listed in (TrainingList(tmp_path / "train.txt"), TrialList(tmp_path / "trials.txt")):
        with pytest.raises(InputError, match=rf"{listed.path} line 3: {leaving} leads out of --x, .*--paths_anywhere"):
            check_files(listed, Folder(root), "--x")
        if leaving.endswith(".wav"):
            check_files(listed, Folder(root), "--x", anywhere=True)
    with pytest.raises(InputError, match=rf"train.txt line 3: {leaving} leads out of --root"):
        audio_of(tmp_path / "train.txt", root)


# ---- audio that is no speech -----------------------------------------------------------------------------------------

SPEECH = voice(120, 2.0, 0)
SOUNDS = {
    "zeros": 0 * SPEECH, "dc": 0 * SPEECH + 0.25, "denormal": 1e-40 * SPEECH, "one zero": np.zeros(1),
    "a click": np.eye(1, 32000)[0], "alternating": np.resize([1.0, -1.0], 32000), "huge": 1e4 * SPEECH,
    "nan": np.where(np.arange(len(SPEECH)) % 99, SPEECH, np.nan),
    "infinity": np.where(np.arange(len(SPEECH)) % 99, SPEECH, -np.inf),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::inference.encoder.AudioWarning")
@pytest.mark.parametrize("system", ["ours", "speechbrain", "modelscope", "wespeaker", "pyannote", "campplus"])
def test_embeddings_are_finite_or_the_file_is_named(system, tmp_path):
    """Alone, in windows, and side by side, where no utterance spoils another."""
    encoder = SpeakerEncoder(network_of(system), "cpu", Pretrained(system, network_of(system)))
    for name, samples in SOUNDS.items():
        soundfile.write(tmp_path / name, samples.astype(np.float32), 16000, "FLOAT", format="WAV")
    for name, found, _ in encoder.embed_files(list(SOUNDS), tmp_path, threads=2):
        if name in ("nan", "infinity"):
            assert isinstance(found, UnreadableAudio) and name in str(found)
            with pytest.raises(UnreadableAudio, match=name):
                encoder.embed_windows(tmp_path / name, 1.0, 0.5)
        else:
            alone = encoder.embed(tmp_path / name)
            assert np.isfinite(alone).all() and np.allclose(found, alone, rtol=0, atol=1e-4 * np.abs(alone).max())
            assert np.isfinite(encoder.embed_windows(tmp_path / name, 1.0, 0.5)[0]).all()
            assert np.isfinite(encoder.embed_for_scoring([name], tmp_path)[name].vector).all()
