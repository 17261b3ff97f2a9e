"""docs/use.ipynb: its outputs are committed; it runs and prints what is right."""

import re

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import ROOT, make_corpus
from test_encoder import save_model
from test_model import small_network, standardised

from verify import SpeakerEncoder

TEXT = (ROOT / "docs" / "use.ipynb").read_text(encoding="utf-8")


def test_outputs_are_committed():
    assert len(TEXT) < 250_000 and TEXT.count('"image/png"') == 5 and '"error"' not in TEXT and '"stderr"' not in TEXT
    assert not re.search(r'[/\\](home|root|tmp|work|Users)[/\\]|"execution":|"execution_count": null', TEXT)


@pytest.mark.slow
def test_it_prints_what_is_right(tmp_path):
    wav = make_corpus(tmp_path) / "train"
    for speaker in (tmp_path / "eval").iterdir():
        speaker.rename(wav / speaker.name)
    save_model(tmp_path / "x.model", standardised(small_network()), thresholds={"EER": 0.905})
    text = TEXT.replace("exps/demo/model/model_0008.model", f"{tmp_path}/x.model")
    text = text.replace("exps/demo/corpus/eval/wav", f"{wav}").replace("exps/demo/corpus", f"{tmp_path}")
    page = nbclient.execute(nbformat.reads(text, 4), cwd=str(ROOT / "docs"), timeout=300)
    printed = "".join(output.get("text", "") for cell in page.cells for output in cell.get("outputs", []))
    score = SpeakerEncoder.from_checkpoint(tmp_path / "x.model").scoring_vectors
    vectors = score(sorted(wav.rglob("*.wav"))).reshape(10, 4, -1)  # speakers, recordings
    means = np.einsum("qd,std->qs", vectors[:8, 3], vectors[:6, :3]) / 3  # of scores with a speaker's enrolled files
    expected = [*(vectors[:2, 3] @ vectors[0, 0]), *means.max(axis=1)]
    found = re.findall(r"(?:^score|closest id0000(\d),) (\d\.\d+)(?:, threshold 0.905,| ->) (\w+)", printed, re.M)
    assert [float(score) for _, score, _ in found] == pytest.approx(expected, abs=6e-4)
    assert [word not in ("different", "nobody") for *_, word in found] == [score >= 0.905 for score in expected]
    assert [int(closest) for closest, *_ in found[2:]] == means.argmax(axis=1).tolist()
