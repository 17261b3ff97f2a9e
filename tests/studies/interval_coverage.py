"""How often the intervals of intervals.py hold the truth, on simulated scores whose true error rates are known.

    python tests/studies/interval_coverage.py [SIMULATIONS]

Prints, for lists of 18 to 1,000 speakers, EERs of 1, 5 and 20 % and weaker or stronger effects of the speakers on the
scores, in how many % of the simulations (100) the 95 % interval holds the true EER, minDCF(0.05) and minDCF(0.01): as
intervals.py computes it, from the percentiles of the same replicates, and from those of a bootstrap over trials. The
last columns are for ``compare``: how often the interval holds the true difference of two systems that have part of
their effects in common. Where they are equally good, what is missing to 100 % are false alarms of the p-value. The
standard error of 95 % is 2.2 % in 100 simulations, 1.1 % in 400. Some ten minutes on one core.

Scores are sums of normal effects: for a same-speaker trial of the speaker, of both utterances and of the trial; for a
different-speaker trial of both speakers, of their pair, of both utterances and of the trial. Their variances add to 1,
so the scores of the whole population are two unit normals, d apart, and the truth needs no simulation.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation import intervals

COMMON = 0.6  # of the variance of every effect, for the two systems that are compared


class Effects(NamedTuple):
    """Variances: same-speaker trials' by speaker and utterance, others' by speaker, pair of speakers and utterance."""

    speaker: float
    utterance: float
    other_speaker: float
    pair: float
    other_utterance: float


EFFECTS = {
    "weak": Effects(0.1, 0.1, 0.02, 0.05, 0.05),
    "middling": Effects(0.3, 0.2, 0.1, 0.2, 0.1),
    "strong": Effects(0.5, 0.15, 0.25, 0.1, 0.05),
    "wolves": Effects(0.1, 0.1, 0.35, 0.1, 0.05),  # who is taken for others, after Doddington et al. 1998
}
# Speakers, utterances of each on average, trials of either kind with each utterance: fewer where speakers are many.
LISTS = ((18, 30, 4), (40, 30, 4), (68, 30, 4), (200, 12, 3), (1000, 8, 2))
SHORT = (40, 8, 2)  # at the best threshold of minDCF(0.01) not even one false alarm is to be expected


def distance_of(eer):
    """How far apart two unit normals must be for this EER (%)."""
    return -2 * norm.ppf(eer / 100)


def true_metrics(distance):
    """(3,) the METRICS of two unit normals; the best threshold is where the densities, weighted by cost, are equal."""
    costs = []
    for p in intervals.P_TARGETS:
        threshold = distance / 2 + np.log((1 - p) / p) / distance
        costs.append(norm.cdf(threshold - distance) + norm.sf(threshold) * (1 - p) / p)
    return np.array([100 * norm.cdf(-distance / 2), *costs])


def draw_trials(random, speakers, utterances, trials):
    """A list in the manner of VoxCeleb1-O: enrol and test utterances (N,), labels (N,), each utterance's speaker."""
    count = random.integers(utterances // 2, utterances + utterances // 2 + 1, size=speakers)
    speaker = np.repeat(np.arange(speakers), count)
    first = np.cumsum(count) - count
    enrol = np.repeat(np.arange(count.sum()), trials)
    own, other = speaker[enrol], (speaker[enrol] + random.integers(1, speakers, size=enrol.size)) % speakers
    same = first[own] + (enrol - first[own] + random.integers(1, count[own])) % count[own]
    test = np.concatenate([same, first[other] + random.integers(count[other])])
    return np.tile(enrol, 2), test, np.repeat([1, 0], enrol.size), speaker


def simulate(random, size, effects, distances):
    """(scores of each system [(N,), ...], labels (N,), enrol speaker (N,), test speaker (N,))."""
    enrol, test, labels, speaker = draw_trials(random, *size)
    a, b = speaker[enrol], speaker[test]
    target = labels == 1

    def normal(variance, *shape):
        """One array per system, as alike as the systems."""
        common = np.sqrt(COMMON) * random.standard_normal(shape)
        return [np.sqrt(variance) * (common + np.sqrt(1 - COMMON) * random.standard_normal(shape)) for _ in distances]

    systems = []
    for distance, speakers, utterances, others, pairs, other_utterances, trial, other_trial in zip(
        distances,
        normal(effects.speaker, size[0]),
        normal(effects.utterance, speaker.size),
        normal(effects.other_speaker, size[0]),
        normal(effects.pair, size[0], size[0]),
        normal(effects.other_utterance, speaker.size),
        normal(1 - effects.speaker - 2 * effects.utterance, labels.size),
        normal(1 - 2 * effects.other_speaker - effects.pair - 2 * effects.other_utterance, labels.size),
    ):
        same = distance + speakers[a] + utterances[enrol] + utterances[test] + trial
        different = others[a] + others[b] + pairs[np.minimum(a, b), np.maximum(a, b)] + other_trial
        different += other_utterances[enrol] + other_utterances[test]
        systems.append(np.where(target, same, different))
    return systems, labels, a, b


def percentiles(drawn):
    return np.quantile(drawn[:, 0], [0.025, 0.975], axis=0)


def coverage(seed, size, effects, eers, simulations, replicates=200):
    """How often (%) each interval holds the truth: {method: (3,)}, and the size of the last list."""
    truth = [true_metrics(distance_of(eer)) for eer in eers]
    held = {"ours": [], "percentile": [], "trials": [], "compare": []}
    for simulation in range(simulations):
        random = np.random.default_rng([seed, simulation])
        (first, second), labels, a, b = simulate(random, size, effects, [distance_of(eer) for eer in eers])
        trials = intervals.WeightedTrials(first, labels, a, b)
        estimate, drawn = intervals._bootstrap([trials], replicates, simulation)
        lone = intervals.WeightedTrials(first, labels, *2 * [np.arange(labels.size)])  # each trial its own speaker
        _, drawn_trials = intervals._bootstrap([lone], replicates // 2, simulation)
        compared = intervals.compare(first, second, labels, a, b, replicates, simulation)
        found = {
            "ours": (*intervals._interval(estimate[0], drawn[:, 0], trials), truth[0]),
            "percentile": (*percentiles(drawn), truth[0]),
            "trials": (*percentiles(drawn_trials), truth[0]),
            "compare": (*np.transpose([(d.low, d.high) for d in compared.values()]), truth[1] - truth[0]),
        }
        for method, (low, high, true) in found.items():
            held[method].append((low <= true) & (true <= high))
    return {method: 100 * np.mean(rows, axis=0) for method, rows in held.items()}, labels.size


def main():
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    cells = [(size, "middling", (eer, eer)) for size in LISTS for eer in (1, 5, 20)]
    cells += [(LISTS[1], effects, (eer, eer)) for effects in ("weak", "strong", "wolves") for eer in (1, 5, 20)]
    cells.append((LISTS[1], "middling", (5, 3.5)))
    cells += [(SHORT, "wolves", (eer, eer)) for eer in (1, 5, 20)]
    methods = "".join(f" | {name:^20}" for name in ("ours", "percentiles", "bootstrap of trials", "difference"))
    print(f"speakers  trials   effects    EER     {methods}")
    for seed, (size, effects, eers) in enumerate(cells):
        held, trials = coverage(seed, size, EFFECTS[effects], eers, simulations)
        figures = "".join(" | " + " ".join(f"{share:6.1f}" for share in row) for row in held.values())
        eer = f"{eers[0]} %" if eers[0] == eers[1] else f"{eers[0]}, {eers[1]} %"
        print(f"{size[0]:8d} {trials:7d}   {effects:9s} {eer:8s} {figures}", flush=True)


if __name__ == "__main__":
    main()
