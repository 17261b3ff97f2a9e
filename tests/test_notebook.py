"""docs/use.ipynb: its outputs are committed; it runs and prints what is right."""

import re
import shutil

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import ROOT
from test_encoder import save_model, small_network

from verify import SpeakerEncoder

TEXT = (ROOT / "docs" / "use.ipynb").read_text(encoding="utf-8")


def test_outputs_are_committed():
    cells = [cell for cell in nbformat.reads(TEXT, 4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(TEXT) < 250_000 and not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", TEXT)
    assert all(cell.execution_count and "execution" not in cell.metadata for cell in cells)  # run, without times
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)


@pytest.mark.slow
def test_it_prints_what_is_right(corpus, tmp_path):
    page, model, wav = nbformat.reads(TEXT, 4), str(tmp_path / "x.model"), tmp_path / "wav"
    shutil.copytree(corpus / "train", wav)
    shutil.copytree(corpus / "eval", wav, dirs_exist_ok=True)
    save_model(model, small_network(), thresholds={"EER": 0.99})
    (settings,) = (cell for cell in page.cells if "parameters" in cell.metadata.get("tags", []))
    settings.source = f"MODEL, FOLDER, TRIALS = {[model, str(wav), str(corpus / 'trials.txt')]}"
    nbclient.execute(page, cwd=str(ROOT / "docs"), timeout=300)
    printed = "".join(output.get("text", "") for cell in page.cells for output in cell.get("outputs", []))
    each = map(SpeakerEncoder.from_checkpoint(model).scoring_vectors, zip(sorted(wav.rglob("*.wav"))))
    vectors = np.concatenate([*each]).reshape(10, 4, -1)  # speakers, recordings
    means = np.einsum("qd,std->qs", vectors[:8, 3], vectors[:6, :3]) / 3  # of scores with a speaker's enrolled files
    expected = [*(vectors[:2, 3] @ vectors[0, 0]), *means.max(axis=1)]
    found = re.findall(r"(?:^score|closest id0000(\d),) (\d\.\d+)(?:, threshold 0.990,| ->) (\w+)", printed, re.M)
    assert [float(score) for _, score, _ in found] == pytest.approx(expected, abs=6e-4)
    assert [word not in ("different", "nobody") for *_, word in found] == [score >= 0.99 for score in expected]
    assert [int(closest) for closest, *_ in found[2:]] == means.argmax(axis=1).tolist()
