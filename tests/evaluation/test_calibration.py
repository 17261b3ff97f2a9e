import math

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from evaluation.calibration import RIDGE, Calibration, actual_dcf, cllr, fit_llr, min_cllr, quality_features
from tools import min_dcf


def normal_scores(seed, trials=200_000, distance=4.0, share=0.1):
    """Unit normals ``distance`` apart, whose log-likelihood ratio is distance * score - distance^2 / 2."""
    random = np.random.default_rng(seed)
    labels = (random.random(trials) < share).astype(int)
    return random.standard_normal(trials) + distance * labels, labels


# ---- how good they are -----------------------------------------------------------------------------------------------


def test_cllr_by_its_definition():
    llr, labels = np.array([-2.0, 0.5, 3.0, 1.0, -4.0]), np.array([0, 1, 1, 0, 0])
    target = [math.log2(1 + math.exp(-0.5)), math.log2(1 + math.exp(-3))]
    other = [math.log2(1 + math.exp(each)) for each in (-2, 1, -4)]
    assert cllr(llr, labels) == pytest.approx((sum(target) / 2 + sum(other) / 3) / 2)
    assert cllr(np.zeros(5), labels) == pytest.approx(1)  # nothing said
    assert cllr([-1000, 1000], [0, 1]) == 0 and cllr([1000, -1000], [0, 1]) == pytest.approx(1000 / math.log(2))


def test_cllr_of_normal_scores_is_an_integral():
    """Of the true ratios, whose own distribution is normal: mean +-d^2/2, deviation d."""
    scores, labels = normal_scores(0, distance=2.0, share=0.5)
    x = np.linspace(-12, 12, 100_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    expected = np.sum(density * np.log2(1 + np.exp(-(2 + 2 * x)))) * (x[1] - x[0])
    assert cllr(2 * scores - 2, labels) == pytest.approx(expected, abs=0.005)
    assert min_cllr(scores, labels) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("decimals", [0, 1, 12])  # from many ties to none
def test_min_cllr_against_scikit_learn(decimals):
    scores, labels = normal_scores(1, trials=2000, distance=1.5)
    scores = np.round(scores, decimals)
    posterior = IsotonicRegression(y_min=0, y_max=1).fit(scores, labels).predict(scores)
    with np.errstate(divide="ignore"):
        best = np.log(posterior / (1 - posterior)) - np.log(labels.mean() / (1 - labels.mean()))
    surprise = np.log2(1 + np.exp(np.where(labels == 1, -best, best)))
    expected = (surprise[labels == 1].mean() + surprise[labels == 0].mean()) / 2
    assert min_cllr(scores, labels) == pytest.approx(expected)
    assert min_cllr(np.exp(3 * scores), labels) == pytest.approx(expected)  # any scores in this order
    order = np.random.default_rng(0).permutation(len(labels))
    assert min_cllr(scores[order], labels[order]) == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_min_cllr_of_the_extremes():
    assert min_cllr([1, 2, 3, 4], [0, 0, 1, 1]) == 0  # apart
    assert min_cllr([4, 3, 2, 1], [0, 0, 1, 1]) == pytest.approx(1)  # upside down: no rising function is of use
    assert min_cllr([7, 7, 7], [0, 0, 1]) == pytest.approx(1)


@pytest.mark.parametrize(("p_target", "c_miss", "c_fa"), [(0.01, 1, 1), (0.05, 1, 1), (0.5, 1, 1), (0.01, 10, 1)])
def test_actual_dcf_by_counting(p_target, c_miss, c_fa):
    scores, labels = normal_scores(2, trials=3000, distance=3.0)
    threshold = math.log(c_fa * (1 - p_target) / (c_miss * p_target))
    for llr in (3 * scores - 4.5, scores, np.round(scores), np.full(len(labels), threshold), -scores - 50):
        accepted = llr >= threshold
        miss, alarm = np.mean(~accepted[labels == 1]), np.mean(accepted[labels == 0])
        cost = c_miss * p_target * miss + c_fa * (1 - p_target) * alarm
        expected = cost / min(c_miss * p_target, c_fa * (1 - p_target))
        assert actual_dcf(llr, labels, p_target, c_miss, c_fa) == pytest.approx(expected)
        assert expected >= min_dcf(llr, labels, p_target, c_miss, c_fa)[0] - 1e-12
    # The true ratios' cost is that of the best threshold, but for chance.
    assert actual_dcf(3 * scores - 4.5, labels, p_target, c_miss, c_fa) == pytest.approx(
        min_dcf(scores, labels, p_target, c_miss, c_fa)[0], abs=0.1
    )


@pytest.mark.parametrize("measure", [cllr, min_cllr, actual_dcf])
def test_what_cannot_be_measured(measure):
    for scores, labels, complaint in (
        ([0.1, 0.2], [1, 1], "both kinds"),
        ([0.1, np.nan], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 2], "labels must be"),
        ([0.1, 0.2, 0.3], [0, 1], "3 scores but 2 labels"),
    ):
        with pytest.raises(ValueError, match=complaint):
            measure(scores, labels)


