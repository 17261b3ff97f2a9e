"""Evaluation as users do it: several lists at once, the back-end, held-out speakers, two systems compared."""

import glob
import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import data_flags, run_script, sklearn_eer
from test_trainSpeakerNet import SMALL

import trainSpeakerNet
from corpora.lists import TrainingList, TrialList
from evaluation import compare, report
from evaluation.scoring import read_scores, write_scores
from inference.encoder import SpeakerEncoder
from tools import InputError


@pytest.fixture(scope="module")
def held(corpus, tmp_path_factory):
    """A run of two epochs with two of the six speakers held out."""
    folder = tmp_path_factory.mktemp("exps") / "held"
    wandb = ["--wandb"] * bool(importlib.util.find_spec("wandb"))
    flags = [*data_flags(corpus), *SMALL, "--valid_speakers", 2, "--tensorboard", *wandb, "--save_path", folder]
    for epochs in (1, 2):
        run_script(*flags, "--max_epoch", epochs)
    return folder


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_held_out_speakers_are_not_trained_on_and_choose_the_best(held, corpus):
    trials = TrialList(held / "scores" / "valid_trials.txt")
    heard = {path.split("/")[0] for path in (*trials.enrol, *trials.test)}
    model = torch.load(held / "model" / "model_0002.model", weights_only=True)
    everybody = set(TrainingList(corpus / "train_list.txt").speakers)
    assert len(heard) == 2 and heard == set(model["valid_speakers"]) == everybody - set(model["speakers"])
    assert len(model["weights"]["speaker_loss.weight"]) == 4
    records = history(held)[1:]
    assert {result["speakers_in_training"] for record in history(held) for result in record["lists"].values()} == {0}
    scores = [float(line.split()[0]) for line in (held / "scores" / "valid.txt").read_text().splitlines()]
    assert records[-1]["lists"]["valid"]["eer"] == pytest.approx(sklearn_eer(scores, trials.label), abs=1e-2)
    chosen = min(records, key=lambda record: record["lists"]["valid"]["eer"])["epoch"]
    best = torch.load(held / "model" / "best.model", weights_only=True)
    assert best["epoch"] == chosen
    same = torch.load(held / "model" / f"model_{chosen:04d}.model", weights_only=True)
    assert all(torch.equal(value, same["weights"][key]) for key, value in best["weights"].items())


@pytest.fixture(scope="module")
def evaluated(held, corpus, tmp_path_factory):
    """The held run's model with all of the back-end, on a list and a part of it."""
    folder = tmp_path_factory.mktemp("eval")
    lines = (corpus / "trials.txt").read_text().splitlines(keepends=True)
    (folder / "part.txt").write_text("".join(lines[::2]))
    flags = [*data_flags(corpus), "--eval_list", corpus / "trials.txt", folder / "part.txt", "--device", "cpu"]
    model = held / "model" / "model_0002.model"
    flags += ["--eval", "--initial_model", model, "--calibrate", "--top_n", 3, "--save_path", folder]
    return folder, run_script(*flags)[1], model


def column(path):
    return np.array([float(line.split()[0]) for line in path.read_text().splitlines()])


