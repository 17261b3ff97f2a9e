"""Judging models as users do: several lists in one go, the back-end, held-out speakers, two systems side by side."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import data_flags, run_script
from sklearn.metrics import roc_curve

import trainSpeakerNet
from corpora.lists import TrainingList, TrialList
from inference.encoder import SpeakerEncoder

SMALL = ["--C", 8, "--num_frames", 60, "--batch_size", 8, "--max_epoch", 2, "--bank_mb", 5, "--n_cpu", 1,
         "--device", "cpu", "--amp", "off"]  # fmt: skip


@pytest.fixture(scope="module")
def held(corpus, tmp_path_factory):
    """A run of two epochs in which two of the six speakers were held out."""
    folder = tmp_path_factory.mktemp("exps") / "held"
    run_script(*data_flags(corpus), *SMALL, "--valid_speakers", 2, "--save_path", folder, check=True)
    return folder


def sklearn_eer(scores, labels):
    """EER in % by linear interpolation of scikit-learn's curve."""
    alarm, hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    position = np.linspace(0, len(alarm) - 1, 200_001)
    steps = range(len(alarm))
    gap = np.abs(np.interp(position, steps, alarm) - 1 + np.interp(position, steps, hit))
    return 100 * np.interp(position[gap.argmin()], steps, alarm)


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- held-out speakers -----------------------------------------------------------------------------------------------


def test_held_out_speakers_are_not_trained_on_and_choose_the_best(held, corpus):
    trials = TrialList(held / "scores" / "valid_trials.txt")
    heard = {path.split("/")[0] for path in (*trials.enrol, *trials.test)}
    model = torch.load(held / "model" / "model_0002.model", weights_only=True)
    everybody = set(TrainingList(corpus / "train_list.txt").speakers)
    assert len(heard) == 2 and heard == set(model["valid_speakers"]) == everybody - set(model["speakers"])
    assert len(model["weights"]["speaker_loss.weight"]) == 4
    records = history(held)[1:]
    scores = [float(line.split()[0]) for line in (held / "scores" / "valid.txt").read_text().splitlines()]
    assert records[-1]["lists"]["valid"]["eer"] == pytest.approx(sklearn_eer(scores, trials.label), abs=1e-2)
    chosen = min(records, key=lambda record: record["lists"]["valid"]["eer"])["epoch"]
    best = torch.load(held / "model" / "best.model", weights_only=True)
    assert best["epoch"] == chosen
    same = torch.load(held / "model" / f"model_{chosen:04d}.model", weights_only=True)
    assert all(torch.equal(value, same["weights"][key]) for key, value in best["weights"].items())


def test_no_model_is_chosen_on_the_test_list(corpus, tmp_path):
    run_script(*data_flags(corpus), *SMALL, "--max_epoch", 1, "--save_path", tmp_path / "exp", check=True)
    assert {path.name for path in (tmp_path / "exp" / "model").iterdir()} == {"model_0001.model"}


# ---- the back-end ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(held, corpus, tmp_path_factory):
    """The held run's model with all of the back-end, on a list and a part of it."""
    folder = tmp_path_factory.mktemp("eval")
    lines = (corpus / "trials.txt").read_text().splitlines(keepends=True)
    (folder / "part.txt").write_text("".join(lines[::2]))
    flags = [*data_flags(corpus), "--eval_list", corpus / "trials.txt", folder / "part.txt", "--device", "cpu"]
    model = held / "model" / "model_0002.model"
    found = run_script("--eval", "--initial_model", model, "--calibrate", "--top_n", 3, *flags, "--save_path", folder)
    assert found[0] == 0, found[2]
    return folder, found[1], model


def column(path):
    return np.array([float(line.split()[0]) for line in path.read_text().splitlines()])


def test_as_norm_from_the_audio_to_the_score_by_brute_force(judged, corpus):
    folder, _, model = judged
    encoder = SpeakerEncoder.from_checkpoint(model)

    def embed(side, path):
        return encoder.embed(corpus / side / path).astype(np.float64)

    listing = TrainingList(corpus / "train_list.txt")
    cohort = [np.mean([embed("train", file) for file, label in zip(listing.files, listing.label) if label == number], 0)
              for number, speaker in enumerate(listing.speakers) if speaker not in encoder.held_out]  # fmt: skip
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


