"""Scores to log-likelihood ratios, and how good those are.

A log-likelihood ratio says how many times likelier a trial is if both sides are one speaker than if they are two, as a
natural logarithm. It is worth the same on every list, and with a prior it gives the threshold of the least cost: there
is none to be tuned.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from tools import error_curve

# Keeps the weights of separable trials finite. The ratios of 40,000 trials with an EER of 0.6 % move by 0.04 (r.m.s.);
# another 40,000 of the kind move them by 0.9.
RIDGE = 1e-7


class Calibration(NamedTuple):
    """Log-likelihood ratio = features @ weights + bias."""

    weights: np.ndarray  # (F,)
    bias: float

    def apply(self, features):
        """Features (N, F) -> natural log-likelihood ratios (N,) float64."""
        return np.asarray(features, dtype=np.float64) @ self.weights + self.bias


def fit_llr(features, labels, p_target=0.01):
    """Logistic regression from features (N, F), a score and perhaps its circumstances, to log-likelihood ratios.

    labels: (N,) 1 = same speaker, 0 = different. What is minimised is the Cllr of both kinds of trials, weighted as if
    a share ``p_target`` of all were of the same speaker, whatever their share in the list (Bruemmer and du Preez,
    "Application-independent evaluation of speaker detection", 2006), plus RIDGE / 2 times the square of the weights of
    the standardised features. Returns a Calibration. ValueError when a kind is missing or a feature not finite.
    """
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels).ravel()
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features must be (N, F) finite numbers, not {features.shape}")
    target = _target(features[:, 0], labels)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # A feature that is always the same tells nothing: its weight stays 0.
    scale[scale <= 1e-12 * np.abs(mean)] = np.inf
    inputs = (features - mean) / scale
    sign = np.where(target, 1.0, -1.0)
    share = np.where(target, p_target / np.count_nonzero(target), (1 - p_target) / np.count_nonzero(~target))

    def objective(parameters):
        weights, bias = parameters[:-1], parameters[-1]
        margin = sign * (inputs @ weights + bias + logit(p_target))
        slope = -share * sign * expit(-margin)
        value = share @ np.logaddexp(0, -margin) + RIDGE / 2 * weights @ weights
        return value, np.append(slope @ inputs + RIDGE * weights, slope.sum())

    start = np.zeros(features.shape[1] + 1)
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    weights = found[:-1] / scale
    return Calibration(weights, float(found[-1] - mean @ weights))


def quality_features(scores, enrol_quality, test_quality):
    """What a quality-aware calibration looks at: the score and, of each quality, its lower and its higher value.

    scores (N,), enrol_quality and test_quality (N, Q) of the trials' two sides -> (N, 1 + 2 Q); it does not matter
    which side is which. Thienpondt et al., "The IDLab VoxSRC-20 Submission: Large Margin Fine-Tuning and Quality-Aware
    Score Calibration in DNN Based Speaker Verification", ICASSP 2021.
    """
    lower, higher = np.minimum(enrol_quality, test_quality), np.maximum(enrol_quality, test_quality)
    return np.column_stack([scores, lower, higher])


# ---- how good they are -----------------------------------------------------------------------------------------------


def cllr(llr, labels):
    """The cost of log-likelihood ratios in bits: (llr (N,), labels (N,)) -> from 0; 1 is what saying nothing costs.

    It sums up, over all priors, what deciding by these ratios costs (Bruemmer and du Preez 2006). ValueError for NaN,
    labels other than 0 and 1, or when one of the two kinds is missing.
    """
    llr = np.asarray(llr, dtype=np.float64).ravel()
    return _cllr(llr, _target(llr, labels))


def min_cllr(llr, labels):
    """The least ``cllr`` that any rising function of these scores has: what is left to speakers, not to calibration.

    That function is the isotonic regression of the labels, "pool adjacent violators", here as log-likelihood ratios.
    Any scores will do. Errors as in ``cllr``.
    """
    llr = np.asarray(llr, dtype=np.float64).ravel()
    target = _target(llr, labels)
    # Equal scores stand or fall together.
    _, place, count = np.unique(llr, return_inverse=True, return_counts=True)
    share = np.bincount(place, weights=target) / count
    posterior = isotonic_regression(share, weights=count).x
    # Infinite where only one kind is found, and right there.
    return _cllr((logit(posterior) - logit(target.mean()))[place], target)


def actual_dcf(llr, labels, p_target=0.01, c_miss=1, c_fa=1):
    """Detection cost at the threshold that log-likelihood ratios promise to be the best, normalised as ``min_dcf``.

    (llr (N,), labels (N,)) -> from 0; where the ratios mislead it may exceed 1, the cost of not looking at all. A trial
    is accepted from log(c_fa (1 - p_target) / (c_miss p_target)) on. Errors as in ``cllr``.
    """
    thresholds, miss, false_alarm = error_curve(llr, labels)
    # What is accepted from there on is what is accepted from the next ratio in the list on.
    place = np.searchsorted(thresholds, np.log(c_fa * (1 - p_target) / (c_miss * p_target)))
    cost = c_miss * miss[place] * p_target + c_fa * false_alarm[place] * (1 - p_target)
    return float(cost / min(c_miss * p_target, c_fa * (1 - p_target)))


def _target(scores, labels):
    """(N,) bool: which trials are of the same speaker; refuses what ``error_curve`` refuses."""
    error_curve(scores, labels)
    return np.asarray(labels).ravel() == 1


def _cllr(llr, target):
    surprise = np.logaddexp(0, np.where(target, -llr, llr)) / np.log(2)
    return float(surprise[target].mean() + surprise[~target].mean()) / 2
