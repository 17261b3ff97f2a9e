"""Files from strangers: each reader refuses what it cannot read in one line, runs nothing, stays in its folder."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from conftest import data_flags, voice
from readers import READERS, write_audio
from test_encoder import save_model
from test_model import network_of, small_network

import prepareData
import trainSpeakerNet
import verify
from corpora.audio import Folder, UnreadableAudio, read_audio
from corpora.lists import TrainingList, TrialList, check_files
from evaluation.backend import read_cohort
from inference.checkpoints import Pretrained, load_pretrained
from inference.encoder import SpeakerEncoder
from tools import InputError, one_line

TORCH = {"model", "state", "TaoRuijie", "SpeechBrain", "wespeaker", "pyannote", "classifier.ckpt"}
CAN_BE_READ = {  # by chance, or because nothing need lie beside the weights
    "metrics.jsonl": ("truncated", "empty"), "training list": ("truncated",), "audio": ("truncated",),
    "label_encoder.txt": ("folder",), "hyperparams.yaml": ("truncated", "empty", "text", "folder"),
    "config.yaml": ("truncated", "empty", "text", "folder"),
}  # fmt: skip


class Harm:
    """Unpickled in the ordinary way, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def hostile_pickle(path, harm):
    if zipfile.is_zipfile(path) and path.read_bytes()[:60].find(b".npy") > 0:
        np.savez(path.with_suffix(".npz"), x=np.array([harm], dtype=object))
        path.with_suffix(".npz").rename(path)
    else:
        torch.save({"kind": "model", "weights": {}, "x": harm}, path)