def test_as_norm_from_the_audio_to_the_score_by_brute_force(evaluated, corpus):
    folder, _, model = evaluated
    encoder = SpeakerEncoder.from_checkpoint(model)

    def embed(side, path):
        return encoder.embed(corpus / side / path).astype(np.float64)

    train_list = TrainingList(corpus / "train_list.txt")
    embeddings = {}
    for file, label in zip(train_list.files, train_list.label):
        embeddings.setdefault(train_list.speakers[label], []).append(embed("train", file))
    cohort = [np.mean(own, axis=0) for speaker, own in embeddings.items() if speaker not in encoder.held_out]
    mean = np.mean(cohort, axis=0)
    unit = lambda x: (x - mean) / np.linalg.norm(x - mean)  # noqa: E731
    cohort = [unit(each) for each in cohort]
    trials = TrialList(corpus / "trials.txt")
    vectors = {file: unit(embed("eval", file)) for file in {*trials.enrol, *trials.test}}
    tops = {file: sorted(vector @ each for each in cohort)[-3:] for file, vector in vectors.items()}
    for position in range(0, len(trials), 7):
        sides = trials.enrol[position], trials.test[position]
        score = vectors[sides[0]] @ vectors[sides[1]]
        expected = np.mean([(score - np.mean(tops[side])) / np.std(tops[side]) for side in sides])
        assert column(folder / "scores" / "trials.mean.txt")[position] == pytest.approx(score, abs=1e-5)
        assert column(folder / "scores" / "trials.as_norm.txt")[position] == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_all_results_say_on_what_they_rest(evaluated, held, corpus):
    folder, printed, _ = evaluated
    results = json.loads((folder / "results.json").read_text())["results"]
    steps = ["", ".cosine", ".mean", ".as_norm", ".calibrated"]
    assert list(results) == [name + step for name in ("trials", "part") for step in steps]
    for name, result in results.items():
        labels = TrialList(corpus / "trials.txt" if name.startswith("trials") else folder / "part.txt").label
        scores = column(folder / "scores" / f"{name}.txt")
        assert result["eer"] == pytest.approx(sklearn_eer(scores, labels), abs=1e-2)
        assert result["trials"] == len(scores) == len(labels) and result["speakers"] == 4
        assert result["speakers_in_training"] == 0
        low, high = result["interval"]["eer"]
        assert low <= result["eer"] <= high
        assert ("cohort" in result) == name.endswith(("mean", "as_norm", "calibrated"))
        assert result["list_sha256"][:8] in printed
    cosine = results["trials.cosine"]["thresholds"]["EER"]
    assert results["trials"]["cosine_threshold"] == pytest.approx(cosine, abs=1e-5)
    assert "4 speakers of train_list.txt" in results["trials.as_norm"]["cohort"]
    # The part's scores are those of the whole list.
    whole, part = (column(folder / "scores" / f"{name}.as_norm.txt") for name in ("trials", "part"))
    np.testing.assert_array_equal(part, whole[::2])


def test_calibration_is_learned_from_held_out_speakers(evaluated, command, corpus, tmp_path):
    folder, printed, model = evaluated
    learned = json.loads((folder / "results.json").read_text())["calibration"]
    assert set(learned["speakers"]) == set(SpeakerEncoder.from_checkpoint(model).held_out)
    assert f"calibrated on {learned['trials']} trials of 2 speakers" in printed
    assert learned["weights"][0] and not any(learned["weights"][1:])  # two speakers cannot show that quality helps
    held_none = {**torch.load(model, weights_only=True), "valid_speakers": []}
    for trained_on, warned in (([*held_none["speakers"], *learned["speakers"]], True), (["somebody else"], False)):
        torch.save({**held_none, "trained_on": trained_on}, tmp_path / "none.model")
        status, _, complained = command(
            trainSpeakerNet, *data_flags(corpus), "--eval", "--calibrate", "--top_n", 3, "--device", "cpu",
            "--initial_model", tmp_path / "none.model", "--save_path", tmp_path
        )  # fmt: skip
        page = report.write_report(tmp_path).read_text()
        assert status == 0 and ("held no speakers of" in complained) == ("overconfident" in page) == warned
        assert " of 2 speakers" in page


def test_unreadable_files_of_trials_are_named(evaluated, command, corpus, tmp_path):
    shutil.copytree(corpus / "eval", tmp_path / "eval")
    damaged = sorted((tmp_path / "eval").rglob("*.wav"))[:5]
    for file in damaged:
        file.write_bytes(b"no audio")
    status, _, error = command(
        trainSpeakerNet, *data_flags(corpus), "--eval", "--no_check", "--initial_model", evaluated[2],
        "--eval_path", tmp_path / "eval", "--save_path", tmp_path / "e"
    )  # fmt: skip
    assert status == 2 and sum(f"{file} " in error for file in damaged) == 3
    assert "; 5 files in all; no trial is skipped" in error and error.count("\n") == 1


