"""Cohorts of generated voices, and scores of simulated embeddings."""

import shutil

import numpy as np
import pytest
from test_model import small_network

import tools
from corpora.lists import TrainingList, TrialList
from evaluation import backend, scoring
from evaluation.backend import Cohort, TrialScorer, cohort_beside, make_cohort, read_cohort
from evaluation.calibration import actual_dcf, cllr, min_cllr
from inference.encoder import SpeakerEncoder, Utterance
from tools import InputError, equal_error_rate, min_dcf


@pytest.fixture(scope="module")
def encoder():
    return SpeakerEncoder(small_network(C=8))


@pytest.fixture
def training(corpus, tmp_path):
    """(list, folder): six speakers of four utterances each, as a copy that can be changed."""
    shutil.copytree(corpus / "train", tmp_path / "train")
    shutil.copy(corpus / "train_list.txt", tmp_path)
    return TrainingList(tmp_path / "train_list.txt"), tmp_path / "train"


def means_one_by_one(encoder, train_list, folder, chosen):
    """{speaker: mean of the embeddings of the chosen (0, 1, ...) of its lines}, each file embedded alone."""
    files = {}
    for label, file in zip(train_list.label, train_list.files):
        files.setdefault(train_list.speakers[label], []).append(file)
    return np.array([
        np.mean([encoder.embed(folder / files[speaker][i]).astype(float) for i in chosen], axis=0) for speaker in files
    ])  # fmt: skip


def test_a_cohort_is_the_mean_of_each_speaker(encoder, training):
    cohort = make_cohort(encoder, *training, threads=2)
    expected = means_one_by_one(encoder, *training, range(4))
    assert cohort.vectors.dtype == np.float32 and np.allclose(cohort.vectors, expected, rtol=1e-4, atol=1e-4)
    assert np.allclose(cohort.mean, expected.mean(axis=0), rtol=1e-4, atol=1e-4)
    digest = tools.file_hash(training[0].path)[:8]
    assert cohort.about == f"6 speakers of train_list.txt (sha256 {digest}), at most 20 utterances each"


def test_of_many_utterances_some_are_taken_from_beginning_to_end(encoder, training, monkeypatch):
    monkeypatch.setattr(backend, "UTTERANCES", 2)
    cohort = make_cohort(encoder, *training, threads=2)
    assert np.allclose(cohort.vectors, means_one_by_one(encoder, *training, [0, 3]), rtol=1e-4, atol=1e-4)
    assert cohort.about.endswith("at most 2 utterances each")


def test_what_cannot_be_read_is_left_out(encoder, training):
    """Of a speaker with other files, it does not count; a speaker without any is no part of the cohort."""
    train_list, folder = training
    expected = np.delete(means_one_by_one(encoder, train_list, folder, range(4)), 2, axis=0)
    expected[0] = means_one_by_one(encoder, train_list, folder, [0, 2, 3])[0]
    for file in [train_list.files[1], *train_list.files[8:12]]:
        (folder / file).write_bytes(b"no audio")
    with pytest.warns(UserWarning, match="5 of 24 files") as complaints:
        cohort = make_cohort(encoder, train_list, folder, threads=2)
    assert len(complaints) == 1 and train_list.files[1] in str(complaints[0].message)
    assert np.allclose(cohort.vectors, expected, rtol=1e-4, atol=1e-4) and cohort.about.startswith("5 speakers")
    for file in train_list.files[4:]:
        (folder / file).unlink(missing_ok=True)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="at least two speakers"):
        make_cohort(encoder, train_list, folder, threads=2)


def test_a_cohort_is_kept_beside_its_checkpoint(encoder, training, tmp_path):
    """And used again only for the same weights and list."""
    train_list, folder = training
    checkpoint = tmp_path / "model_0001.model"
    first = cohort_beside(checkpoint, encoder, train_list, folder, 2)
    (kept,) = tmp_path.glob("model_0001.model.cohort_*.npz")
    assert np.array_equal(read_cohort(kept, encoder).vectors, first.vectors)
    folder.rename(tmp_path / "elsewhere")  # a kept one needs no audio, making it anew does
    again = cohort_beside(checkpoint, encoder, train_list, folder, 2)
    assert np.array_equal(again.vectors, first.vectors) and again.about == first.about
    shorter = train_list.subset(np.arange(4, 24))  # as if some speakers were held out
    damage = lambda: kept.write_bytes(kept.read_bytes()[:500])  # noqa: E731
    for other, chosen, prepare in (
        (SpeakerEncoder(small_network(seed=1, C=8)), train_list, lambda: None),
        (encoder, shorter, lambda: None),
        (encoder, train_list, damage),
    ):
        prepare()
        with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError):
            cohort_beside(checkpoint, other, chosen, folder, 2)
    (tmp_path / "elsewhere").rename(folder)
    assert np.array_equal(cohort_beside(checkpoint, encoder, train_list, folder, 2).vectors, first.vectors)
    assert np.array_equal(read_cohort(kept, encoder).vectors, first.vectors)


def test_a_cohort_from_a_file(encoder, tmp_path):
    embeddings = np.random.default_rng(0).standard_normal((5, 192))
    path = tmp_path / "cohort.npz"
    np.savez(path, files=list("abcde"), embeddings=embeddings, model=encoder.fingerprint())
    cohort = read_cohort(path, encoder)
    assert cohort.vectors.dtype == np.float32 and np.allclose(cohort.vectors, embeddings)
    assert cohort.about == f"5 embeddings of cohort.npz (sha256 {tools.file_hash(path)[:8]})"


