"""From a download to a trained model with the commands of the documentation."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from make_download import Site, make_download

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg makes the m4a of the download: install it"),
]
DOCUMENTATION = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"]  # where the commands are read
SMALL = ["--C", "8", "--num_frames", "60", "--batch_size", "4", "--max_epoch", "1", "--bank_mb", "5", "--device", "cpu",
         "--amp", "off", "--n_cpu", "1"]  # fmt: skip
PREPARE = ["python prepareData.py --download lists", "python prepareData.py --download voxceleb1",
           "python prepareData.py --unpack downloads", "python prepareData.py --convert /data",
           "python prepareData.py --lists /data", "python prepareData.py --check --train_list /data"]  # fmt: skip


def documented(begin):
    """The first command in the documentation that begins so."""
    text = "\n".join(path.read_text() for path in DOCUMENTATION)
    blocks = re.findall(r"```bash\n(.*?)```", re.sub(r"\\\n\s*", "", text), re.DOTALL)
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines() if line.startswith(begin)]
    assert lines, f"the documentation has no command that begins with {begin}"
    return lines[0]


class Walk:
    """A folder with downloads/ and what becomes of it in data/, and the site that it comes from."""

    def __init__(self, home):
        self.home, self.data = home, home / "data"
        self.site = Site(make_download())
        self.data_flags = {"--train_list": self.data / "voxceleb2/train_list.txt",
                           "--train_path": self.data / "voxceleb2/wav", "--eval_list": home / "part.txt",
                           "--eval_path": self.data / "voxceleb1/wav", "--musan_path": self.data / "musan",
                           "--rir_path": self.data / "RIRS_NOISES/simulated_rirs"}  # fmt: skip

    def run(self, begin, *flags):
        """A documented command, in our folders and with more flags, has to end well -> what it printed."""
        line = documented(begin).replace("model_0080", "model_0001").replace("python ", f"{sys.executable} ", 1)
        line = re.sub(r"(?<![\w/])/?(data|downloads|exps)(?![\w.])", rf"{self.home}/\1", line)
        command = shlex.split(line) + [str(flag) for flag in flags]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300,
                               env={**os.environ, "VOXCELEB_PASSWORD": "secret"})  # fmt: skip
        assert ended.returncode == 0, f"{shlex.join(command)}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def some(self, *names):
        return [word for name in names for word in (f"--{name}", self.data_flags[f"--{name}"])]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The download, prepared by the documented commands: what each of them has to say is looked up here."""
    walk = Walk(tmp_path_factory.mktemp("walk"))
    free, voxceleb, unpack, convert, lists, check = PREPARE
    assert "8 files, 8 of them new" in walk.run(free, "--any_md5", "--from", walk.site.url)
    assert "13 files, 13 of them new" in walk.run(voxceleb, "--any_md5", "--from", walk.site.url)
    assert "534 files" in walk.run(unpack, "--any_md5")
    assert "32 files written" in walk.run(convert)
    assert "train_list.txt: 32 utterances of 8 speakers" in walk.run(lists)
    said = walk.run(check, "full")
    assert "veri_test2.txt" in said and "it is Vox1-O cleaned" in said and "0 errors, 0 warnings" in said
    lines = (walk.data / "voxceleb1/veri_test2.txt").read_text().splitlines(keepends=True)
    (walk.home / "part.txt").write_text("".join(line for line in lines if line.count("/00001.wav") == 2))
    return walk


def test_it_trains_from_files_and_from_packs_alike_and_evaluates(walk):
    everything = walk.some("train_list", "train_path", "eval_list", "eval_path", "musan_path", "rir_path")
    said = walk.run("python trainSpeakerNet.py --save_path exps/exp1", *everything, *SMALL)
    assert "1 epoch done" in said and "EER" in said
    assert "32 files" in walk.run("python prepareData.py --pack /data/packs/vox2 ")
    walk.run("python trainSpeakerNet.py --train_path /data/packs", *walk.some("train_list", "musan_path", "rir_path"),
             "--eval_list", "--save_path", walk.home / "exps/packs", *SMALL)  # fmt: skip
    one, other = (torch.load(walk.home / "exps" / name / "model/model_0001.model", weights_only=True)["weights"]
                  for name in ("exp1", "packs"))  # fmt: skip
    assert one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())
    last = json.loads((walk.home / "exps/exp1/metrics.jsonl").read_text().splitlines()[-1])
    said = walk.run("python trainSpeakerNet.py --eval --initial_model exps/exp1", "--eval_list", walk.home / "part.txt",
                    "--device", "cpu", "--save_path", walk.home / "exps/eval")  # fmt: skip
    assert f"part: EER {last['lists']['part']['eer']:.2f}% " in said
