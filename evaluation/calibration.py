"""Calibration of scores to natural log-likelihood ratios, and its metrics (Cllr, actual DCF).

Bruemmer and du Preez, "Application-independent evaluation of speaker detection", Computer Speech & Language, 2006.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tools import detection_cost, error_curve

# L2 penalty on the weights of the standardised features, so that they stay finite for separable trials. It changes the
# ratios of 40,000 trials with an EER of 0.6 % by 0.04 (r.m.s.); another draw of 40,000 trials changes them by 0.9.
RIDGE = 1e-7


class Calibration(NamedTuple):
    """A linear function from features to log-likelihood ratios."""

    weights: np.ndarray  # (F,)
    bias: float
    across: np.ndarray | None = None  # (H, 2), Cllr on other speakers without and with quality measures

    def apply(self, features):
        """Features (N, F) -> log-likelihood ratios (N,) float64."""
        return np.asarray(features, dtype=np.float64) @ self.weights + self.bias


def fit_llr(features, labels, p_target=0.01):
    """A Calibration by logistic regression on features (N, F): a score and optional quality measures.

    labels: (N,) 1 = same speaker, 0 = different; weighted to the prior ``p_target`` (Bruemmer and du Preez 2006).
    ValueError when one class is missing or a feature is not finite.
    """
    target = np.asarray(labels) == 1
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale <= 1e-12 * np.abs(mean)] = np.inf  # weight 0 for a constant feature
    share = np.where(target, p_target / np.count_nonzero(target), (1 - p_target) / np.count_nonzero(~target))
    # C multiplies the losses, whose weights sum to 1; the penalty is half the squared weights.
    model = LogisticRegression(C=1 / RIDGE, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit((features - mean) / scale, target, sample_weight=share)
    weights = model.coef_[0] / scale
    return Calibration(weights, float(model.intercept_[0] - logit(p_target) - mean @ weights))


def fit_if_quality_helps(features, labels, enrol, test):
    """The Calibration of a score (column 0) and quality measures, whose weights are 0 unless they help other speakers.

    enrol, test: (N, H) bool, the half that the speaker of either side is in, for H ways to halve the speakers. The
    measures have to lower ``cllr_across_halves`` in all of them. Otherwise the score is calibrated alone, which changes
    no error rate. The rest is as for ``fit_llr``.
    """
    alone = np.where(np.arange(features.shape[1]) == 0, features, 0)
    across = [[cllr_across_halves(each, labels, *half) for each in (alone, features)] for half in zip(enrol.T, test.T)]
    across = np.array([costs for costs in across if np.isfinite(costs).all()]).reshape(-1, 2)
    helps = len(across) and (across[:, 1] < across[:, 0]).all()
    return fit_llr(features if helps else alone, labels)._replace(across=across)


def cllr_across_halves(features, labels, enrol, test):
    """``cllr`` of the trials within each half of the speakers, calibrated on the other; NaN if one lacks a class.

    enrol, test: (N,) bool, the half of the speaker of either side.
    """
    halves = [~enrol & ~test, enrol & test]
    if any(len(set(labels[half])) < 2 for half in halves):
        return np.nan
    ratios = [fit_llr(features[fit], labels[fit]).apply(features[half]) for fit, half in zip(halves, halves[::-1])]
    return cllr(np.concatenate(ratios), np.concatenate([labels[half] for half in halves[::-1]]))


def cllr(llr, labels):
    """Cost of log-likelihood ratios (N,) in bits, over all priors (Bruemmer and du Preez 2006); 1 if all are 0."""
    llr, target = np.asarray(llr), np.asarray(labels) == 1
    bits = np.logaddexp(0, np.where(target, -llr, llr)) / np.log(2)
    return float(bits[target].mean() + bits[~target].mean()) / 2


def min_cllr(scores, labels):
    """The minimum ``cllr`` over all increasing functions of the scores (isotonic regression)."""
    target = np.asarray(labels) == 1
    posterior = IsotonicRegression().fit(scores, target).predict(scores)
    return cllr(logit(posterior) - logit(target.mean()), labels)  # correctly infinite where one class is alone


def actual_dcf(llr, labels, p_target=0.01):
    """Detection cost, normalised as ``min_dcf``, at the Bayes threshold log((1 - p) / p)."""
    thresholds, miss, false_alarm = error_curve(llr, labels)
    at = np.searchsorted(thresholds, np.log((1 - p_target) / p_target))
    return float(detection_cost(miss[at], false_alarm[at], p_target))
