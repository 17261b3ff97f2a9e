"""Error rates and AS-norm against brute force and scikit-learn; files that appear whole; checkpoints and text."""

import io
import os
import re
import sys

import numpy as np
import pytest
from conftest import sklearn_eer

import benchmark
import prepareData
import tools
import verify
from evaluation.scoring import threshold_at
from tools import InputError, equal_error_rate, min_dcf


def brute_force(scores, labels):
    """(miss, false alarm) at every threshold, by counting."""
    target, other = scores[labels == 1], scores[labels == 0]
    thresholds = [*np.unique(scores), np.inf]
    return [(np.mean(target < t), np.mean(other >= t)) for t in thresholds]


def random_trials(seed, ties):
    random = np.random.default_rng(seed)
    labels = (random.random(random.integers(20, 300)) < 0.3).astype(int)
    labels[:2] = 0, 1
    scores = random.standard_normal(len(labels)) + random.uniform(0, 3) * labels
    return (np.round(scores, 0 if ties else 12)), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_eer_and_min_dcf_against_counting(seed, ties):
    scores, labels = random_trials(seed, ties)
    eer, threshold = equal_error_rate(scores, labels)
    assert eer == pytest.approx(sklearn_eer(scores, labels), abs=1e-9)
    assert scores.min() <= threshold <= scores.max()
    for p_target, c_miss, c_fa in ((0.01, 1, 1), (0.05, 1, 1), (0.5, 1, 1), (0.01, 10, 1)):
        costs = [c_miss * m * p_target + c_fa * f * (1 - p_target) for m, f in brute_force(scores, labels)]
        found, at = min_dcf(scores, labels, p_target, c_miss, c_fa)
        assert found == pytest.approx(min(costs) / min(c_miss * p_target, c_fa * (1 - p_target)))
        miss, alarm = np.mean(scores[labels == 1] < at), np.mean(scores[labels == 0] >= at)
        assert c_miss * miss * p_target + c_fa * alarm * (1 - p_target) == pytest.approx(min(costs))


@pytest.mark.parametrize(("scores", "labels", "eer", "dcf"), [
    ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0, 0),  # apart
    ([0.8, 0.9, 0.1, 0.2], [0, 0, 1, 1], 100, 1),  # upside down
    ([0.5] * 6, [0, 1, 0, 1, 0, 1], 50, 1),  # nothing known
    ([1, 2, 3, 4], [0, 1, 0, 1], 50, 0.5),
])  # fmt: skip
def test_plain_cases(scores, labels, eer, dcf):
    assert equal_error_rate(scores, labels)[0] == pytest.approx(eer)
    assert min_dcf(scores, labels)[0] == pytest.approx(dcf)


