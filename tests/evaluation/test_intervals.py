"""Intervals: exact on weighted trials, cover the truth of simulated ones (more in studies/interval_coverage.py)."""

import itertools

import numpy as np
import pytest
from scipy.stats import t as student
from studies import interval_coverage

from corpora.lists import TrialList
from evaluation.intervals import METRICS, WeightedTrials, bootstrap_intervals, compare, metrics_of, speakers_of
from tools import equal_error_rate, min_dcf


def random_trials(seed, ties=False, speakers=6, count=150):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    enrol = random.integers(speakers, size=count)
    test = np.where(labels == 1, enrol, (enrol + random.integers(1, speakers, size=count)) % speakers)
    scores = random.standard_normal(count) + random.uniform(0, 3) * labels
    return np.round(scores, 0 if ties else 12), labels, enrol, test


def direct_metrics(scores, labels):
    return [equal_error_rate(scores, labels)[0], min_dcf(scores, labels, 0.05)[0], min_dcf(scores, labels, 0.01)[0]]


def times(weight, enrol, test):
    """How often each trial is there, one by one."""
    return [int(weight[a]) if a == b else int(weight[a] * weight[b]) for a, b in zip(enrol, test)]


def repeated(seed, speakers, labels, enrol, test, replicates):
    """The replicates, as positions of trials, each as often as it was drawn."""
    random = np.random.default_rng(seed)
    while replicates:
        weight = np.bincount(random.integers(speakers, size=speakers), minlength=speakers)
        rows = np.repeat(np.arange(labels.size), times(weight, enrol, test))
        if len(set(labels[rows])) == 2:
            replicates -= 1
            yield rows


def trial_list(*trials):
    return TrialList.of("list", *zip(*trials))


def partition(trials):
    """Which sides of which trials are one speaker, in whatever order speakers are numbered; numbers must be 0..n-1."""
    enrol, test, count = speakers_of(trials)
    assert enrol.dtype == test.dtype == np.int64
    both = [*enrol.tolist(), *test.tolist()]
    assert min(both) >= 0 and max(both) < count
    first = {}
    return [first.setdefault(number, len(first)) for number in both], count


@pytest.mark.parametrize("prefix", ["", "eval/wav/", "/data/vox1/"])
def test_speakers_are_folders(prefix):
    """No trial says that all videos of id1 are one speaker's: the folder does."""
    trials = trial_list(
        (1, "id1/a/1.wav", "id1/b/1.wav"),
        (0, "id1/c/1.wav", "id2/a/1.wav"),
        (1, "id2/b/1.wav", "id2/b/2.wav"),
        (0, "id3/a/1.wav", "id1/d/1.wav"),
    )
    trials.enrol = [prefix + path for path in trials.enrol]
    trials.test = [prefix + path for path in trials.test]
    assert partition(trials) == ([0, 0, 1, 2, 0, 1, 1, 0], 3)


@pytest.mark.parametrize("folder", ["", "all/", "all/wav/"])
def test_without_folders_same_speaker_trials_link(folder):
    """a-b and b-c and d-c are one speaker by one another, e-f another, and g is nobody's."""
    pairs = [(1, "a", "b"), (0, "a", "e"), (1, "b", "c"), (1, "d", "c"), (1, "e", "f"), (0, "d", "g"), (0, "f", "c")]
    trials = trial_list(*((label, f"{folder}{x}.wav", f"{folder}{y}.wav") for label, x, y in pairs))
    found, count = partition(trials)
    owner = dict(zip("abcdefg", "AAAAEEG"))
    names = [owner[pair[side]] for side in (1, 2) for pair in pairs]
    assert count == 3
    assert [x == y for x, y in itertools.product(found, repeat=2)] == [
        x == y for x, y in itertools.product(names, repeat=2)
    ]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_weights_are_repetitions(seed, ties):
    scores, labels, enrol, test = random_trials(seed, ties)
    trials = WeightedTrials(scores, labels, enrol, test)
    random = np.random.default_rng(seed)
    assert metrics_of(*trials.error_curve(np.ones(6, int))) == pytest.approx(direct_metrics(scores, labels), abs=1e-12)
    for _ in range(20):
        weight = random.integers(0, 4, size=6)
        rows = np.repeat(np.arange(labels.size), times(weight, enrol, test))
        curve = trials.error_curve(weight)
        if len(set(labels[rows])) < 2:
            assert curve is None
            continue
        assert metrics_of(*curve) == pytest.approx(direct_metrics(scores[rows], labels[rows]), abs=1e-12)


