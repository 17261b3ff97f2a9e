"""Published systems: their numbers, their files, and what can be wrong with them."""

import zipfile

import numpy as np
import pytest
import soundfile
import torch
from conftest import relative_error, shared
from published import (
    WRITERS,
    campplus_shapes,
    golden_state,
    pyannote_shapes,
    random_state,
    speechbrain_shapes,
    taoruijie_shapes,
    wespeaker_shapes,
    write_lightning,
    write_modelscope,
    write_pyannote,
    write_speechbrain,
    write_wespeaker,
)

from inference.checkpoints import STAND_IN_FOR, load_pretrained
from inference.encoder import AudioWarning
from inference.systems import PREFIX
from model import ECAPA_TDNN
from tools import InputError, load_tensors, save_checkpoint
from verify import SpeakerEncoder


@pytest.fixture
def published(golden, tmp_path):
    """published(system) -> (golden vectors, encoder loaded from files in the authors' layout, the three wav files)."""

    def load(system):
        data = golden(system)
        (tmp_path / system).mkdir()
        encoder = SpeakerEncoder.from_checkpoint(WRITERS[system](tmp_path / system, data))
        files = [tmp_path / f"{i}.wav" for i in range(3)]
        for i, file in enumerate(files):
            soundfile.write(file, data[f"wav_{i}"], 16000, subtype="FLOAT")
        return data, encoder, files

    return load


# ---- the systems' own numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", WRITERS)
def test_golden_features_embeddings_and_scores(published, system):
    """The table of docs/use.md: the largest relative errors against what the original code computed."""
    data, encoder, files = published(system)
    features, embeddings = [], []
    for i, file in enumerate(files):
        with torch.inference_mode():
            wav = torch.tensor(data[f"wav_{i}"])[None]
            # pyannote's features are what SincNet gives.
            found = encoder.network.sincnet(wav[None]) if system == "pyannote" else encoder.network.features(wav)
        expected = data[f"feat_{i}"]
        features.append(relative_error(found[0] if found.shape[1:] == expected.shape else found[0].t(), expected))
        embeddings.append(relative_error(encoder.embed(file), data[f"emb_{i}"]))
    scores = [encoder.verify(files[a], files[b]).score for a, b in data["pairs"]]
    expected = 1 - data["distance"] if system == "pyannote" else data["score"]
    worst = max(features), max(embeddings), relative_error(scores, expected)
    print(f"\n| {system} | {worst[0]:.1e} | {worst[1]:.1e} | {worst[2]:.1e} |")
    assert max(worst) < 1e-4


def test_speechbrain_decides_classifies_and_reads_any_file(published, tmp_path):
    data, encoder, files = published("speechbrain")
    pairs = [(files[a], files[b]) for a, b in data["pairs"]]
    assert [encoder.verify(*pair).same_speaker for pair in pairs] == data["decision"].tolist()
    assert (encoder.threshold, encoder.origin) == (0.25, "SpeechBrain's own")
    assert encoder.decide(0.25).same_speaker is False and encoder.decide(0.2501).same_speaker is True  # above, not at
    for i, file in enumerate(files):
        found = encoder.classify(file)
        assert found.speaker == str(data[f"class_best_{i}"])
        assert found.score == pytest.approx(data[f"class_cosine_{i}"].max(), abs=1e-5)
    soundfile.write(tmp_path / "stereo.wav", data["stereo_44k"], 44100, subtype="FLOAT")
    assert relative_error(encoder.embed(tmp_path / "stereo.wav"), data["emb_stereo_44k"]) < 1e-4


def test_modelscope_decides_by_its_configuration(published):
    data, encoder, files = published("modelscope")
    scores = data["score"]
    for (a, b), score in zip(data["pairs"], scores):
        result = encoder.verify(files[a], files[b])
        assert result.score == round(result.score, 5) == pytest.approx(score, abs=2e-5)
        assert (result.threshold, result.same_speaker) == (0.37, result.score >= 0.37)


def test_pyannote_filters_weights_batch_and_shortest_input(published, tmp_path):
    data, encoder, _ = published("pyannote")
    found = encoder.embed_batch(data["wav_1"], weights=data["weights_1"][None].astype(np.float32))
    assert relative_error(found[0], data["emb_weighted_1"]) < 1e-5
    with torch.no_grad():
        filters = encoder.network.sincnet.conv1d[0].filterbank.filters()
    assert relative_error(filters, data["sinc_filters"]) < 1e-5
    assert relative_error(encoder.embed_batch(data["batch_wav"]), data["batch_emb"]) < 1e-4
    soundfile.write(tmp_path / "short.wav", data["wav_short"], 16000, subtype="FLOAT")
    with pytest.warns(AudioWarning, match="only 0.32 s long"):
        assert relative_error(encoder.embed(tmp_path / "short.wav"), data["emb_short"]) < 1e-4


# ---- recognising -----------------------------------------------------------------------------------------------------


