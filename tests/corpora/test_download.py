"""From a download to a trained model by the README's own lines (download.py): every planted fault found and named."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg makes the m4a of the download: install it")
FAULTS, KINDS = 108, 104


@pytest.fixture(scope="module")
def table():
    """[(stage, planted, found by, said)] as the script prints it."""
    script = [sys.executable, ROOT / "tests" / "download.py"]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=1800)
    print(ended.stdout)
    rows = [line.split(" | ", 3) for line in ended.stdout.splitlines() if line.count(" | ") >= 3]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return rows[1:]


def test_every_planted_fault_is_found_and_named(table):
    faults = {(stage, planted) for stage, planted, _, _ in table if planted != "nothing"}
    kinds = {planted for _, planted in faults}
    assert (len(faults), len(kinds)) == (FAULTS, KINDS) and len(kinds) >= 20
    assert not [row for row in table if "FAILED" in row[3] or not row[3].strip()]
    stages = {stage for stage, _ in faults}
    assert stages == {"download", "convert", "MUSAN in pieces", "lists", "training list", "trial list", "audio",
                      "noises, responses", "packs", "training"}  # fmt: skip


def test_all_mended_it_trains(table):
    said = {found_by: words for _, planted, found_by, words in table if planted == "nothing"}
    assert said["python prepareData.py --check --train_list /data/voxceleb2"].startswith("0 errors, 0 warnings")
    assert re.search(r"1 epochs done.*EER on part: [\d.]+% before training, [\d.]+% after epoch 1",
                     said["python trainSpeakerNet.py --save_path exps/exp1"])  # fmt: skip
    assert "1 epochs done" in said["python trainSpeakerNet.py --train_path /data/packs"]
    assert "the same to the bit" in said["packs in place of folders"]
    trained = re.search(r"[\d.]+%(?= after epoch 1)", said["python trainSpeakerNet.py --save_path exps/exp1"])[0]
    assert f"part: EER {trained} " in said["python trainSpeakerNet.py --eval --initial_model exps/exp1"]