@pytest.mark.parametrize(("content", "complaint"), [
    ({"embeddings": np.ones(192)}, "has no array 'embeddings'"),
    ({"embeddings": np.ones((4, 256))}, "has no array 'embeddings'"),
    ({"embeddings": np.ones((1, 192))}, "has no array 'embeddings'"),
    ({"embeddings": np.ones((3, 192)), "model": "another"}, "was made with another model"),
    ({"embeddings": np.full((3, 192), np.nan)}, "has embeddings that are not finite"),
])  # fmt: skip
def test_no_cohort(encoder, tmp_path, content, complaint):
    np.savez(tmp_path / "cohort.npz", **content)
    with pytest.raises(InputError, match=f"^--cohort {tmp_path}/cohort.npz {complaint}"):
        read_cohort(tmp_path / "cohort.npz", encoder)


# ---- scores ----------------------------------------------------------------------------------------------------------

SIZE = 24


def simulated(seed, speakers, takes=6):
    """({file: Utterance}, their speakers): a speaker's centre, a shift that all share, noise, larger for shorter files.

    The centres are not spread evenly: some speakers have many who sound like them.
    """
    random = np.random.default_rng(seed)
    centre = np.repeat(random.standard_normal((speakers, SIZE)) * np.linspace(1.8, 0.2, SIZE), takes, axis=0)
    seconds = np.exp(random.uniform(np.log(1), np.log(20), len(centre)))
    noise = random.standard_normal(centre.shape) * (0.35 + 1.2 / seconds)[:, None]
    shift = 3 * np.linspace(-1, 1, SIZE) ** 2
    embeddings = (centre + noise + shift).astype(np.float32)
    utterances = {f"{seed}/{i}.wav": Utterance(None, *each) for i, each in enumerate(zip(embeddings, seconds))}
    return utterances, np.repeat(range(speakers), takes)


def all_pairs(utterances, speakers):
    (first, second), files = np.triu_indices(len(speakers), 1), list(utterances)
    label = (speakers[first] == speakers[second]).astype(int)
    return TrialList.of("pairs", label, [files[i] for i in first], [files[i] for i in second])


@pytest.fixture(scope="module")
def cohort():
    utterances, speakers = simulated(0, speakers=200)
    return Cohort(backend.speaker_means([each.embedding for each in utterances.values()], speakers), "simulated")


def test_scores_against_brute_force(cohort, monkeypatch):
    """Each trial by itself, in float64, by the definitions."""
    monkeypatch.setattr(scoring, "TRIALS_AT_ONCE", 70)
    utterances, speakers = simulated(1, speakers=10, takes=3)
    trials = all_pairs(utterances, speakers)
    scorer = TrialScorer(utterances, cohort, top_n=30)
    calibration = scorer.calibrate(trials)
    found = scorer.score(trials, calibration)
    assert list(found) == ["mean", "as_norm", "calibrated"] and list(scorer.score(trials)) == ["mean", "as_norm"]
    found["cosine"] = scoring.trial_cosines(trials, utterances)

    mean = cohort.vectors.astype(float).mean(axis=0)
    others = [other.astype(float) - mean for other in cohort.vectors]
    expected = {name: [] for name in found}

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for names in zip(trials.enrol, trials.test):
        raw = [utterances[name].embedding.astype(float) for name in names]
        expected["cosine"].append(cosine(*raw))
        moved = [each - mean for each in raw]
        expected["mean"].append(cosine(*moved))
        tops = [np.sort([cosine(each, other) for other in others])[-30:] for each in moved]
        normalised = np.mean([(expected["mean"][-1] - np.mean(top)) / np.std(top) for top in tops])
        expected["as_norm"].append(normalised)
        features = [normalised]
        quality = [(np.log(utterances[name].seconds), np.log(np.linalg.norm(each)), np.mean(top))
                   for name, each, top in zip(names, raw, tops)]  # fmt: skip
        features += [min(pair) for pair in zip(*quality)] + [max(pair) for pair in zip(*quality)]
        expected["calibrated"].append(calibration.bias + np.dot(calibration.weights, features))
    for name, scores in expected.items():
        assert np.allclose(found[name], scores, rtol=1e-4, atol=1e-5 if name in ("cosine", "mean") else 1e-3), name


def test_each_step_helps_and_calibration_holds_on_speakers_never_seen(cohort):
    """150 simulated speakers, after calibrating on 150 others."""
    held_out, unseen = simulated(2, 150), simulated(3, 150)
    calibration = TrialScorer(held_out[0], cohort, top_n=30).calibrate(all_pairs(*held_out))
    trials = all_pairs(*unseen)
    scores = {"cosine": scoring.trial_cosines(trials, unseen[0])}
    scores |= TrialScorer(unseen[0], cohort, top_n=30).score(trials, calibration)
    eer = [equal_error_rate(each, trials.label)[0] for each in scores.values()]
    assert eer[1] < 0.7 * eer[0] and eer[2] < 0.95 * eer[1] and eer[3] < 0.9 * eer[2]
    llr = scores["calibrated"]
    assert cllr(llr, trials.label) < 1.1 * min_cllr(llr, trials.label) < 0.2
    assert actual_dcf(llr, trials.label) < 1.1 * min_dcf(llr, trials.label)[0]
    # What is gained: the same threshold for scores that are no such ratios costs far more.
    assert actual_dcf(scores["as_norm"], trials.label) > 1.3 * actual_dcf(llr, trials.label)
