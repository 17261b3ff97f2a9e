import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from conftest import relative_error, voice
from test_model import small_network

import verify
from dataLoader import TrialList, UnreadableAudio
from model import ECAPA_TDNN
from tools import InputError, RunError, save_checkpoint
from verify import SpeakerEncoder, choose_device, score_trials, scoring_crops


@pytest.fixture(scope="module")
def encoder():
    return SpeakerEncoder(small_network())


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    """Files of 0.4, 3.015 (just a crop), 5 and 9 seconds."""
    folder = tmp_path_factory.mktemp("utterances")
    for number, seconds in enumerate((0.4, 3.015, 5.0, 9.0)):
        soundfile.write(folder / f"{number}.wav", voice(100 + 20 * number, seconds, number), 16000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "some.model"
    weights = {f"speaker_encoder.{key}": value for key, value in small_network().state_dict().items()}
    weights["speaker_loss.weight"] = torch.randn(3, 192)
    save_checkpoint(path, {"kind": "model", "settings": {"C": 32}, "weights": weights, "speakers": ["a", "b", "c"]})
    return path


def test_golden_scores_of_the_original_recipe(golden, tmp_path):
    data = golden("taoruijie")
    prefix = "state/speaker_encoder."
    network = ECAPA_TDNN(C=64)
    network.load_state_dict({k.removeprefix(prefix): torch.tensor(data[k]) for k in data.files if k.startswith(prefix)})
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", data[f"wav_{i}"], 16000, subtype="FLOAT")
    encoder = SpeakerEncoder(network.eval())
    pieces = F.normalize(encoder.embed_batch(scoring_crops(torch.tensor(data["wav_2"]))))
    assert relative_error(pieces, F.normalize(torch.tensor(data["emb_pieces_2"]))) < 1e-4
    vectors = encoder.embed_for_scoring(["0.wav", "1.wav", "2.wav"], tmp_path)
    found = [float(vectors[f"{a}.wav"] @ vectors[f"{b}.wav"]) for a, b in data["pairs"]]
    assert relative_error(found, data["score"]) < 1e-4


def test_the_customary_score_is_the_mean_of_two_cosines(encoder, utterances, tmp_path):
    """By its definition: whole utterances, and all 25 pairs of five crops, one by one."""
    names = [f"{number}.wav" for number in range(4)]
    (tmp_path / "trials.txt").write_text(
        "".join(f"{int(a == b)} {a} {b}\n" for i, a in enumerate(names) for b in names[i:])
    )
    trials = TrialList(tmp_path / "trials.txt")
    found = score_trials(trials, encoder.embed_for_scoring(names, utterances))
    for score, first, second in zip(found, trials.enrol, trials.test):
        sets = []
        for name in (first, second):
            waveform = torch.from_numpy(soundfile.read(utterances / name, dtype="float32")[0])
            repeated = torch.from_numpy(np.pad(waveform.numpy(), (0, max(0, 48240 - len(waveform))), mode="wrap"))
            starts = [int(start) for start in np.linspace(0, len(repeated) - 48240, 5)]
            crops = torch.stack([repeated[start : start + 48240] for start in starts])
            sets.append((encoder.embed_batch(waveform[None])[0], encoder.embed_batch(crops)))
        (whole1, crops1), (whole2, crops2) = sets
        between_crops = [F.cosine_similarity(a, b, dim=0) for a in crops1 for b in crops2]
        expected = (F.cosine_similarity(whole1, whole2, dim=0) + torch.stack(between_crops).mean()) / 2
        assert score == pytest.approx(expected.item(), abs=1e-5)


def test_a_file_is_embedded_as_if_it_were_alone(encoder, utterances):
    names = [f"{number}.wav" for number in range(4)]
    together = encoder.embed_for_scoring(names, utterances, threads=4)
    assert list(encoder.embed_for_scoring([*names, *names], utterances)) == names  # each once
    for name in reversed(names):
        alone = encoder.embed_for_scoring([name], utterances, threads=1)
        assert np.array_equal(alone[name], together[name])


def test_embedding_leaves_a_network_in_training_as_it_was(utterances):
    network = small_network().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    embedding = SpeakerEncoder(network).embed(utterances / "2.wav")
    assert embedding.shape == (192,) and embedding.dtype == np.float32
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert np.array_equal(embedding, SpeakerEncoder(network.eval()).embed(utterances / "2.wav"))


def test_verify(encoder, utterances):
    first, second = utterances / "2.wav", utterances / "3.wav"
    a, b = encoder.embed(first).astype(float), encoder.embed(second).astype(float)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    result = encoder.verify(first, second)
    assert result.score == pytest.approx(cosine, abs=1e-6) and (result.same_speaker, result.threshold) == (None, None)
    assert encoder.verify(first, second, threshold=cosine - 0.01).same_speaker is True
    assert encoder.verify(first, second, threshold=cosine + 0.01).same_speaker is False
    assert encoder.verify(first, first).score == pytest.approx(1)


def test_command(command, model_file, utterances):
    first, second = utterances / "2.wav", utterances / "3.wav"
    expected = SpeakerEncoder.from_checkpoint(model_file).verify(first, second).score
    options = "--initial_model", model_file, "--device", "cpu"
    assert command(verify, *options, first, second) == (0, f"{expected:.4f}\n", "")
    status, printed, _ = command(verify, *options, "--threshold", "-1", first, second)
    assert (status, printed) == (0, f"{expected:.4f} same speaker\n")
    assert "different speakers" in command(verify, *options, "--threshold", "1", first, second)[1]


@pytest.mark.parametrize(("model", "file", "complaint"), [
    ("nowhere.model", "2.wav", "nowhere.model does not exist"),
    (None, "9.wav", "9.wav does not exist"),
    (None, "short.wav", "short.wav has 100 samples at 16 kHz, fewer than the 257 needed"),
])  # fmt: skip
def test_command_complaints(command, model_file, utterances, model, file, complaint):
    soundfile.write(utterances / "short.wav", np.ones(100), 16000)
    status, _, error = command(verify, "--initial_model", model or model_file, utterances / "3.wav", utterances / file)
    assert status == 2 and error.startswith("verify.py: ") and complaint in error and error.count("\n") == 1


def test_a_checkpoint_whose_weights_do_not_fit_is_named(model_file, tmp_path):
    checkpoint = torch.load(model_file, weights_only=True)
    checkpoint["settings"]["C"] = 64
    save_checkpoint(tmp_path / "odd.model", checkpoint)
    with pytest.raises(InputError, match=r"odd\.model holds other weights than its settings say: size mismatch"):
        SpeakerEncoder.from_checkpoint(tmp_path / "odd.model")


def test_broken_weights_give_no_scores(utterances):
    network = small_network()
    network.fc6.weight.data[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"the embedding of 2\.wav is not finite"):
        SpeakerEncoder(network).embed_for_scoring(["2.wav"], utterances)


def test_unreadable_files_and_devices(encoder, utterances):
    (utterances / "text.wav").write_text("no audio")
    with pytest.raises(UnreadableAudio, match=r"text\.wav"):
        encoder.embed(utterances / "text.wav")
    with pytest.raises(InputError, match="--device warp9"):
        choose_device("warp9")