def test_test_speakers_in_cohort_and_calibration_are_named(evaluated, command, corpus, tmp_path):
    speakers = sorted({path.split("/")[0] for path in TrialList(corpus / "trials.txt").enrol})[:3]
    files = [f"{speaker} {file.relative_to(corpus / 'eval')}\n" for speaker in speakers
             for file in sorted((corpus / "eval" / speaker).rglob("*.wav"))]  # fmt: skip
    (tmp_path / "cohort.txt").write_text("".join(files))
    model = torch.load(evaluated[2], weights_only=True)
    torch.save({**model, "valid_speakers": speakers[:1]}, tmp_path / "a.model")
    printed = command(
        trainSpeakerNet, "--eval", "--as_norm", "--device", "cpu", "--initial_model", tmp_path / "a.model",
        "--train_list", tmp_path / "cohort.txt", "--train_path", corpus / "eval", "--save_path", tmp_path,
        "--eval_list", corpus / "trials.txt", "--eval_path", corpus / "eval",
    )[1]  # fmt: skip
    assert f"warning: speakers of trials.txt are in the cohort: 2, such as {speakers[1]}; {speakers[2]}" in printed


def test_results_say_how_many_speakers_were_in_training(held, command, corpus, tmp_path):
    model = torch.load(held / "model" / "model_0002.model", weights_only=True)
    torch.save({**model, "trained_on": ["id00001", "id00006", "id00008"]}, tmp_path / "a.model")
    flags = ["--eval", *data_flags(corpus), "--initial_model", tmp_path / "a.model", "--no_check", "--device", "cpu"]
    printed = command(trainSpeakerNet, *flags, "--save_path", tmp_path)[1]
    assert json.loads((tmp_path / "results.json").read_text())["results"]["trials"]["speakers_in_training"] == 2
    page = report.write_report(tmp_path).read_text()
    assert "2 speakers in training" in printed and page.count("2 speakers of 4 in training") == 2


def test_a_cohort_may_come_from_a_file(evaluated, command, corpus, tmp_path, monkeypatch):
    folder, _, model = evaluated
    flags = ["--eval", "--initial_model", model, "--as_norm", "--top_n", 3, "--device", "cpu", "--save_path", tmp_path,
             "--eval_list", corpus / "trials.txt", "--eval_path", corpus / "eval"]  # fmt: skip
    (cohort,) = glob.glob(f"{model}.cohort_*.npz")
    run_script(*flags, "--cohort", cohort)  # and no training list
    same = [column(where / "scores" / "trials.as_norm.txt") for where in (folder, tmp_path)]
    np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-4)
    monkeypatch.chdir(corpus)  # files may be named by relative paths
    own, tested = np.load(cohort)["embeddings"][:3], sorted(set(TrialList(corpus / "trials.txt").enrol))
    np.savez(tmp_path / "own.npz", embeddings=own, files=["elsewhere.wav", *(f"eval/{file}" for file in tested[:2])])
    printed = command(trainSpeakerNet, *flags, "--cohort", tmp_path / "own.npz")[1]
    assert f"warning: files of trials.txt are in --cohort: 2, such as {tested[0]}; {tested[1]}" in printed
    held_out = SpeakerEncoder.from_checkpoint(model).held_out
    files = [file for file in TrainingList(corpus / "train_list.txt").files if file.split("/")[0] in held_out]
    np.savez(tmp_path / "own.npz", embeddings=own, files=["x.wav", *(f"train/{file}" for file in files[:2])])
    flags += ["--train_list", corpus / "train_list.txt", "--train_path", corpus / "train"]
    printed = command(trainSpeakerNet, *flags, "--calibrate", "--cohort", tmp_path / "own.npz")[1]
    assert "files of the calibration's speakers are in --cohort: 2, such as" in printed
    assert (tmp_path / "scores/trials.as_norm.txt").exists()
    flags = [flag for flag in flags if flag not in ("--as_norm", "--top_n", 3)]
    assert command(trainSpeakerNet, *flags)[0] == 0
    assert [each.name for each in (tmp_path / "scores").iterdir()] == ["trials.txt"]  # no scores of another evaluation
    shutil.copy(corpus / "trials.txt", tmp_path / "trials.mean.txt")
    refused = command(trainSpeakerNet, *flags, "--eval_list", tmp_path / "trials.mean.txt")[2]
    assert "trials.mean.txt: scores of another list would have this name; rename the list" in refused


