"""95 % intervals of EER and minDCF, and paired comparisons of two systems, by bootstrap over speakers.

The trials of a list share speakers: one difficult speaker causes errors in hundreds of trials. Therefore speakers are
resampled with replacement, not trials (subsets bootstrap, Bolle et al. 2004; for pairs of speakers, pigeonhole
bootstrap, Owen 2007). The weight of a same-speaker trial is the count of its speaker in the replicate, that of a
different-speaker trial the product of the counts of its two speakers.

A metric x has the interval

    exp(2 log x - mean(log x*) +- t sd(log x*) sqrt(S / (S - 1))),

x* in the replicates, S speakers, t with S - 1 degrees of freedom; widened if it does not contain x. The interval of the
difference d of two systems is d +- t sd(d*) sqrt(S / (S - 1)). The logarithm, because error rates vary by factors;
2 log x - mean, because minDCF, a minimum of noisy costs, is biased low, in a replicate more than in the list; Student's
t, because the standard deviation is estimated from few speakers. Coverage and limits, measured on simulated trials by
tests/studies/interval_coverage.py: docs/evaluation.md.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student

from tools import crossing, detection_cost, error_curve

METRICS = ("eer", "min_dcf_0.05", "min_dcf_0.01")  # % and normalised costs, as tools.py computes them
P_TARGETS = (0.05, 0.01)
LARGEST = np.array([100.0, 1.0, 1.0])


def speakers_of(trials):
    """Speaker numbers 0, 1, ... of a TrialList: (enrol (N,) int64, test (N,) int64, number of speakers).

    A speaker is the shallowest folder that is the same in all same-speaker trials and differs in all different-speaker
    trials (``id10270/x/1.wav``, ``eval/wav/ls01/s/u.flac``). If there is none, a speaker is a set of utterances that
    same-speaker trials connect, directly or through others.
    """
    number = {path: position for position, path in enumerate(dict.fromkeys([*trials.enrol, *trials.test]))}
    enrol, test = (np.array([number[path] for path in side]) for side in (trials.enrol, trials.test))
    folder_of, contrary = trials.speaker_folders()
    if folder_of and not contrary:
        code = {folder: position for position, folder in enumerate(dict.fromkeys(folder_of.values()))}
        speaker, count = np.array([code[folder_of[path]] for path in number]), len(code)
    else:
        same = trials.label == 1
        links = coo_array((same[same], (enrol[same], test[same])), shape=(len(number),) * 2)
        count, speaker = connected_components(links, directed=False)
        speaker = speaker.astype(np.int64)
    return speaker[enrol], speaker[test], count


def tells(result):
    """Whether the intervals of a result say anything: with few speakers, no errors, or up to 100 %, they do not."""
    return result["speakers"] >= 5 and result["eer"] > 0 and result["interval"]["eer"][1] < 100


class WeightedTrials:
    """The trials of a list, sorted once, for error rates with many different weights of the speakers.

    scores, labels (N,) as in ``tools.error_curve``; enrol_speaker and test_speaker (N,) as from ``speakers_of``.
    """

    def __init__(self, scores, labels, enrol_speaker, test_speaker):
        _, miss, false_alarm = error_curve(scores, labels)
        scores, labels = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(labels).ravel()
        speakers = np.stack([np.ravel(enrol_speaker), np.ravel(test_speaker)])
        names, speakers = np.unique(speakers, return_inverse=True)  # only speakers that are in trials
        self.speakers = names.size
        order = np.argsort(scores)
        enrol, test = speakers.reshape(2, -1)[:, order]
        # The weight of a same-speaker trial is that of its speaker: its second factor is the 1 after all weights.
        test = np.where(enrol == test, self.speakers, test)
        target = labels[order] == 1
        self.target, self.other = (enrol[target], test[target]), (enrol[~target], test[~target])
        # Numbers of trials below each threshold. In a run of thresholds that differ in trials of one class only, the
        # inner ones lie on a straight part of the curve and affect neither EER nor minDCF.
        below, below_other = np.rint(miss * target.sum()), np.rint((1 - false_alarm) * (~target).sum())
        still, still_other = np.diff(below) == 0, np.diff(below_other) == 0
        inner = (still[1:] & still[:-1]) | (still_other[1:] & still_other[:-1])
        corner = np.concatenate([[True], ~inner, [True]])
        self.below, self.below_other = below[corner].astype(np.intp), below_other[corner].astype(np.intp)

    def error_curve(self, weight):
        """(miss, false alarm), each (C,), at the corners of the curve; None when one class of trials has no weight.

        weight: (speakers,) counts of the speakers.
        """
        weight = np.append(weight, 1)
        miss = _share_below(weight, *self.target, self.below)
        below = _share_below(weight, *self.other, self.below_other)
        return None if miss is None or below is None else (miss, 1.0 - below)


def _share_below(weight, enrol, test, ends):
    """The weight of the first ``ends`` trials as a fraction of the total; None when the total is 0."""
    product = weight.take(enrol, mode="clip")  # clip: the fast mode of numpy; all indices are in range
    product *= weight.take(test, mode="clip")
    total = np.cumsum(product)
    if not total[-1]:
        return None
    share = np.concatenate([[0.0], total / total[-1]])
    return share.take(ends, mode="clip")


def metrics_of(miss, false_alarm):
    """The METRICS (3,) of an error curve, as defined in tools.py."""
    eer, _, _ = crossing(miss, false_alarm)
    costs = [detection_cost(miss, false_alarm, p_target).min() for p_target in P_TARGETS]
    return np.array([100.0 * eer, *costs])


class Difference(NamedTuple):
    """Second system minus first, with its 95 % interval and the two-sided p-value of "no difference"."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def bootstrap_intervals(scores, labels, enrol_speaker, test_speaker, replicates=1000, seed=0):
    """95 % intervals {metric: (low, high)} of METRICS, for the population that the speakers were drawn from.

    scores, labels (N,) and the speaker numbers (N,) of both sides as for ``WeightedTrials``; the draws are a function
    of the seed. A metric of 0 has the interval [0, 0], which only means that the list is too easy: if none of S
    speakers has errors, up to 3 / S of all speakers may have some (rule of three). With fewer than three speakers the
    interval is the whole range.
    """
    trials = WeightedTrials(scores, labels, enrol_speaker, test_speaker)
    estimate, drawn = _bootstrap([trials], replicates, seed)
    low, high = _interval(estimate[0], drawn[:, 0], trials)
    return {metric: (float(a), float(b)) for metric, a, b in zip(METRICS, low, high)}