def interval_of(estimate, replicates, speakers, floor, largest):
    """The formula at the head of intervals.py, for one number."""
    logs = np.log(np.maximum(replicates, floor))
    centre = 2 * np.log(max(estimate, floor)) - np.mean(logs)
    half = student(speakers - 1).isf(0.025) * np.std(logs, ddof=1) * (speakers / (speakers - 1)) ** 0.5
    return min(np.exp(centre - half), estimate), min(max(np.exp(centre + half), estimate), largest)


def test_intervals_against_repeated_trials():
    scores, labels, enrol, test = random_trials(2)
    replicates = [direct_metrics(scores[rows], labels[rows]) for rows in repeated(5, 6, labels, enrol, test, 40)]
    found = bootstrap_intervals(scores, labels, enrol, test, replicates=40, seed=5)
    assert tuple(found) == METRICS
    for column, (metric, estimate, largest) in enumerate(zip(METRICS, direct_metrics(scores, labels), (100, 1, 1))):
        floor = 0.5 * largest / np.count_nonzero(labels)
        expected = interval_of(estimate, np.array(replicates)[:, column], 6, floor, largest)
        assert found[metric] == pytest.approx(expected, abs=1e-9)
        assert found[metric][0] <= estimate <= found[metric][1]


def test_nothing_seen_and_nothing_known():
    labels, speakers = np.array([0, 0, 0, 1, 1, 1]), (np.array([0, 1, 2, 0, 1, 2]), np.array([1, 2, 0, 0, 1, 2]))
    apart = bootstrap_intervals(np.arange(6), labels, *speakers, replicates=50)
    assert set(apart.values()) == {(0, 0)}
    upside_down = bootstrap_intervals(-np.arange(6), labels, *speakers, replicates=50)
    assert upside_down["eer"][1] == 100 and upside_down["min_dcf_0.01"][1] == 1
    # Of two speakers every replicate is the list itself, which tells nothing of other speakers.
    two = [[0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]]
    assert list(bootstrap_intervals(*two, replicates=20).values()) == [(0, 100), (0, 1), (0, 1)]
    assert {difference.p for difference in compare([4, 3, 2, 1], *two, replicates=20).values()} == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("effects", "eer"), [
    (interval_coverage.EFFECTS["wolves"], 5),  # speakers differ in how often others are taken for them
    (interval_coverage.Effects(0.5, 0.1, 0.02, 0.05, 0.05), 10),  # ... in how much their own utterances differ
])  # fmt: skip
def test_intervals_hold_the_truth_at_40_speakers_and_those_of_a_bootstrap_over_trials_do_not(effects, eer):
    """In %, with a standard error of 1.3; minDCF(0.01) of so short a list is known to be held less often."""
    held, _ = interval_coverage.coverage(1, (40, 16, 3), effects, (eer, eer), simulations=400, replicates=60)
    assert held["ours"][0] >= 92 and min(held["ours"]) >= 88 and held["trials"][0] <= 50, held


def test_compare_against_repeated_trials():
    scores, labels, enrol, test = random_trials(1)
    runs = scores + 0.5 * np.random.default_rng(1).standard_normal((2, labels.size))  # of the second system

    def mean_metrics(rows):
        return np.mean([direct_metrics(run[rows], labels[rows]) for run in runs], axis=0)

    drawn = [
        mean_metrics(rows) - direct_metrics(scores[rows], labels[rows])
        for rows in repeated(7, 6, labels, enrol, test, 40)
    ]
    found = compare(scores, runs, labels, enrol, test, replicates=40, seed=7)
    assert [each.first for each in found.values()] == pytest.approx(direct_metrics(scores, labels))
    assert [each.second for each in found.values()] == pytest.approx(mean_metrics(slice(None)))
    for difference, spread in zip(found.values(), np.std(drawn, axis=0, ddof=1) * np.sqrt(6 / 5)):
        assert difference.difference == difference.second - difference.first
        assert difference.high - difference.difference == pytest.approx(2.5705818 * spread)  # t of 5 degrees
        expected = 2 * student(5).cdf(-abs(difference.difference) / spread)
        assert difference.p == pytest.approx(max(expected, 1 / 41))
