"""Export of a model to ONNX: waveform in, embedding out. Called by ``verify.py --export``."""

import copy
import io
import warnings

import torch

from inference.filterbanks import ExportableFilterbank
from model import SAMPLE_RATE, LogMel
from tools import InputError, RunError, whole_file


def export_onnx(encoder, path):
    """Write a SpeakerEncoder's network as ONNX and check it in onnxruntime; returns a line that describes the file.

    Input ``waveform`` (batch, samples), float32 in [-1, 1] at 16 kHz, with the minimum length that the line states;
    output ``embedding`` (batch, D); the metadata have the threshold for cosines of embeddings. InputError when the
    packages are not installed, RunError when onnxruntime gives other embeddings.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"--export needs two more packages: pip install onnx onnxruntime ({error})") from error
    network = copy.deepcopy(encoder.network).cpu().eval()
    if isinstance(getattr(network, "torchfbank", None), LogMel):
        network.torchfbank = ExportableFilterbank(network.torchfbank)
    exported = torch.nn.Sequential(network)  # hides the other arguments of forward, which would become inputs
    shortest, buffer, random = encoder.system.shortest, io.BytesIO(), torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, not for users
        torch.onnx.export(
            exported, (0.1 * torch.randn(2, 2 * shortest, generator=random),), buffer, dynamo=False, opset_version=17,
            input_names=["waveform"], output_names=["embedding"],
            dynamic_axes={"waveform": {0: "batch", 1: "samples"}, "embedding": {0: "batch"}},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, samples in ((1, shortest), (3, 16000 + shortest), (1, 100_000)):
        waveform = 0.1 * torch.randn(batch, samples, generator=random)
        expected = encoder.embed_batch(waveform)
        found = torch.from_numpy(session.run(None, {"waveform": waveform.numpy()})[0])
        worst = max(worst, float((found - expected).norm() / expected.norm()))
    if not worst < 1e-4:
        raise RunError(f"onnxruntime gives other embeddings (relative error {worst:.1e}): nothing written")
    model, threshold = onnx.load_from_string(buffer.getvalue()), encoder.cosine_threshold
    about = {
        "system": encoder.system.title, "fingerprint": encoder.fingerprint(), "sample_rate": SAMPLE_RATE,
        "min_samples": shortest, "cosine_threshold": "none" if threshold is None else threshold,
    }  # fmt: skip
    onnx.helper.set_model_props(model, {key: str(value) for key, value in about.items()})
    with whole_file(path) as file:
        file.write(model.SerializeToString())
    return (
        f"{path}: waveform (batch, samples >= {shortest}) -> embedding (batch, {network.embedding_size}); relative "
        f"difference in onnxruntime at three other lengths: {worst:.1e} at most"
    )
