"""Every reader of files that others wrote: how to make a small valid file, and how it is read."""

import contextlib
import io
import json
import shutil

import numpy as np
import soundfile
import torch
from published import (
    HYPERPARAMS,
    pyannote_shapes,
    random_state,
    speechbrain_shapes,
    taoruijie_shapes,
    wespeaker_shapes,
    write_lightning,
)

from corpora.audio import AudioFile, Folder
from corpora.lists import TrainingList, TrialList
from corpora.pack import Pack, write_pack
from evaluation.backend import read_cohort
from evaluation.scoring import read_history, read_scores
from inference.checkpoints import load_pretrained
from inference.encoder import SpeakerEncoder
from inference.gallery import Gallery
from model import ECAPA_TDNN
from tools import load_checkpoint, save_checkpoint

ENCODER = SpeakerEncoder(ECAPA_TDNN(C=8))
TRIALS = TrialList.of("trials", [1, 0], ["a", "a"], ["b", "c"])


def write_audio(path):
    soundfile.write(path, 0.1 * np.sin(np.arange(4000)), 16000, format="WAV")


def read_audio(path):
    with AudioFile(path) as file:
        assert np.isfinite(file.read()).all()


def write_index(path):
    """The index of a pack, taken out of it."""
    source = path.parent / "source"
    source.mkdir(exist_ok=True)
    write_audio(source / "a.wav")
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        write_pack(path.parent / "pack", "speech", Folder(source), ["a.wav"])
    shutil.copy(path.parent / "pack" / "index.tsv", path)


def read_index(path):
    (path.parent / "pack" / "index.tsv").unlink()
    path.rename(path.parent / "pack" / "index.tsv")
    with Pack(path.parent / "pack").open("a.wav") as file:
        file.read()


def write_model(path):
    weights = random_state(taoruijie_shapes(8, 3))
    save_checkpoint(path, {"kind": "model", "settings": {"C": 8}, "weights": weights, "speakers": ["a", "b", "c"]})


def write_state(path):
    state = {"settings": {}, "weights": {"w": torch.zeros(9)}, "optimizer": {}, "epoch": 1, "step": 0, "speakers": []}
    save_checkpoint(path, {"kind": "training state", **state, "train_list_sha256": ""})


def write_gallery(path):
    arrays = {"names": np.array(["a"]), "vectors": np.zeros((1, 384), np.float32), "counts": np.array([1])}
    with open(path, "wb") as file:
        np.savez(file, **arrays, model=np.array(ENCODER.fingerprint()))


def write_cohort(path):
    with open(path, "wb") as file:
        np.savez(file, embeddings=np.random.default_rng(0).standard_normal((3, 192)).astype(np.float32))


def text(content):
    return lambda path: path.write_text(content)


def tensors(content):
    return lambda path: torch.save(content, path)


def beside(name, weights="embedding_model.ckpt", shapes=speechbrain_shapes):
    """Read a published folder in which the file has this name."""

    def read(path):
        folder = path.parent / "published"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        torch.save({"weight": torch.ones(2, 192)}, folder / "classifier.ckpt")
        torch.save(random_state(shapes(8)), folder / weights)
        (folder / name).unlink(missing_ok=True)
        path.rename(folder / name)
        load_pretrained(folder)

    return read


RECORD = json.dumps({"epoch": 1, "loss": 1.0, "lists": {"trials": {"eer": 5.0}}}) + "\n"

CONFIGURATION = json.dumps({"model": {"type": "ecapa-tdnn-sv", "yesOrno_thr": 0.37}})

READERS = {  # name: (write a valid file, read it)
    "training list": (text("a a/1.wav\nb b/1.wav\n"), TrainingList),
    "trial list": (text("1 a b\n0 a c\n"), TrialList),
    "scores": (text("0.5 a b\n0.25 a c\n"), lambda path: read_scores(path, TRIALS)),
    "metrics.jsonl": (text(2 * RECORD), read_history),
    "audio": (write_audio, read_audio),
    "pack": (write_index, read_index),
    "model": (write_model, load_pretrained),
    "state": (write_state, lambda path: load_checkpoint(path, "training state")),
    "TaoRuijie": (tensors(random_state(taoruijie_shapes(8, 3))), load_pretrained),
    "SpeechBrain": (tensors(random_state(speechbrain_shapes(8))), beside("embedding_model.ckpt")),
    "wespeaker": (tensors(random_state(wespeaker_shapes(8))), load_pretrained),
    "pyannote": (lambda path: write_lightning(path, random_state(pyannote_shapes())), load_pretrained),
    "classifier.ckpt": (tensors({"weight": torch.ones(2, 192)}), beside("classifier.ckpt")),
    "label_encoder.txt": (text("'a' => 0\n'b' => 1\n====\n"), beside("label_encoder.txt")),
    "hyperparams.yaml": (text(HYPERPARAMS), beside("hyperparams.yaml")),
    "config.yaml": (text("model: ECAPA_TDNN_GLOB_c512\n"), beside("config.yaml", "avg_model.pt", wespeaker_shapes)),
    "configuration.json": (text(CONFIGURATION), beside("configuration.json", "ecapa_tdnn.bin")),
    "gallery": (write_gallery, lambda path: Gallery(path, ENCODER)),
    "cohort": (write_cohort, lambda path: read_cohort(path, ENCODER)),
}
