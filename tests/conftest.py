"""What several tests share: a small made-up corpus, the golden vectors, the real speech."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import roc_curve

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)  # the networks of the tests are too small for more


def shared(path):
    """A path in ../shared; skips where it is not at hand."""
    if not (SHARED / path).exists():
        pytest.skip(f"{SHARED / path} is not here: it is no part of the repository")
    return SHARED / path


@pytest.fixture
def golden():
    """golden(system) -> the vectors that the system's original code computed."""
    return lambda system: np.load(shared(f"golden/{system}.npz"), allow_pickle=False)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real speech."""
    return shared("data")


def relative_error(found, expected):
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def sklearn_eer(scores, labels):
    """EER in % by linear interpolation of scikit-learn's curve."""
    alarm, hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    return 100 * np.interp(0, alarm - (1 - hit), alarm)


def voice(pitch, seconds, seed):
    """A buzz of a given pitch under a random envelope: enough for a network to tell "speakers" apart."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    tone = sum(np.sin(2 * np.pi * k * pitch * time + k) / k for k in range(1, 15))
    envelope = np.interp(time, np.linspace(0, seconds, 12), random.uniform(0.2, 1, 12))
    return (0.1 * tone * envelope + 0.003 * random.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def make_corpus(folder):
    """A corpus in the layouts of VoxCeleb, MUSAN and RIRS_NOISES: 6 + 4 "speakers", 4 utterances of about 2 s each."""
    lists = {"train": [], "eval": []}
    for number, pitch in enumerate([80, 97, 115, 140, 170, 205, 90, 105, 155, 220]):
        side = "train" if number < 6 else "eval"
        for take in range(4):
            path = f"id{number:05d}/session{take // 2}/{take:05d}.wav"
            (folder / side / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / side / path, voice(pitch, 1.5 + 0.3 * take, [number, take]), 16000)
            lists[side].append((f"id{number:05d}", path))
    (folder / "train_list.txt").write_text("".join(f"{speaker} {path}\n" for speaker, path in lists["train"]))
    trials = [
        f"{int(a[0] == b[0])} {a[1]} {b[1]}\n" for i, a in enumerate(lists["eval"]) for b in lists["eval"][i + 1 :]
    ]
    (folder / "trials.txt").write_text("".join(trials))
    random = np.random.default_rng(0)
    for category in ("noise", "music", "speech"):
        for number, seconds in enumerate((1.0, 4.0, 9.5)):
            path = folder / "musan" / category / "made-up" / f"{category}-{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * random.standard_normal(int(16000 * seconds)), 16000)
    for number in range(4):
        path = folder / "rirs" / "smallroom" / "Room001" / f"Room001-{number:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        response = np.zeros(8000)
        response[200 + 50 * number] = 0.9
        response[400:] += 0.1 * random.standard_normal(7600) * np.exp(-np.arange(7600) / 1500)
        soundfile.write(path, response, 16000)
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """command(module, *arguments) -> (exit status, what was printed, what was complained), without a new process."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        from tools import run_command

        with pytest.raises(SystemExit) as ended:
            run_command(module.main, getattr(module, "FAILURE", 1))
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def succeeds(command):
    """succeeds(module, *arguments) -> what was printed by a command that has to end with status 0."""

    def run(module, *arguments):
        status, printed, complained = command(module, *arguments)
        assert status == 0, complained
        return printed

    return run


def data_flags(corpus):
    return ["--train_list", corpus / "train_list.txt", "--train_path", corpus / "train",
            "--eval_list", corpus / "trials.txt", "--eval_path", corpus / "eval",
            "--musan_path", corpus / "musan", "--rir_path", corpus / "rirs"]  # fmt: skip


def start_script(*arguments, processes=0):
    """Start trainSpeakerNet.py, with ``processes`` by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
    command = [sys.executable, *torchrun, "trainSpeakerNet.py", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def run_script(*arguments, processes=0, check=True):
    """(exit status, what was printed, what was complained) of trainSpeakerNet.py; check: it has to end well."""
    process = start_script(*arguments, processes=processes)
    printed, complained = process.communicate(timeout=600)
    assert not check or process.returncode == 0, complained
    return process.returncode, printed, complained