# ---- fitting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p_target", [0.01, 0.5])
def test_fit_finds_the_true_ratios(p_target):
    """Whatever the share of target trials in the list, and the prior that weighs them."""
    scores, labels = normal_scores(3, share=0.3)
    fitted = fit_llr(scores[:, None], labels, p_target)
    assert fitted.weights[0] == pytest.approx(4, rel=0.05) and fitted.bias == pytest.approx(-8, rel=0.05)
    fresh, its_labels = normal_scores(4, share=0.02)
    llr = fitted.apply(fresh[:, None])
    assert np.allclose(llr, fitted.weights[0] * fresh + fitted.bias)
    assert cllr(llr, its_labels) == pytest.approx(min_cllr(fresh, its_labels), abs=0.01)
    assert actual_dcf(llr, its_labels) == pytest.approx(min_dcf(fresh, its_labels)[0], abs=0.02)


@pytest.mark.parametrize("p_target", [0.01, 0.2])
def test_fit_against_scikit_learn(p_target):
    """Features of very different sizes, one of them useless, two of them nearly the same."""
    random = np.random.default_rng(5)
    scores, labels = normal_scores(5, trials=5000, distance=2.0)
    quality = random.standard_normal(len(labels))
    features = np.stack([0.1 * scores + 0.02 * quality, 1000 + 50 * quality, random.random(len(labels)),
                         1000 + 50 * quality + random.standard_normal(len(labels))], axis=1)  # fmt: skip
    share = {1: p_target / np.sum(labels == 1), 0: (1 - p_target) / np.sum(labels == 0)}
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    # C weighs the sum of all losses against half the squared weights: no regularisation to speak of.
    model = LogisticRegression(C=1e8, class_weight=share, tol=1e-10, max_iter=10_000).fit(inputs, labels)
    expected = model.decision_function(inputs) - math.log(p_target / (1 - p_target))
    assert np.allclose(fit_llr(features, labels, p_target).apply(features), expected, atol=0.01)


def test_fit_does_not_depend_on_units():
    scores, labels = normal_scores(6, trials=5000, distance=2.0)
    other = np.random.default_rng(0).standard_normal(len(labels)) + 0.5 * labels
    features = np.stack([scores, other], axis=1)
    expected = fit_llr(features, labels).apply(features)
    assert np.allclose(fit_llr(features * [1e-3, 1e4] + [5, -7], labels).apply(features * [1e-3, 1e4] + [5, -7]),
                       expected, atol=1e-4)  # fmt: skip


def test_fit_of_separable_trials_stays_finite():
    """And is the optimum that the ridge defines, not where the search was given up."""
    scores, labels = np.arange(-50.0, 50.0)[:, None], np.repeat([0, 1], 50)
    fitted = fit_llr(scores, labels, 0.1)
    model = LogisticRegression(C=1 / RIDGE, class_weight={1: 0.1 / 50, 0: 0.9 / 50}, tol=1e-12, max_iter=10_000)
    model.fit((scores - scores.mean()) / scores.std(), labels)
    assert fitted.weights[0] * scores.std() == pytest.approx(model.coef_[0, 0], rel=0.01)
    assert 0 < cllr(fitted.apply(scores), labels) < 0.01


def test_a_feature_that_never_changes_has_no_say():
    scores, labels = normal_scores(7, trials=2000)
    fitted = fit_llr(np.stack([scores, np.full(len(labels), 0.1), np.zeros(len(labels))], axis=1), labels)
    alone = fit_llr(scores[:, None], labels)
    assert fitted.weights[1:].tolist() == [0, 0]
    assert fitted.apply([[1.0, 99.0, 5.0]]) == pytest.approx(alone.apply([[1.0]]), abs=1e-6)


def test_quality_helps_where_it_matters():
    """Half of the trials are of poor recordings, which score lower: only a calibration that knows them makes up."""
    random = np.random.default_rng(8)
    scores, labels = normal_scores(8, trials=50_000)
    quality = random.integers(0, 2, (2, len(labels), 1)).astype(float)
    scores -= 2 * quality.min(axis=0)[:, 0]
    features = quality_features(scores, *quality)
    train = np.arange(len(labels)) < 25_000
    costs = []
    for each in (features[:, :1], features):
        fitted = fit_llr(each[train], labels[train])
        costs.append(min_cllr(fitted.apply(each[~train]), labels[~train]))
    assert costs[1] < 0.9 * costs[0]


def test_quality_features_know_no_sides():
    features = quality_features([0.5, 0.6], np.array([[1, 2], [3, 4]]), np.array([[0, 9], [5, 4]]))
    assert features.tolist() == [[0.5, 0, 2, 1, 9], [0.6, 3, 4, 5, 4]]


def test_what_cannot_be_fitted():
    scores = np.random.default_rng(0).standard_normal((4, 1))
    for features, labels, complaint in (
        (scores, [1, 1, 1, 1], "both kinds"),
        (scores, [0, 0, 0, 0], "both kinds"),
        (scores * np.inf, [0, 1, 0, 1], "finite"),
        (scores[:, 0], [0, 1, 0, 1], r"\(N, F\)"),
        (scores, [0, 1, 0], "labels"),
    ):
        with pytest.raises(ValueError, match=complaint):
            fit_llr(features, labels)


def test_a_calibration_is_plain_numbers():
    """So that it can be kept in a checkpoint."""
    scores, labels = normal_scores(9, trials=1000)
    fitted = fit_llr(scores[:, None], labels)
    again = Calibration(np.array(fitted.weights.tolist()), fitted.bias)
    assert np.array_equal(again.apply(scores[:, None]), fitted.apply(scores[:, None]))
    assert type(fitted.bias) is float