def test_all_results_say_on_what_they_rest(judged, held, corpus):
    folder, printed, _ = judged
    results = json.loads((folder / "results.json").read_text())["results"]
    steps = ["", ".cosine", ".mean", ".as_norm", ".calibrated"]
    assert list(results) == [name + step for name in ("trials", "part") for step in steps]
    for name, result in results.items():
        labels = TrialList(corpus / "trials.txt" if name.startswith("trials") else folder / "part.txt").label
        scores = column(folder / "scores" / f"{name}.txt")
        assert result["eer"] == pytest.approx(sklearn_eer(scores, labels), abs=1e-2)
        assert result["trials"] == len(scores) == len(labels) and result["speakers"] == 4
        low, high = result["interval"]["eer"]
        assert low <= result["eer"] <= high
        assert ("cohort" in result) == name.endswith(("mean", "as_norm", "calibrated"))
        assert result["list_sha256"][:8] in printed
    assert "4 speakers of train_list.txt" in results["trials.as_norm"]["cohort"]
    surprise = np.logaddexp(0, np.where(TrialList(corpus / "trials.txt").label == 1, -1, 1)
                            * column(folder / "scores" / "trials.calibrated.txt")) / np.log(2)  # fmt: skip
    label = TrialList(corpus / "trials.txt").label
    cost = (surprise[label == 1].mean() + surprise[label == 0].mean()) / 2
    assert results["trials.calibrated"]["cllr"] == pytest.approx(cost, rel=1e-6)
    # The part's scores are those of the whole list.
    whole, part = (column(folder / "scores" / f"{name}.as_norm.txt") for name in ("trials", "part"))
    np.testing.assert_array_equal(part, whole[::2])


def test_calibration_is_learnt_from_those_who_were_held_out(judged, command, corpus, tmp_path, monkeypatch):
    folder, printed, model = judged
    everybody = set(TrainingList(corpus / "train_list.txt").speakers)
    held = set(SpeakerEncoder.from_checkpoint(model).held_out)
    learnt = json.loads((folder / "results.json").read_text())["calibration"]
    assert len(held) == 2 and set(learnt["speakers"]) == held
    assert f"calibrated on {learnt['trials']} trials of 2 speakers who were held out of training" in printed
    # The trials themselves, and the cohort's utterances: what is asked of the encoder.
    asked = []
    embed_files, embed_for_scoring = SpeakerEncoder.embed_files, SpeakerEncoder.embed_for_scoring

    def note(kind, embed):
        def noting(self, files, *args):
            asked.append((kind, {file.split("/")[0] for file in files}))
            return embed(self, files, *args)

        return noting

    monkeypatch.setattr(SpeakerEncoder, "embed_files", note("cohort", embed_files))
    monkeypatch.setattr(SpeakerEncoder, "embed_for_scoring", note("trials", embed_for_scoring))
    content = torch.load(model, weights_only=True)
    flags = [*data_flags(corpus), "--eval", "--calibrate", "--top_n", 3, "--device", "cpu", "--save_path", tmp_path]
    for name, change, complaint in (("held", {}, None), ("none", {"valid_speakers": []}, "held no speakers of")):
        torch.save({**content, **change}, tmp_path / f"{name}.model")
        status, printed, complained = command(trainSpeakerNet, *flags, "--initial_model", tmp_path / f"{name}.model")
        assert status == 0 and (complaint is None) == ("held no speakers" not in complained)
        (first, calibrated_on), (second, cohort), (third, tested) = asked
        assert (first, second, third) == ("trials", "cohort", "trials")
        assert not calibrated_on & cohort and calibrated_on | cohort == everybody and not tested & everybody
        assert (calibrated_on == held) == (name == "held") or complaint
        assert ("whom the model may know" in printed) == bool(complaint)
        asked.clear()


def test_a_list_without_a_cohort_is_refused(judged, command, corpus, tmp_path):
    _, _, model = judged
    held = SpeakerEncoder.from_checkpoint(model).held_out
    lines = (corpus / "train_list.txt").read_text().splitlines(keepends=True)
    (tmp_path / "held.txt").write_text("".join(line for line in lines if line.split()[0] in held))
    status, _, error = command(
        trainSpeakerNet, *data_flags(corpus), "--eval", "--as_norm", "--initial_model", model, "--train_list",
        tmp_path / "held.txt", "--save_path", tmp_path / "e"
    )  # fmt: skip
    assert status == 2 and "a cohort needs at least two speakers besides those that" in error


def test_an_unreadable_file_of_a_trial_made_here_is_named(judged, command, corpus, tmp_path):
    _, _, model = judged
    shutil.copytree(corpus / "train", tmp_path / "train")
    spoilt = next((tmp_path / "train").rglob(f"{SpeakerEncoder.from_checkpoint(model).held_out[0]}/*/*.wav"))
    spoilt.write_bytes(b"no audio")
    status, _, error = command(
        trainSpeakerNet, *data_flags(corpus), "--eval", "--calibrate", "--initial_model", model, "--train_path",
        tmp_path / "train", "--save_path", tmp_path / "e"
    )  # fmt: skip
    assert status == 2 and f"{spoilt} " in error and "or take its lines out of the list" in error


def test_the_cohort_is_kept_beside_the_model(judged):
    _, _, model = judged
    kept = np.load(f"{model}.cohort.npz")
    assert kept["embeddings"].shape == (4, 192)


