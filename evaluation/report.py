"""A self-contained HTML page about an experiment; the template is evaluation/report.html.

    python -m evaluation.report exps/exp1        # writes exps/exp1/report.html
"""

import argparse
import json
import os
import shlex
from pathlib import Path

import jinja2
import numpy as np

from corpora.lists import TrialList
from evaluation.intervals import tells
from evaluation.plots import as_svg, det_figure, training_figure
from evaluation.records import best_on_valid, read_history, results_of
from evaluation.scoring import VALID, read_scores
from tools import InputError, count, equal_error_rate, run_command, whole_file

WORST = 20  # number of trials of each class in the tables


def write_report(folder):
    """Write report.html into the folder of an experiment; returns its path.

    folder: --save_path of a training (settings.json, metrics.jsonl) or an --eval (results.json), with its scores. The
    paths of trial lists are those in the settings; the page says which are missing or have changed since.
    InputError if the folder contains no experiment.
    """
    folder = Path(folder)
    about = read_about(folder)
    history = [] if "results" in about else read_history(folder / "metrics.jsonl")
    results = collect_results(history, about)
    scored, errors = read_scored(folder, results, about["settings"])
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    curves = {name: (scores, trials.label) for name, (_, trials, scores) in scored.items()}
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.html").render(
        title=folder.resolve().name, about=about, command=shlex.join(about["command"]), history=history,
        results=results, lists={name: describe_list(*each) for name, each in scored.items()},
        training=as_svg(training_figure(history)) if history else "", det=as_svg(det_figure(curves)) if curves else "",
        main=[name for name in results if not any(name.startswith(f"{other}.") for other in results)],
        errors=errors, basename=os.path.basename, count=count, dumps=json.dumps, tells=tells,
    )  # fmt: skip
    with whole_file(folder / "report.html") as file:
        file.write(page.encode("utf-8", "backslashreplace"))  # a file name may be invalid UTF-8
    return folder / "report.html"


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


def collect_results(history, about):
    """{list name: [{"model", "result", "is_scored"}, ...]} of the best model, the last, its averages; or of an --eval.

    is_scored: whether scores/<name>.txt is of this model.
    """
    found = {}

    def add(model, results, is_scored):
        for name, result in results.items():
            found.setdefault(name, []).append({"model": model, "result": result, "is_scored": is_scored})

    if "results" in about:
        add(os.path.basename(about["settings"]["initial_model"]), about["results"], True)
    tested = [record for record in history if record["lists"]]
    chosen = best_on_valid(history)
    models, best = ([chosen], chosen[2]) if chosen else ([], None)
    for record in tested[-1:]:
        models += [(record, kind, results) for kind, results in results_of(record).items() if results is not best]
    for record, kind, results in models:
        model = f"epoch {record['epoch']}" if record["epoch"] else "before training"
        model += f" ({kind})" * (kind != "model") + ", the last" * (record is tested[-1])
        add(model + f", best on {VALID}" * (results is best), results, results is tested[-1]["lists"])
    return found


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


def describe_list(model, trials, scores):
    """The error rate and the worst trials of a scored list, for the template."""
    (eer, threshold), order = equal_error_rate(scores, trials.label), np.argsort(scores, kind="stable")
    worst = order[trials.label[order] == 0][::-1][:WORST], order[trials.label[order] == 1][:WORST]
    fields = scores, trials.line_numbers, trials.enrol, trials.test
    worst = [[[each[i] for each in fields] for i in kind] for kind in worst]
    return {"model": model, "eer": eer, "threshold": threshold, "worst": worst}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="--save_path of a training or an --eval")
    print(write_report(parser.parse_args().folder))


if __name__ == "__main__":
    run_command(main)
