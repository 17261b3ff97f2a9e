"""torch.hub: a caller with modules of the same names keeps them."""

import subprocess
import sys

import published
import torch
from conftest import ROOT, voice

CALLER = """
import sys
sys.path.insert(0, {folder!r})
import torch, tools
encoder = torch.hub.load({root!r}, "speaker_encoder", {model!r}, device="cpu", source="local")
import tools as again
assert again is tools and tools.MINE == 1
assert not any(name in sys.modules for name in ("model", "inference", "corpora.audio"))
assert encoder.embed({audio!r}).shape == (192,) and len(encoder.embed_windows({audio!r}, 1, 0.5)[0]) == 3
print(encoder.verify({audio!r}, {audio!r}).score)
"""


def test_the_callers_modules_stay(tmp_path):
    import soundfile

    (tmp_path / "tools.py").write_text("MINE = 1\n")
    torch.save(published.random_state(published.taoruijie_shapes(8, 5)), tmp_path / "pretrain.model")
    soundfile.write(tmp_path / "a.wav", voice(120, 2.0, 0), 16000)
    files = {name: str(tmp_path / file) for name, file in (("model", "pretrain.model"), ("audio", "a.wav"))}
    script = CALLER.format(folder=str(tmp_path), root=str(ROOT), **files)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout) - 1) < 1e-5