@pytest.mark.parametrize(("scores", "labels", "complaint"), [
    ([0.1, 0.2], [1, 1], "both kinds"), ([], [], "both kinds"), ([0.1, np.nan], [0, 1], "NaN"),
    ([0.1, 0.2], [0, 2], "labels must be"), ([0.1, 0.2, 0.3], [0, 1], "3 scores but 2 labels"),
])  # fmt: skip
def test_scores_without_an_error_rate(scores, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        equal_error_rate(scores, labels)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    tools.write_text(path, "before")
    with pytest.raises(RuntimeError), tools.whole_file(path, "w") as file:
        file.write("half of what was to come af")
        raise RuntimeError
    assert path.read_text() == "before"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("content", ["text".encode("utf-16"), b"caf\xe9", b"a\0"])
def test_text_in_another_encoding(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"--flag .*a.txt is not a text file, or not in UTF-8 \("):
        tools.read_text(tmp_path / "a.txt", "--flag")


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(InputError("a\nb\x1b[2Jc\u2028ü\udcff")) == r"a\nb\x1b[2Jc\u2028ü\udcff"
    assert tools.one_line("a" * 10_000) == "a" * 1000 + " ... " + "a" * 1000


def test_a_progress_bar_in_a_file_is_whole_lines(monkeypatch):
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    for _ in tools.progress_bar(iterable=range(3), desc="reading", delay=0, mininterval=0, miniters=1):
        pass
    *lines, end = sys.__stderr__.getvalue().split("\n")
    assert [re.match(r"reading: +\d+%\|.*\| (\d)/3 ", line)[1] for line in lines] == ["0", "1", "2", "3"] and not end


@pytest.mark.parametrize(("parse", "flags", "said"), [
    (verify.read_arguments, ["a", "b", "--tresh", "1"], "--tresh 1: did you mean --threshold?; see .* --help"),
    (benchmark.read_settings, ["--batchsize=4"], "did you mean --batch_size?"),
    (prepareData.read_arguments, ["--list", "a", "--to", "b"], "did you mean --lists?"),
    (prepareData.read_arguments, ["--check", "--evallist=b"], "did you mean --eval_list?"),
    (prepareData.read_arguments, ["--to", "b"], "unrecognized arguments: --to b; see"),
    (prepareData.read_arguments, [], "give one of --download|--unpack|--convert"),
])  # fmt: skip
def test_a_misspelt_flag_gets_a_suggestion(parse, flags, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?").replace("|", r"\|")):
        parse(flags)


def test_threshold_at_a_rate_of_false_alarms():
    """By its definition: the lowest score that accepts few enough impostors, ties standing or falling together."""
    random = np.random.default_rng(0)
    scores, labels = np.round(random.normal(size=3000), 2), random.integers(0, 2, 3000)
    for rate in (0.1, 0.01, 0.001):
        found = threshold_at(scores, labels, rate)
        assert (scores[labels == 0] >= found).mean() <= rate
        lower = scores[scores < found].max()
        assert (scores[labels == 0] >= lower).mean() > rate
    assert threshold_at(scores[:200], labels[:200], 0.001) is None  # 200 trials cannot show one in a thousand


def unit_vectors(random, rows, size=16):
    vectors = random.standard_normal((rows, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_force_as_norm(scores, enrol, test, cohort, top_n):
    """Matejka et al. 2017, trial by trial, in float64."""
    normalised = []
    for score, first, second in zip(scores, enrol, test):
        sides = []
        for vector in (first, second):
            top = sorted((float(np.dot(vector, other)) for other in cohort), reverse=True)[:top_n]
            mean = sum(top) / len(top)
            sides.append((score - mean) / (sum((each - mean) ** 2 for each in top) / len(top)) ** 0.5)
        normalised.append(sum(sides) / 2)
    return np.array(normalised)


@pytest.mark.parametrize("top_n", [2, 7, 40, 300])  # the cohort has 40
def test_as_norm_against_brute_force(top_n, monkeypatch):
    monkeypatch.setattr(tools, "SCORES_AT_ONCE", 3 * 40)  # several blocks, the last not full
    random = np.random.default_rng(top_n)
    utterances, cohort = 2 * unit_vectors(random, 20), 3 * unit_vectors(random, 40)  # of any length
    enrol, test = utterances[random.integers(0, 20, (2, 100))]
    scores = np.einsum("nd,nd->n", enrol, test)
    expected = brute_force_as_norm(scores, enrol, test, cohort, top_n)
    assert np.allclose(tools.as_norm(scores, enrol, test, cohort, top_n), expected, rtol=1e-9, atol=1e-9)
    single = tools.as_norm(scores, enrol.astype(np.float32), test.astype(np.float32), cohort, top_n)
    # Two float32 scores may lie so close that their deviation is mostly rounding.
    assert np.allclose(single, expected, rtol=1e-3 if top_n == 2 else 1e-5, atol=1e-5)


def test_scores_of_no_spread_stay_finite():
    """A cohort of equal vectors, and a vector that is orthogonal to all of it, or zero."""
    enrol = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float32)
    test = np.array([[1, 0, 0]] * 3, dtype=np.float32)
    cohort = np.full((10, 3), [0.6, 0, 0.8])
    normalised = tools.as_norm(np.einsum("nd,nd->n", enrol, test), enrol, test, cohort, 5)
    assert np.isfinite(normalised).all() and normalised[0] > 0 > normalised[1]
    _, deviation = tools.cohort_statistics(enrol, cohort, 5)
    assert np.allclose(deviation[:2], 1e-6, rtol=1e-3) and 0 < deviation[2] < 1e-300


@pytest.mark.parametrize(("change", "complaint"), [
    ({"cohort": np.ones((1, 4))}, "at least two"), ({"top_n": 1}, "at least two"),
    ({"scores": np.ones(2)}, "2 scores of 3"), ({"enrol": np.full((3, 4), np.nan)}, "no finite"),
])  # fmt: skip
def test_scores_that_cannot_be_normalised(change, complaint):
    vectors = np.ones((3, 4))
    with pytest.raises(ValueError, match=complaint):
        tools.as_norm(**{"scores": np.ones(3), "enrol": vectors, "test": vectors, "cohort": vectors} | change)
