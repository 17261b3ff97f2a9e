"""torch.hub entry points: use a trained model without installing anything.

    encoder = torch.hub.load(FOLDER, "speaker_encoder", "exps/exp1/model/model_0080.model", source="local")
    encoder = torch.hub.load("OWNER/REPO", "speaker_encoder", "speechbrain/spkrec-ecapa-voxceleb")  # downloads it
    encoder.verify("a.wav", "b.wav")
"""

import sys
from pathlib import Path

dependencies = ["torch", "torchaudio", "soundfile", "scipy", "numpy", "tqdm", "filelock"]

ROOT = Path(__file__).resolve().parent


def _ours(name):
    """Whether a module of this name is in this folder."""
    top = name.partition(".")[0]
    return (ROOT / f"{top}.py").is_file() or (ROOT / top / "__init__.py").is_file()


def speaker_encoder(path, device="auto", system=None):
    """The SpeakerEncoder of a checkpoint or of a published model's name; see SpeakerEncoder.from_checkpoint."""
    # The caller may have its own tools.py or model.py: such modules are set aside while ours are imported.
    theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name) and name != __name__}
    sys.path.insert(0, str(ROOT))
    try:
        from inference.encoder import SpeakerEncoder

        return SpeakerEncoder.from_checkpoint(path, device, system)
    finally:
        sys.path.remove(str(ROOT))
        for name in [name for name in sys.modules if _ours(name) and name != __name__]:
            del sys.modules[name]
        sys.modules.update(theirs)
