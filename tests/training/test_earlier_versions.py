"""Models and states of the version before the files moved into rooms (commit dbb4b68) load and continue."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, data_flags, run_script

BEFORE = "dbb4b68"
FLAGS = ["--C", 8, "--num_frames", 60, "--batch_size", 8, "--n_cpu", 1, "--device", "cpu", "--amp", "off"]


@pytest.mark.slow
def test_an_earlier_run_continues_as_its_own_version_would(corpus, tmp_path):
    clone = tmp_path / "before"
    made = subprocess.run(["git", "worktree", "add", "--detach", clone, BEFORE], cwd=ROOT, capture_output=True)
    if made.returncode:
        pytest.skip(f"commit {BEFORE} is not here: {made.stderr.decode().strip()}")
    try:
        flags = [*data_flags(corpus), *FLAGS, "--seed", 5]
        for epochs in (1, 2):
            command = ["trainSpeakerNet.py", *flags, "--max_epoch", epochs, "--save_path", tmp_path / f"e{epochs}"]
            subprocess.run(
                [sys.executable, *map(str, command)], cwd=clone, check=True, capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", clone], cwd=ROOT, check=True)
    run_script(*flags, "--max_epoch", 2, "--save_path", tmp_path / "e1")  # continues with this version
    ours, theirs = (
        torch.load(tmp_path / name / "model/model_0002.model", weights_only=True)["weights"] for name in ("e1", "e2")
    )
    assert ours.keys() == theirs.keys()
    records = ((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("e1", "e2"))
    ours, theirs = map(json.loads, records)
    # Not to the bit: the front end rounds otherwise since, and Adam makes much of the rounding of gradients that are 0.
    assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    evaluation = ["--eval", "--initial_model", tmp_path / "e2/model/model_0002.model", "--save_path", tmp_path / "eval"]
    run_script(*evaluation, *data_flags(corpus), "--device", "cpu")
    last = json.loads((tmp_path / "e2/metrics.jsonl").read_text().splitlines()[-1])["lists"]["trials"]
    found = json.loads((tmp_path / "eval/results.json").read_text())["results"]["trials"]
    assert found["eer"] == pytest.approx(last["eer"]) and found["trials"] == last["trials"]
    assert found["thresholds"]["EER"] == pytest.approx(last["thresholds"]["EER"], abs=1e-4)