def test_a_cohort_may_come_from_a_file(judged, corpus, tmp_path):
    folder, _, model = judged
    flags = ["--eval", "--initial_model", model, "--as_norm", "--top_n", 3, "--device", "cpu", "--save_path", tmp_path,
             "--eval_list", corpus / "trials.txt", "--eval_path", corpus / "eval"]  # fmt: skip
    status, _, complained = run_script(*flags, "--cohort", f"{model}.cohort.npz")  # and no training list
    assert status == 0, complained
    same = [column(where / "scores" / "trials.as_norm.txt") for where in (folder, tmp_path)]
    np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-4)
    np.savez(tmp_path / "other.npz", embeddings=np.ones((5, 7), np.float32))
    status, _, complained = run_script(*flags, "--cohort", tmp_path / "other.npz")
    assert status == 2 and "other.npz has embeddings of 7 numbers, those of the model have 192" in complained


# ---- two systems -----------------------------------------------------------------------------------------------------


def compared(command, trials, *files):
    return command(trainSpeakerNet, "--compare", *files, "--eval_list", trials)


def test_two_systems_side_by_side(command, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials, random = TrialList(corpus / "trials.txt"), np.random.default_rng(0)
    rows = list(zip(trials.enrol, trials.test))
    eers = []
    for name, noise in (("a", 1.0), ("b", 3.0)):
        scores = trials.label + noise * random.standard_normal(len(trials))
        eers.append(sklearn_eer(np.round(scores, 8), trials.label))
        (tmp_path / f"{name}.txt").write_text("".join(f"{s:.8f} {e} {t}\n" for s, (e, t) in zip(scores, rows)))
    status, printed, _ = compared(command, corpus / "trials.txt", "a.txt", "b.txt")
    line = next(line for line in printed.splitlines() if line.startswith("EER"))
    found = [float(field.strip("[],")) for field in line.split()[2:]]
    assert status == 0 and len(found) == 6
    assert found[:3] == pytest.approx([*eers, eers[1] - eers[0]], abs=0.02)
    assert found[3] <= found[2] <= found[4] and 0 < found[5] <= 1
    status, printed, _ = compared(command, corpus / "trials.txt", "a.txt", "a.txt")
    assert status == 0 and printed.count(" 1.000") == 3  # p of no difference


def test_scores_of_another_list_are_refused(command, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"0.5 {' '.join(line.split()[1:])}\n" for line in (corpus / "trials.txt").read_text().splitlines()]
    (tmp_path / "good.txt").write_text("".join(lines))
    for wrong, message in (
        (lines[:-1], "has 119 scores, but"),
        ([*lines, lines[0]], "has 121 scores, but"),
        ([lines[1], lines[0], *lines[2:]], "line 1 is not '<score> "),
        (["", *lines[1:]], "line 1 is not"),
        (["nan" + lines[0][3:], *lines[1:]], "line 1 is not"),
    ):
        (tmp_path / "wrong.txt").write_text("".join(wrong) if wrong[0] else "\n" + "".join(wrong[1:]))
        status, _, complained = compared(command, corpus / "trials.txt", "good.txt", "wrong.txt")
        assert status == 2 and message in complained and len(complained.splitlines()) == 1


# ---- looking at it ---------------------------------------------------------------------------------------------------


def test_tensorboard_is_told_what_metrics_jsonl_is_told(corpus, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "e"
    run_script(*data_flags(corpus), *SMALL, "--tensorboard", "--ema", 0.5, "--save_path", folder, check=True)
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    records = history(folder)
    for tag, values in (
        ("training/loss", {record["epoch"]: record["loss"] for record in records[1:]}),
        ("trials/eer/model", {record["epoch"]: record["lists"]["trials"]["eer"] for record in records}),
        ("trials/eer/ema", {record["epoch"]: record["averages"]["ema"]["trials"]["eer"] for record in records[1:]}),
    ):
        assert {event.step: event.value for event in events.Scalars(tag)} == pytest.approx(values, rel=1e-6)


def test_tensorboard_is_missed_before_the_work(command, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, error = command(trainSpeakerNet, *data_flags(corpus), "--tensorboard", "--save_path", tmp_path / "e")
    assert status == 2 and "--tensorboard needs a package that is not here: pip install tensorboard" in error


def test_a_report_of_a_run_and_of_an_evaluation(command, held, judged):
    """What it shows is tested in test_report.py; here, that it finds what the trainer leaves."""
    for folder, shown in ((held, "chosen on valid"), (judged[0], "trials.calibrated")):
        status, printed, error = command(trainSpeakerNet, "--report", "--save_path", folder)
        assert status == 0 and printed.strip() == str(folder / "report.html"), error
        page = (folder / "report.html").read_text()
        assert shown in page and "No scores to look at" not in page