@pytest.mark.parametrize("kind", ["hostile pickle", "bare pickle", "truncated", "empty", "text", "binary", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name, kind):
    write, read = READERS[name]
    path, harm = tmp_path / "file", tmp_path / "harm"
    write(path)
    read(path)  # is valid
    if path.exists():
        path.unlink()
    write(path)
    whole = path.read_bytes()
    if kind == "hostile pickle":
        hostile_pickle(path, Harm(harm))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({
            "bare pickle": pickle.dumps(Harm(harm)), "truncated": whole[: len(whole) // 2], "empty": b"",
            "text": b"some words\nthat are something else\n", "binary": bytes(range(256)) * 20,
        }[kind])  # fmt: skip
    try:
        read(path)
        assert kind in CAN_BE_READ.get(name, ()), "was read"
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2100
        assert str(tmp_path) in str(error)
        if kind == "hostile pickle" and name in TORCH:
            assert "is refused: it could run code on loading, it asks for posix.mkdir" in str(error)
    assert not harm.exists()


def test_the_bait_does_bite(tmp_path):
    pickle.loads(pickle.dumps(Harm(tmp_path / "harm")))
    assert (tmp_path / "harm").exists()


def test_a_message_is_one_line_whatever_it_quotes():
    assert one_line("a\nb\x1b[31m") == r"a\nb\x1b[31m" and len(one_line("x" * 10_000)) < 2100


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (TrainingList, load_pretrained, read_audio, lambda path: read_cohort(path, None)):
            with pytest.raises(InputError, match="is not a regular file"):
                read(path)


@pytest.mark.filterwarnings("ignore::inference.encoder.AudioWarning")
@pytest.mark.parametrize("system", ["ours", "speechbrain", "modelscope", "wespeaker", "pyannote"])
def test_embeddings_are_finite_or_the_file_is_named(system, tmp_path):
    """Of audio that is no speech, in a batch where no file may spoil another."""
    speech, network = voice(120, 2.0, 0), network_of(system)
    sounds = {"zeros": 0 * speech, "dc": 0 * speech + 0.25, "denormal": 1e-40 * speech, "one zero": np.zeros(1),
              "a click": np.eye(1, 32000)[0], "huge": 1e4 * speech,
              "nan": np.where(np.arange(len(speech)) % 99, speech, np.nan)}  # fmt: skip
    for name, samples in sounds.items():
        soundfile.write(tmp_path / name, samples.astype(np.float32), 16000, "FLOAT", format="WAV")
    for name, found, _ in SpeakerEncoder(network, "cpu", Pretrained(system, network)).embed_files(sounds, tmp_path):
        if name == "nan":
            assert isinstance(found, UnreadableAudio) and name in str(found)
        else:
            assert np.isfinite(found).all(), name


# ---- paths that leave the folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaving", ["../b.wav", "/etc/b.wav", "a/../../b.wav", "..\\b.wav"])
@pytest.mark.parametrize("kind", ["training", "trials"])
def test_a_path_that_leaves_the_folder_is_refused_with_file_line_and_flag(tmp_path, leaving, kind):
    (tmp_path / "root").mkdir()
    write_audio(tmp_path / "root/a.wav")
    write_audio(tmp_path / "b.wav")
    path = tmp_path / "list.txt"
    lines = ["x a.wav", f"y {leaving}"] if kind == "training" else ["0 a.wav a.wav", f"1 a.wav {leaving}"]
    path.write_text("\n".join(lines) + "\n")
    listed = TrainingList(path) if kind == "training" else TrialList(path)
    with pytest.raises(InputError, match=r"list\.txt line 2: .*b\.wav leads out of --some_path"):
        check_files(listed, Folder(tmp_path / "root"), "--some_path")


def test_names_with_dots_and_links_stay(tmp_path):
    (tmp_path / "root/a..b").mkdir(parents=True)
    write_audio(tmp_path / "c.wav")
    write_audio(tmp_path / "root/a..b/..wav")
    (tmp_path / "root/link.wav").symlink_to(tmp_path / "c.wav")
    (tmp_path / "list.txt").write_text("x a..b/..wav\ny link.wav\n")
    check_files(TrainingList(tmp_path / "list.txt"), Folder(tmp_path / "root"), "--some_path")


def test_every_command_with_a_list_takes_the_one_flag(command, corpus, tmp_path, monkeypatch):
    lists = {name: tmp_path / f"{name}.txt" for name in ("train", "trials", "embed")}
    lists["train"].write_text((corpus / "train_list.txt").read_text().replace(" id", f" {corpus}/train/id"))
    lists["trials"].write_text((corpus / "trials.txt").read_text().replace(" id", " ../eval/id"))
    lists["embed"].write_text(f"a {corpus}/eval/id00006/session0/00000.wav\n")
    save_model(tmp_path / "x.model", small_network(C=8))
    flags = {"--C": 8, "--batch_size": 12, "--max_epoch": 1, "--n_cpu": 1, "--device": "cpu", "--num_frames": 50,
             "--musan_path": "", "--rir_path": "", "--save_path": tmp_path / "e"}  # fmt: skip
    flags = [each for pair in {**dict(zip(*[iter(data_flags(corpus))] * 2)), **flags}.items() for each in pair]
    pack = ["--pack", tmp_path / "pack", "--train_list", lists["train"], "--train_path", corpus / "train"]
    embed = ["--embed", lists["embed"], "--out", tmp_path / "e.npz", "--model", tmp_path / "x.model", "--device", "cpu"]
    for module, arguments, where in (
        (trainSpeakerNet, [*flags, "--train_list", lists["train"]], f"{lists['train']} line 1: {corpus}/train/id"),
        (trainSpeakerNet, [*flags, "--eval_list", lists["trials"]], f"{lists['trials']} line 1: ../eval/id"),
        (prepareData, pack, f"{lists['train']} line 1: {corpus}/train/id"),
        (verify, embed, f"{lists['embed']} line 1: {corpus}/eval/id"),
    ):  # fmt: skip
        status, _, complaint = command(module, *arguments)
        assert status == 2 and where in complaint and "--paths_anywhere" in complaint and complaint.count("\n") == 1
        status, _, complaint = command(module, *arguments, "--paths_anywhere")
        assert status == 0, complaint
        shutil.rmtree(tmp_path / "e", ignore_errors=True)
