"""A self-contained HTML page about an experiment; the template is evaluation/report.html.

    python -m evaluation.report exps/exp1        # writes exps/exp1/report.html
"""

import argparse
import json
import shlex
from pathlib import Path

import jinja2
import numpy as np

from evaluation.intervals import tells
from evaluation.plots import as_svg, det_figure, training_figure
from evaluation.records import best_on_valid, read_about, read_history, read_scored, results_of
from evaluation.scoring import VALID
from tools import count, equal_error_rate, run_command, whole_file

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
        errors=errors, name_of=lambda path: Path(path).name, count=count, dumps=json.dumps, tells=tells,
    )  # fmt: skip
    with whole_file(folder / "report.html") as file:
        file.write(page.encode("utf-8", "backslashreplace"))  # a file name may be invalid UTF-8
    return folder / "report.html"


def collect_results(history, about):
    """{list name: [{"model", "result", "is_scored"}, ...]} of the best model, the last, its averages; or of an --eval.

    is_scored: whether scores/<name>.txt is of this model.
    """
    found = {}

    def add(model, results, is_scored):
        for name, result in results.items():
            found.setdefault(name, []).append({"model": model, "result": result, "is_scored": is_scored})

    if "results" in about:
        add(Path(about["settings"]["initial_model"]).name, about["results"], True)
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
