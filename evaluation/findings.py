"""What an experiment's folder says about it: its results, its scores, and where its errors lie."""

import concurrent.futures
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from corpora.audio import SAMPLE_RATE
from corpora.lists import TrialList
from corpora.pack import Pack
from evaluation.intervals import speakers_of
from evaluation.scoring import VALID, judged
from tools import InputError, are_results, equal_error_rate, progress_bar, read_history

WORST = 20  # so many trials of each kind, and speakers, are named
DURATIONS = np.array([0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, math.inf])  # edges of the bins, seconds


class Row(NamedTuple):
    """A line of the results: what was evaluated, on which list, and the outcome as metrics.jsonl has it.

    ``scored``: whether its scores were written to scores/<name>.txt, as a later evaluation's may have been.
    """

    model: str
    name: str
    result: dict
    scored: bool = False


class Experiment:
    """What an experiment's folder says: ``settings``, ``sha256``, ``versions``, ``command``, ``history``, ``rows``.

    ``rows``: the Rows of the results, list by list; ``headline``: those that the summary goes by, {name: Row}.
    ``chosen``: (record, kind, results) of the model with the lowest EER on held-out training speakers, or None.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        training, evaluation = self._read("settings.json"), self._read("results.json")
        if not training and not evaluation:
            raise InputError(f"{self.folder} has no settings.json and no results.json: it is no experiment's folder")
        self.is_training = bool(training)
        content = training or evaluation
        self.settings = content["settings"]
        self.sha256, self.versions = content.get("sha256", {}), content.get("versions", {})
        self.command = content.get("command", [])
        self.history = read_history(self.folder / "metrics.jsonl") if training else []
        # Both, when a model was evaluated into the folder of its training: lists of either are found.
        self.eval_lists = [*self.settings.get("eval_list", [])]
        if training and evaluation:
            self.eval_lists += evaluation["settings"].get("eval_list", [])
        tested = [record for record in self.history if record["lists"]]
        self.last = tested[-1] if tested else None
        valid = [each for each in judged(self.history) if VALID in each[2]]
        self.chosen = min(valid, key=lambda each: each[2][VALID]["eer"]) if valid else None
        rows = [*self._training_rows(), *self._evaluation_rows(evaluation)]
        self._listings, self._seconds = {}, {}  # of several results on a list it is read once
        # List by list, as they come; those of held-out training speakers last.
        lists = list(dict.fromkeys(self.list_of(row.name) for row in rows))
        names = list(dict.fromkeys(row.name for row in rows))
        self.rows = sorted(rows, key=lambda row: (
            row.name == VALID, lists.index(self.list_of(row.name)), names.index(row.name)
        ))  # fmt: skip
        self.headline = {}
        for row in self.rows:
            if row.model not in self._averages():
                self.headline.setdefault(row.name, row)

    def _read(self, name):
        path = self.folder / name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict) or not is_sound(content):
            raise InputError(f"{path} is not what trainSpeakerNet.py writes: delete it, or name another folder")
        return content

    def _averages(self):
        return self.last.get("averages", {}) if self.last else {}

    def _training_rows(self):
        chosen = self.chosen[:2] if self.chosen else (None, "")
        if self.chosen and chosen != (self.last, "model"):
            name = f"epoch {chosen[0]['epoch']}{'' if chosen[1] == 'model' else f' ({chosen[1]})'}, chosen on {VALID}"
            yield from (Row(name, *item) for item in self.chosen[2].items())
        if self.last:
            also = f", chosen on {VALID}" if chosen == (self.last, "model") else ""
            name = f"epoch {self.last['epoch']}, the last{also}" if self.last["epoch"] else "before training"
            yield from (Row(name, *item, scored=True) for item in self.last["lists"].items())
            for kind, results in self._averages().items():
                if chosen != (self.last, kind):
                    yield from (Row(kind, *item) for item in results.items())

    def _evaluation_rows(self, evaluation):
        if evaluation:
            model = Path(evaluation["settings"].get("initial_model", "")).name or "the model"
            yield from (Row(model, *item, scored=True) for item in evaluation.get("results", {}).items())

    def list_of(self, name):
        """The name of the list that a result ("O", or "O.as_norm" of a back-end) is about."""
        stems = [Path(path).stem for path in self.eval_lists]
        return max((stem for stem in stems if name == stem or name.startswith(f"{stem}.")), key=len, default=name)

    def listing(self, name):
        """The Listing behind a result, unchanged since then. InputError, in one line, if it is not, or absent."""
        paths = {Path(path).stem: path for path in self.eval_lists}
        path = self.folder / "scores" / f"{VALID}_trials.txt" if name == VALID else paths.get(self.list_of(name))
        if not path:
            raise InputError(f"the settings name no trial list for {name}")
        if path not in self._listings:
            self._listings[path] = Listing(path, self.settings.get("train_path" if name == VALID else "eval_path"))
        hashes = {row.result.get("list_sha256") for row in self.rows if row.name == name} - {None}
        if name != VALID and hashes and self._listings[path].trials.sha256 not in hashes:
            raise InputError(f"the trial list {path} has changed since it was evaluated")
        return self._listings[path]

    def seconds(self, root, files):
        """How long audio files under a folder are: (N,) seconds, nan for those that cannot be read."""
        known = self._seconds.setdefault(root, {})
        new = [file for file in dict.fromkeys(files) if file not in known]
        known.update(zip(new, durations(root, new).tolist()))
        return np.array([known[file] for file in files])


def is_sound(content):
    """Whether the parts of settings.json or results.json that are looked at are what they should be."""
    settings, results = content.get("settings"), content.get("results", {})
    return (
        isinstance(settings, dict)
        and isinstance(settings.get("initial_model", ""), str)
        and isinstance(lists := settings.get("eval_list", []), list)
        and all(isinstance(path, str) for path in lists)
        and all(isinstance(content.get(name, {}), dict) for name in ("sha256", "versions"))
        and isinstance(content.get("command", []), list)
        and are_results(results)
    )


class Listing:
    """A trial list and the speakers in it: ``trials``, a TrialList; ``enrol_speaker`` and ``test_speaker`` (N,) numbers
    of ``speakers``, their names; ``root``, where the audio was."""

    def __init__(self, path, root):
        self.trials, self.root = TrialList(path, "the trial list"), root
        self.enrol_speaker, self.test_speaker, count = speakers_of(self.trials)
        self.speakers = speaker_names(self.trials, self.enrol_speaker, self.test_speaker, count)


class ScoredList:
    """The scores of a list, from scores/<name>.txt, made sure to be those of a result on record.

    ``row``: that result; ``listing``: the Listing; ``scores`` and ``label`` (N,); ``eer`` in % and its ``threshold``.
    InputError, in one line, when something is amiss.
    """

    def __init__(self, experiment, name):
        path = experiment.folder / "scores" / f"{name}.txt"
        if not path.exists():
            raise InputError(f"scores/{path.name} is not there")
        self.listing = experiment.listing(name)
        trials = self.listing.trials
        fields = path.read_text(encoding="utf-8", errors="replace").split()
        try:
            self.scores = np.array(fields[0::3], dtype=np.float64)
        except ValueError as error:
            raise InputError(f"scores/{path.name} is damaged: {error}") from error
        if fields[1::3] != trials.enrol or fields[2::3] != trials.test or not np.isfinite(self.scores).all():
            raise InputError(f"scores/{path.name} does not have the trials of {trials.path}, one finite score for each")
        self.label = trials.label
        self.eer, self.threshold = equal_error_rate(self.scores, self.label)
        # The file has 8 decimals: a few pairs of scores that nearly tie may have changed sides.
        scored = [row for row in experiment.rows if row.name == name and row.scored]
        rows = [row for row in scored if abs(row.result["eer"] - self.eer) < 0.01]
        if not rows:
            raise InputError(f"scores/{path.name} has an EER of {self.eer:.2f} %, that of none of the results above")
        self.row = rows[0]

    def by_speaker(self):
        """What tells the speakers of the trials apart, as intervals.py takes it."""
        return self.scores, self.label, self.listing.enrol_speaker, self.listing.test_speaker


def speaker_names(trials, enrol_speaker, test_speaker, count):
    """Names for the speakers 0 to count - 1 of a TrialList: the folder that tells them apart, else an utterance."""
    of = dict(zip([*trials.enrol, *trials.test], np.concatenate([enrol_speaker, test_speaker]).tolist()))
    first = {}
    for file, speaker in of.items():
        first.setdefault(speaker, file)
    parts = {file: file.split("/")[:-1] for file in of}
    for depth in range(max(map(len, parts.values()))):
        folder = {file: "".join(part[depth : depth + 1]) for file, part in parts.items()}
        names = {speaker: folder[file] for speaker, file in first.items()}
        differ = len(set(names.values())) == len(names)
        if differ and all(folder[file] == names[speaker] for file, speaker in of.items()):
            return [names.get(speaker, "") for speaker in range(count)]
    return [first.get(speaker, "") for speaker in range(count)]


# ---- where it goes wrong ---------------------------------------------------------------------------------------------


def worst_trials(scores, label, count=WORST):
    """Positions of the non-targets with the highest and the targets with the lowest scores, worst first."""
    order = np.argsort(scores, kind="stable")
    return order[label[order] == 0][::-1][:count], order[label[order] == 1][:count]


class SpeakerErrors(NamedTuple):
    """How a speaker fares: EER in % at the speaker's own threshold; misses and false alarms in % at the list's."""

    speaker: int
    eer: float
    targets: int
    others: int
    misses: float
    false_alarms: float


def errors_by_speaker(scores, label, enrol_speaker, test_speaker, threshold):
    """SpeakerErrors of those who have trials of both kinds, highest EER first. All but the threshold (N,).

    A speaker's trials are the targets of the speaker, and the non-targets with the speaker on either side.
    """
    target, trial = label == 1, np.arange(len(scores))
    # Each trial once for every speaker in it, sorted by speaker.
    speaker = np.concatenate([enrol_speaker, test_speaker[~target]])
    trial = np.concatenate([trial, trial[~target]])
    order = np.argsort(speaker, kind="stable")
    numbers, starts = np.unique(speaker[order], return_index=True)
    found = []
    for number, own in zip(numbers.tolist(), np.split(trial[order], starts[1:])):
        same = target[own]
        if same.any() and not same.all():
            accepted = scores[own] >= threshold
            found.append(SpeakerErrors(
                number, equal_error_rate(scores[own], same)[0], int(same.sum()), int((~same).sum()),
                100 * float(1 - accepted[same].mean()), 100 * float(accepted[~same].mean()),
            ))  # fmt: skip
    return sorted(found, key=lambda errors: -errors.eer)


def errors_by_duration(scores, label, seconds):
    """EER of trials of like duration: [(from, to, targets, non-targets, EER in % or None)] for bins that hold trials.

    seconds (N,): the shorter side of each trial; nan leaves it out. None when one kind of trial is missing.
    """
    bins = np.searchsorted(DURATIONS, seconds, side="right") - 1
    found = []
    for place, (low, high) in enumerate(zip(DURATIONS[:-1].tolist(), DURATIONS[1:].tolist())):
        own = (bins == place) & ~np.isnan(seconds)
        targets, others = int(np.sum(label[own] == 1)), int(np.sum(label[own] == 0))
        if targets or others:
            eer = equal_error_rate(scores[own], label[own])[0] if targets and others else None
            found.append((low, high, targets, others, eer))
    return found


def durations(root, files):
    """Seconds of audio files under a folder, or in a pack of it, from their headers; nan for the unreadable: (N,)."""
    if (Path(root) / "pack.json").exists():
        pack = Pack(root)
        rows = pack.rows(files)
        length = np.where(rows >= 0, pack.length[rows], 0) / SAMPLE_RATE
        return np.where(length > 0, length, np.nan)

    def seconds(file):
        try:
            return soundfile.info(Path(root) / file).duration
        except (soundfile.LibsndfileError, OSError):
            return math.nan

    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # a network disk answers many questions at once
        found = pool.map(seconds, files)
        return np.array(list(progress_bar(iterable=found, total=len(files), desc="durations", unit="file", delay=2)))