def test_two_systems_side_by_side(command, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials, random, eers = TrialList(corpus / "trials.txt"), np.random.default_rng(0), []
    for name, noise in (("a", 1.0), ("b", 3.0)):
        scores = trials.label + noise * random.standard_normal(len(trials))
        eers.append(sklearn_eer(np.round(scores, 8), trials.label))
        write_scores(f"{name}.txt", scores, trials)
    status, printed, _ = command(compare, "a.txt", "b.txt", trials.path)
    line = next(line for line in printed.splitlines() if line.startswith("EER"))
    found = [float(field.strip("[],")) for field in line.split()[2:]]
    assert status == 0 and len(found) == 6
    assert found[:3] == pytest.approx([*eers, eers[1] - eers[0]], abs=0.02)
    assert found[3] <= found[2] <= found[4] and 0 < found[5] <= 1
    status, printed, _ = command(compare, "a.txt", "a.txt", trials.path)
    assert status == 0 and printed.count(" 1.000") == 3  # p of no difference


def test_scores_of_another_list_are_refused(corpus, tmp_path):
    trials = TrialList(corpus / "trials.txt")
    write_scores(tmp_path / "a.txt", np.arange(120), trials)
    assert read_scores(tmp_path / "a.txt", trials).tolist() == list(range(120))
    lines = (tmp_path / "a.txt").read_text().splitlines(keepends=True)
    for wrong, said in (
        (lines[:-1], "119 lines for 120 trials .*: line 120 should be '<score> "),
        ([*lines, lines[0]], "line 121 should be no more"), ([lines[1], lines[0], *lines[2:]], "line 1 should be"),
        (["\n", *lines[1:]], "line 1 should be"),
        (["nan" + lines[0][8:], *lines[1:]], "lines that do not begin with a number"),
    ):  # fmt: skip
        (tmp_path / "wrong.txt").write_text("".join(wrong))
        with pytest.raises(InputError, match=rf"wrong\.txt has .*{said}"):
            read_scores(tmp_path / "wrong.txt", trials)


def test_tensorboard_is_told_what_metrics_jsonl_is_told(held):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(held / "tensorboard")).Reload()
    records = history(held)
    for tag, values in (
        ("training/loss", {record["epoch"]: record["loss"] for record in records[1:]}),
        ("trials/eer/model", {record["epoch"]: record["lists"]["trials"]["eer"] for record in records}),
    ):
        assert {event.step: event.value for event in events.Scalars(tag)} == pytest.approx(values, rel=1e-6)


def test_wandb_is_told_the_same_by_a_run_and_its_continuation(held):
    pytest.importorskip("wandb")
    first, second = sorted(path for path in (held / "wandb").glob("offline-run-*") if path.is_dir())
    assert first.name.split("-")[-1] == second.name.split("-")[-1] == (held / "wandb/id.txt").read_text()
    assert len(list((held / "tensorboard").iterdir())) == 2  # a file for each, too
    for folder, record in zip((first, second), history(held)[1:]):
        told = next(folder.glob("*.wandb")).read_bytes()
        assert re.search(rf"training/loss\W*{record['loss']}".encode(), told) and b"valid/eer/model" in told


def test_a_report_of_a_run_and_of_an_evaluation(succeeds, held, evaluated):
    """What it shows is tested in test_report.py; here, that it finds what the trainer leaves."""
    for folder, shown in ((held, "best on valid"), (evaluated[0], "trials.calibrated")):
        assert succeeds(report, folder).strip() == str(folder / "report.html")
        page = (folder / "report.html").read_text()
        assert shown in page and "No scores to look at" not in page
