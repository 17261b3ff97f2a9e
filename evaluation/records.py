"""The records of a run: metrics.jsonl, from which score.txt, plots and what trackers show are made; reading them."""

import json
import math
from pathlib import Path

from corpora.lists import TrialList
from evaluation.plots import save_png, training_figure
from evaluation.scoring import VALID, read_scores
from tools import InputError, equal_error_rate, rank, read_text, write_text


class Records:
    """The epochs of a run, [{"epoch", "loss", ..., "lists": results, "averages": {kind: results}}], and their files.

    InputError if the folder has records but no training state to ``resume``.
    """

    def __init__(self, folder, resumed):
        self.folder = Path(folder)
        self.history, self.trackers = read_history(self.folder / "metrics.jsonl"), []
        if self.history and not resumed:
            raise InputError(f"--save_path {folder} has results of a run but no state.pt to resume: choose another")

    def begin(self, about, trial_sets, open_trackers):
        """Write settings.json and the trials of held-out speakers; open_trackers: function (folder, settings)."""
        if rank() == 0:
            write_text(self.folder / "settings.json", json.dumps(about, indent=2) + "\n")
            if VALID in trial_sets:
                write_text(trial_sets[VALID].trials.path, trial_sets[VALID].trials.text())
            self.trackers = open_trackers(self.folder, about["settings"])

    def epochs(self):
        return {record["epoch"] for record in self.history}

    def require(self, lists):
        """InputError for a trial list, of {path: SHA-256}, on which the last epoch was not evaluated."""
        known = {result["list_sha256"] for result in self.history[-1]["lists"].values()}
        for path in (path for path, sha256 in lists.items() if sha256 not in known):
            raise InputError(f"{self.folder} is finished, without --eval_list {path}: evaluate its model with --eval")

    def add(self, summary, results):
        """Add an epoch: the meter's summary and {kind: evaluation results}, kind "model" or "average".

        metrics.jsonl counts: once an epoch is in there, a resumed run will not evaluate it again.
        """
        averages = {kind: each for kind, each in results.items() if kind != "model"}
        record = {**summary, "lists": results.get("model", {}), **({"averages": averages} if averages else {})}
        self.history.append(record)
        if rank() == 0:
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in self.history))
            write_text(self.folder / "score.txt", "".join(score_lines(self.history)))
            save_png(training_figure(self.history), self.folder / "training.png")
            for track in self.trackers:
                track(record)

    def summary(self):
        """How the EER of the first list developed, in words; "" if it was never evaluated."""
        name = next((name for record in self.history[-1:] for name in record["lists"]), None)
        eers = {record["epoch"]: record["lists"][name]["eer"] for record in self.history if name in record["lists"]}
        untrained = eers.pop(0, None)
        if not eers:
            return ""
        before = "" if untrained is None else f"{untrained:.2f}% before training, "
        averages = self.history[-1].get("averages", {})
        mean = "".join(f", average {each[name]['eer']:.2f}%" for each in averages.values())
        chosen, best = "", best_on_valid(self.history)
        if best and name in best[2]:
            record, kind, results = best
            average = " (average)" if kind == "average" else ""
            chosen = f"; best on held-out speakers: epoch {record['epoch']}{average}, {results[name]['eer']:.2f}%"
        return f". EER on {name}: {before}{eers[max(eers)]:.2f}% after epoch {max(eers)}{mean}{chosen}"


def score_lines(history):
    """The lines of score.txt, one per evaluation; the EER is that of the first list, with its 95 % interval."""
    lowest = {}
    for record in (record for record in history if record["lists"] and record["epoch"] > 0):
        name, result = next(iter(record["lists"].items()))
        lowest[name] = min(lowest.get(name, math.inf), result["eer"])
        low, high = result["interval"]["eer"]
        yield (
            f"{record['epoch']} epoch, LR {record['learning_rate']:.6f}, LOSS {record['loss']:.3f}, "
            f"ACC {record['accuracy']:.2f}%, EER {result['eer']:.2f}%, bestEER {lowest[name]:.2f}%, "
            f"minDCF(0.05) {result['min_dcf_0.05']:.4f}, minDCF(0.01) {result['min_dcf_0.01']:.4f}, "
            f"EER95 {low:.2f}-{high:.2f}%, TRIALS {result['trials']}, LIST {result['list_sha256'][:8]}\n"
        )


def read_history(path):
    """The records of a metrics.jsonl, [] if it does not exist."""
    lines = read_text(path).splitlines() if Path(path).exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is damaged, or not the metrics.jsonl of a run") from error


def results_of(record):
    """{kind: results} of the model of an epoch and of averages that end with it."""
    return {"model": record["lists"], **record.get("averages", {})}


def best_on_valid(history):
    """(record, kind, results) of the model with the lowest EER on the held-out speakers; None without any.

    Fine-tuning may make a model worse: epoch 0, the --initial_model, is one of those to choose from.
    """
    trained = [record for record in history if record["epoch"] > 0 or record.get("initial_model")]
    models = [(record, *each) for record in trained for each in results_of(record).items() if VALID in each[1]]
    return min(models, key=lambda model: model[2][VALID]["eer"], default=None)


def read_about(folder):
    """The content of the settings.json of a training, or of the results.json of an --eval. InputError."""
    found = [folder / name for name in ("settings.json", "results.json") if (folder / name).exists()]
    if not found:
        raise InputError(f"{folder} has no settings.json and no results.json: it is not the folder of an experiment")
    return json.loads(found[0].read_text(encoding="utf-8"))


def scores_of(encoder, path):
    """(list name, results, scores (N,), labels (N,)) of the first trial list on which an encoder was evaluated.

    path: the folder of a training or an --eval, or a model of the training. InputError if its scores are not there.
    """
    folder = path if path.is_dir() else path.parent.parent
    about = read_about(folder)
    own, names = encoder.fingerprint(), {VALID, *(Path(path).stem for path in about["settings"]["eval_list"])}
    results = about.get("results", encoder.results) if about.get("model", own) == own else {}
    rows = {name: [{"model": "", "result": results[name], "is_scored": True}] for name in results if name in names}
    for name, (_, trials, scores) in read_scored(folder, rows, about["settings"])[0].items():
        if abs(equal_error_rate(scores, trials.label)[0] - results[name]["eer"]) < 1e-3:  # not of another epoch
            return name, results[name], scores, trials.label
    raise InputError(f"{folder} has no scores of this model, or their trial list is no longer there")


def read_scored(folder, results, settings):
    """({name: (model, TrialList, scores)}, {name: InputError}) of all lists with results."""
    lists = {Path(path).stem: path for path in settings["eval_list"]}
    lists[VALID] = folder / "scores" / f"{VALID}_trials.txt"
    opened, scored, errors = {}, {}, {}
    for name, rows in results.items():
        try:
            stem = max((stem for stem in lists if f"{name}.".startswith(f"{stem}.")), key=len)  # also <list>.as_norm
            trials = opened[stem] = opened.get(stem) or TrialList(lists[stem], "the trial list")
            scores = read_scores(folder / "scores" / f"{name}.txt", trials)
            row = next((row for row in rows if row["is_scored"]), rows[0])
            if row["result"].get("list_sha256") != trials.sha256:
                raise InputError(f"{trials.path} has changed since it was evaluated")
            scored[name] = row["model"], trials, scores
        except InputError as error:
            errors[name] = error
    return scored, errors
