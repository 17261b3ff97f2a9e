"""Calibration: against definitions, float64 optimisation by scipy, and simulated scores with known ratios."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from evaluation.calibration import RIDGE, actual_dcf, cllr, fit_if_quality_helps, fit_llr, min_cllr
from tools import min_dcf


def normal_scores(seed, trials=200_000, distance=4.0, share=0.1):
    """Unit normals ``distance`` apart, whose log-likelihood ratio is distance * score - distance^2 / 2."""
    random = np.random.default_rng(seed)
    labels = (random.random(trials) < share).astype(int)
    return random.standard_normal(trials) + distance * labels, labels


def test_cllr_by_its_definition():
    llr, labels = np.array([-2.0, 0.5, 3.0, 1.0, -4.0]), np.array([0, 1, 1, 0, 0])
    target = [math.log2(1 + math.exp(-0.5)), math.log2(1 + math.exp(-3))]
    other = [math.log2(1 + math.exp(each)) for each in (-2, 1, -4)]
    assert cllr(llr, labels) == pytest.approx((sum(target) / 2 + sum(other) / 3) / 2)
    assert cllr(np.zeros(5), labels) == pytest.approx(1)
    assert cllr([-1000, 1000], [0, 1]) == 0 and cllr([1000, -1000], [0, 1]) == pytest.approx(1000 / math.log(2))


@pytest.mark.parametrize("decimals", [0, 1, 12])  # from many ties to none
def test_min_cllr_is_the_least_of_all_rising_step_functions(decimals):
    """By pooling adjacent violators one by one, over groups of equal scores."""
    scores, labels = normal_scores(1, trials=1000, distance=1.5)
    scores = np.round(scores, decimals)
    blocks = []  # [targets, trials]
    for score in np.unique(scores):
        blocks.append([labels[scores == score].sum(), np.sum(scores == score)])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            targets, trials = blocks.pop()
            blocks[-1][0] += targets
            blocks[-1][1] += trials
    prior, expected = labels.sum() / np.sum(labels == 0), 0.0
    for targets, trials in blocks:
        others = trials - targets
        if targets and others:
            ratio = targets / others / prior
            expected += targets / labels.sum() * math.log2(1 + 1 / ratio)
            expected += others / np.sum(labels == 0) * math.log2(1 + ratio)
    assert min_cllr(scores, labels) == pytest.approx(expected / 2, abs=1e-12)
    assert min_cllr(np.exp(3 * scores), labels) == pytest.approx(expected / 2)  # any scores in this order


@pytest.mark.filterwarnings("error")
def test_min_cllr_of_the_extremes():
    assert min_cllr([1, 2, 3, 4], [0, 0, 1, 1]) == 0
    assert min_cllr([4, 3, 2, 1], [0, 0, 1, 1]) == pytest.approx(1)
    assert min_cllr([7, 7, 7], [0, 0, 1]) == pytest.approx(1)


@pytest.mark.parametrize("p_target", [0.01, 0.05, 0.5])
def test_actual_dcf_by_counting(p_target):
    scores, labels = normal_scores(2, trials=3000, distance=3.0)
    threshold = math.log((1 - p_target) / p_target)
    for llr in (3 * scores - 4.5, scores, np.round(scores), np.full(len(labels), threshold), -scores - 50):
        accepted = llr >= threshold
        cost = p_target * np.mean(~accepted[labels == 1]) + (1 - p_target) * np.mean(accepted[labels == 0])
        assert actual_dcf(llr, labels, p_target) == pytest.approx(cost / p_target)
        assert cost / p_target >= min_dcf(llr, labels, p_target)[0] - 1e-12


@pytest.mark.parametrize("p_target", [0.01, 0.5])
def test_fit_finds_the_true_ratios(p_target):
    """Whatever the share of target trials in the list, and the prior that weighs them."""
    scores, labels = normal_scores(3, share=0.3)
    fitted = fit_llr(scores[:, None], labels, p_target)
    assert fitted.weights[0] == pytest.approx(4, rel=0.05) and fitted.bias == pytest.approx(-8, rel=0.05)
    fresh, its_labels = normal_scores(4, share=0.02)
    llr = fitted.apply(fresh[:, None])
    assert cllr(llr, its_labels) == pytest.approx(min_cllr(fresh, its_labels), abs=0.01)
    assert actual_dcf(llr, its_labels) == pytest.approx(min_dcf(fresh, its_labels)[0], abs=0.02)


@pytest.mark.parametrize("p_target", [0.01, 0.2])
@pytest.mark.parametrize("separable", [False, True])
def test_fit_against_scipy(p_target, separable):
    """The minimum of the prior-weighted Cllr and the ridge, for features of very different units."""
    scores, labels = normal_scores(5, trials=2000, distance=20.0 if separable else 2.0)
    quality = np.random.default_rng(5).standard_normal(len(labels))
    features = np.stack([0.1 * scores + 0.02 * quality, 1000 + 50 * quality], axis=1)
    inputs, sign = (features - features.mean(axis=0)) / features.std(axis=0), np.where(labels == 1, 1, -1)
    share = np.where(labels == 1, p_target / labels.sum(), (1 - p_target) / np.sum(labels == 0))

    def objective(x):
        margin = sign * (inputs @ x[:2] + x[2] + math.log(p_target / (1 - p_target)))
        slope = -share * sign * expit(-margin)
        value = share @ np.logaddexp(0, -margin) + RIDGE / 2 * x[:2] @ x[:2]
        return 1e6 * value, 1e6 * np.append(slope @ inputs + RIDGE * x[:2], slope.sum())

    found = minimize(objective, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 10_000}).x
    expected = inputs @ found[:2] + found[2]
    fitted = fit_llr(features, labels, p_target)
    np.testing.assert_allclose(fitted.apply(features), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert type(fitted.bias) is float


def test_a_constant_feature_has_no_weight():
    scores, labels = normal_scores(7, trials=2000)
    fitted = fit_llr(np.stack([scores, np.full(len(labels), 0.1), np.zeros(len(labels))], axis=1), labels)
    assert fitted.weights[1:].tolist() == [0, 0]
    assert fitted.apply([[1.0, 99.0, 5.0]]) == pytest.approx(fit_llr(scores[:, None], labels).apply([[1.0]]), abs=1e-6)


def trials_of(speakers, several_corpora):
    """Features (N, 2), labels, and the halves of the sides (N, 1), by the mean quality of their speakers.

    The quality adds to the score, or is that of one of two corpora, the first of which has most same-speaker trials.
    """
    random = np.random.default_rng(0)
    first, second = np.triu_indices(4 * speakers, 1)
    enrol, test = first // 4, second // 4
    labels = (enrol == test).astype(int)
    if several_corpora:
        keep = (labels == 0) | (enrol < speakers / 2) | (random.random(len(labels)) < 0.1)
        enrol, test, labels = enrol[keep], test[keep], labels[keep]
    of_speaker = (np.arange(speakers) < speakers / 2) + 0.1 * random.standard_normal(speakers)
    quality = of_speaker[enrol] + of_speaker[test] + random.standard_normal(len(labels)) * (not several_corpora)
    scores = random.standard_normal(len(labels)) + 2.5 * labels + 1.5 * quality * (not several_corpora)
    high = of_speaker > np.median(of_speaker)
    return np.stack([scores, quality], axis=1), labels, high[enrol][:, None], high[test][:, None]


@pytest.mark.parametrize("several_corpora", [False, True])
def test_quality_counts_if_it_helps_speakers_of_other_quality(several_corpora):
    """Where it only tells corpora apart, it lowers Cllr on the trials of the fit, and is not used."""
    features, labels, enrol, test = trials_of(40, several_corpora)
    found, costs = fit_if_quality_helps(features, labels, enrol, test), []
    for columns in ([0], [0, 1]):
        ratios, those = [], []
        for half in (False, True):
            fit, check = (np.array([e == t == each for (e,), (t,) in zip(enrol, test)]) for each in (half, not half))
            ratios += fit_llr(features[fit][:, columns], labels[fit]).apply(features[check][:, columns]).tolist()
            those += labels[check].tolist()
        costs.append(cllr(ratios, those))
    assert found.across == pytest.approx(np.array([costs]), rel=1e-6) and (costs[1] < costs[0]) != several_corpora
    together, alone = fit_llr(features, labels), fit_llr(features[:, :1], labels)
    assert cllr(together.apply(features), labels) < cllr(alone.apply(features[:, :1]), labels)
    expected = [alone.weights[0], 0] if several_corpora else together.weights
    assert found.weights == pytest.approx(expected)


def test_where_no_half_can_be_held_out_the_score_is_calibrated_alone():
    features, labels, enrol, test = trials_of(3, several_corpora=False)  # one half has a single speaker
    found = fit_if_quality_helps(features, labels, enrol, test)
    assert found.across.shape == (0, 2) and found.weights[0] > 0 and found.weights[1] == 0