def compare(first_scores, second_scores, labels, enrol_speaker, test_speaker, replicates=1000, seed=0):
    """{metric: Difference} of METRICS of two systems on the same trials. Negative: the second is better.

    Scores are (N,), or (runs, N) of several seeds, whose metrics are averaged. Each replicate has the same speakers for
    both systems, so the difficulty that they share cancels. The p-value is at least 1 / (replicates + 1). Other
    arguments as for ``bootstrap_intervals``.
    """
    first, second = np.atleast_2d(first_scores), np.atleast_2d(second_scores)
    systems = [WeightedTrials(scores, labels, enrol_speaker, test_speaker) for scores in (*first, *second)]
    measured = [np.split(each, [len(first)], axis=-2) for each in _bootstrap(systems, replicates, seed)]
    estimate, drawn = (np.stack([runs.mean(axis=-2) for runs in both], axis=-2) for both in measured)
    difference = estimate[1] - estimate[0]
    spread, degrees = _spread(drawn[:, 1] - drawn[:, 0], systems[0])
    half = student.ppf(0.975, degrees) * spread
    distance = np.divide(np.abs(difference), spread, out=np.full(len(METRICS), np.inf), where=spread > 0)
    p = np.where(difference == 0, 1.0, np.maximum(2 * student.sf(distance, degrees), 1 / (replicates + 1)))
    low, high = np.maximum(difference - half, -LARGEST), np.minimum(difference + half, LARGEST)
    rows = zip(METRICS, *estimate, difference, low, high, p)
    return {metric: Difference(*map(float, row)) for metric, *row in rows}


def _bootstrap(systems, replicates, seed):
    """The METRICS of the list, (systems, 3), and of replicates, (replicates, systems, 3)."""
    speakers = systems[0].speakers
    estimate = [metrics_of(*system.error_curve(np.ones(speakers, np.int64))) for system in systems]
    random = np.random.default_rng(seed)
    drawn = []
    while len(drawn) < replicates:
        weight = np.bincount(random.integers(speakers, size=speakers), minlength=speakers)
        curves = [system.error_curve(weight) for system in systems]
        if curves[0] is not None:  # else one class of trials is missing, for all systems
            drawn.append([metrics_of(*curve) for curve in curves])
    return np.array(estimate), np.array(drawn)


def _spread(drawn, trials):
    """Standard deviation (3,) of replicates (R, 3), corrected for few speakers, and its degrees of freedom."""
    speakers = trials.speakers
    if speakers < 3:  # with two, all replicates that have both classes of trials are equal
        return np.full(drawn.shape[1], np.inf), 1
    return np.std(drawn, axis=0, ddof=1) * np.sqrt(speakers / (speakers - 1)), speakers - 1


def _interval(estimate, drawn, trials):
    """(low (3,), high (3,)) of METRICS: estimate (3,), replicates (R, 3)."""
    floor = 0.5 * LARGEST / len(trials.target[0])  # instead of log 0: half an error
    estimate_log, drawn_log = np.log(np.maximum(estimate, floor)), np.log(np.maximum(drawn, floor))
    spread, degrees = _spread(drawn_log, trials)
    centre = 2 * estimate_log - drawn_log.mean(axis=0)
    half = student.ppf(0.975, degrees) * spread
    with np.errstate(over="ignore"):
        low, high = np.exp(centre - half), np.exp(centre + half)
    seen = np.isinf(spread) | drawn.any(axis=0)
    return np.minimum(low, estimate), np.where(seen, np.clip(high, estimate, LARGEST), 0.0)