def test_a_lone_ambiguous_file_is_not_guessed(golden, tmp_path):
    data = golden("modelscope")
    for name in ("ecapa_tdnn.bin", "embedding_model.ckpt", "model.pt"):
        torch.save(golden_state(data), tmp_path / name)
        with pytest.raises(InputError, match=r"may be speechbrain or modelscope, .* say which by --system"):
            load_pretrained(tmp_path / name)
    waveform = torch.tensor(data["wav_1"])[None]
    found = {}
    for system in ("speechbrain", "modelscope"):
        network = load_pretrained(tmp_path / "model.pt", system).network
        with torch.inference_mode():
            found[system] = relative_error(network(waveform)[0], data["emb_1"])
    assert found["modelscope"] < 1e-4 < 0.01 < found["speechbrain"]


def test_the_files_beside_it_tell_whose_it_is(golden, tmp_path):
    write_speechbrain(tmp_path, golden("speechbrain"))
    (tmp_path / "label_encoder.txt").rename(tmp_path / "label_encoder.ckpt")  # as SpeechBrain's cache names it
    found = load_pretrained(tmp_path / "embedding_model.ckpt")
    assert (found.system, found.threshold) == ("speechbrain", 0.25) and len(found.speakers) == 24
    (tmp_path / "m").mkdir()
    write_modelscope(tmp_path / "m", golden("modelscope"), threshold=0.41)
    assert load_pretrained(tmp_path / "m" / "ecapa_tdnn.bin").threshold == 0.41


def test_a_system_that_the_file_contradicts(golden, tmp_path):
    write_pyannote(tmp_path, golden("pyannote"))
    with pytest.raises(InputError, match=r"pytorch_model.bin is not a checkpoint of wespeaker but one of pyannote"):
        load_pretrained(tmp_path / "pytorch_model.bin", "wespeaker")
    with pytest.raises(InputError, match=r"is a folder without avg_model.pt"):
        load_pretrained(tmp_path, "wespeaker")


@pytest.mark.parametrize(("content", "complaint"), [
    ({"weight": torch.zeros(3)}, "holds no model of a known system"),
    ([1, 2], "holds no weights by name"),
    ({"kind": "training state"}, r"is the state of a training run, not a model: take one of its model/\*\.model"),
    ({"kind": "model", "weights": {}}, "is not as this repository writes it .KeyError"),
    ({"pyannote.audio": {"architecture": {"class": "PyanNet"}}, "state_dict": {}}, "is pyannote.audio's PyanNet"),
])  # fmt: skip
def test_other_files(tmp_path, content, complaint):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=f"x.pt {complaint}"):
        load_pretrained(tmp_path / "x.pt")


def test_taoruijie_of_data_parallel_and_without_classifier(golden, tmp_path):
    data = golden("taoruijie")
    state = {f"module.{key}": value for key, value in golden_state(data).items()}
    del state["module.speaker_loss.weight"]
    torch.save(state, tmp_path / "pretrain.model")
    found = load_pretrained(tmp_path)
    assert (found.system, found.classifier) == ("taoruijie", None)
    with torch.inference_mode():
        assert relative_error(found.network(torch.tensor(data["wav_0"])[None])[0], data["emb_0"]) < 1e-4


# ---- full width: the published shapes and sizes ----------------------------------------------------------------------

FULL = {
    "speechbrain": (speechbrain_shapes, 20_767_552, 83_316_686),
    "modelscope": (speechbrain_shapes, 20_767_552, None),
    "taoruijie": (taoruijie_shapes, 15_444_544, None),
    "pyannote": (pyannote_shapes, 4_346_366, None),
    "wespeaker": (lambda: wespeaker_shapes(1024), 14_657_088, None),
    "wespeaker c512": (lambda: wespeaker_shapes(512), 6_190_720, None),
    "campplus": (campplus_shapes, 6_848_544, None),
}


@pytest.mark.parametrize("name", FULL)
def test_full_width(tmp_path, name):
    """Random numbers in the published shapes: the published number of weights, and of bytes where it is known."""
    shapes, weights, size = FULL[name]
    system = name.split()[0]
    torch.save(random_state(shapes()), tmp_path / "model.pt")
    if size:
        assert (tmp_path / "model.pt").stat().st_size == pytest.approx(size, rel=1e-3)
    found = load_pretrained(tmp_path / "model.pt", system)
    assert sum(parameter.numel() for parameter in found.network.parameters()) == weights
    if name == "taoruijie":
        assert found.classifier.shape == (5994, 192)
    embedding = SpeakerEncoder(found.network, "cpu", found).embed_batch(0.1 * torch.randn(1, 16000))
    assert embedding.shape == (1, 512 if system == "pyannote" else 192) and embedding.isfinite().all()


SHAPES = {"speechbrain": lambda: speechbrain_shapes(16), "taoruijie": lambda: taoruijie_shapes(16, 5),
          "wespeaker": lambda: wespeaker_shapes(16), "pyannote": pyannote_shapes,
          "campplus": campplus_shapes}  # fmt: skip


@pytest.mark.parametrize("system", SHAPES)
def test_every_tensor_counts(tmp_path, system):
    """A tensor that is missing, too many, of another shape, or none is told in a line."""
    state = random_state(SHAPES[system]())
    keys = [key for key in state if key != "speaker_loss.weight"]
    for key in keys[:: max(1, len(keys) // 4)] + keys[-1:]:
        rest = {name: tensor for name, tensor in state.items() if name != key}
        for content, complaint in (
            (rest, "the tensor that is called '.*' here is missing"),
            ({**state, key: torch.zeros(3, 7)}, "size mismatch|channels must be"),
            ({**state, key + "x": torch.zeros(1)}, r"Unexpected key.*x\"\.$"),
            ({**state, key: "text"}, "'str' object"),
        ):
            torch.save(content, tmp_path / "model.pt")
            with pytest.raises(InputError, match=rf"model\.pt.*({complaint})"):
                load_pretrained(tmp_path / "model.pt", system)


# ---- what lies beside ------------------------------------------------------------------------------------------------


def test_labels_that_do_not_belong(golden, tmp_path):
    write_speechbrain(tmp_path, golden("speechbrain"))
    (tmp_path / "label_encoder.txt").write_text("'id1' => 0\n")
    with pytest.raises(InputError, match=r"label_encoder\.txt has 1 labels, the classifier 24"):
        load_pretrained(tmp_path)


def test_wespeaker_average_epochs_and_other_models(golden, tmp_path):
    write_wespeaker(tmp_path, golden("wespeaker"))
    state = {f"module.{key}": value for key, value in golden_state(golden("wespeaker")).items()}
    for epoch in (1, 2):
        torch.save({"state_dict": state}, tmp_path / f"model_{epoch}.pt", _use_new_zipfile_serialization=False)
    assert len(load_pretrained(tmp_path).classifier) == 7  # of avg_model.pt
    (tmp_path / "configuration.json").write_text('{"model": "any"}')  # which is none of ModelScope's ECAPA-TDNN
    assert load_pretrained(tmp_path / "model_2.pt").classifier is None
    (tmp_path / "avg_model.pt").unlink()
    with pytest.raises(InputError, match=r"has several models: name one of model_1.pt, model_2.pt"):
        load_pretrained(tmp_path)


# ---- files that would run code (more in tests/test_hostile.py) -------------------------------------------------------


@pytest.mark.parametrize("name", ["__builtin__ eval", "builtins exec", "torch.hub load", "torch.serialization load",
                                  "numpy.lib.npyio load", "subprocess Popen", "pyannote.audio Model"])  # fmt: skip
def test_only_placeholders_stand_in(tmp_path, name):
    """Even a function of a package that may be named is not called: a placeholder takes its arguments."""
    module, function = name.split()
    harmful = f"c{module}\n{function}\n".encode() + b"(X\x03\x00\x00\x001+1tR."
    torch.save({"state_dict": {}}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as old, zipfile.ZipFile(tmp_path / "y.bin", "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, b"\x80\x02" + harmful if item.filename.endswith("data.pkl") else old.read(item))
    if module.split(".")[0] in STAND_IN_FOR:
        assert type(load_tensors(tmp_path / "y.bin", STAND_IN_FOR)).__name__ == "Placeholder"
    else:
        with pytest.raises(InputError, match=r"y\.bin is refused: it could run code"):
            load_tensors(tmp_path / "y.bin", STAND_IN_FOR)


def test_the_container_of_a_lightning_checkpoint(tmp_path):
    path = shared("golden/pyannote_container_sample.bin")
    content = load_tensors(path, STAND_IN_FOR)
    assert isinstance(content["state_dict"], dict) and "pyannote.audio" in content
    assert content["hyper_parameters"]["sample_rate"] == 16000
    with pytest.raises(InputError, match="it could run code"):
        load_tensors(path)


def test_lightning_classes_are_not_needed(tmp_path):
    write_lightning(tmp_path / "pytorch_model.bin", random_state(pyannote_shapes()))
    found = load_pretrained(tmp_path)
    assert found.system == "pyannote" and found.classifier.shape == (24, 512) and found.classifier.isfinite().all()


def test_a_folder_of_a_run(tmp_path, capsys):
    """Its best model, else the last: after training the average, which is better than what it is the average of."""
    weights = {f"{PREFIX}{key}": value for key, value in ECAPA_TDNN(C=8).state_dict().items()}
    (tmp_path / "metrics.jsonl").write_text("")
    for name in ("model_0009", "model_0010", "average_0010", "model_10000", "best"):
        path = tmp_path / "model" / f"{name}.model"
        save_checkpoint(path, {"kind": "model", "settings": {}, "weights": weights, "speakers": [name]})
        assert load_pretrained(tmp_path).speakers == load_pretrained(tmp_path / "model", "ours").speakers == [name]
        assert f"took model/{name}.model" in capsys.readouterr().err
