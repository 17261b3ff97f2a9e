import math

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error

from loss import AAMsoftmax


def by_definition(embedding, weight, label, m, s):
    """Float64, with the angles themselves."""
    cosine = F.normalize(embedding.double()) @ F.normalize(weight.double()).T
    logits = s * cosine
    for row, target in enumerate(label):
        angle = math.acos(float(cosine[row, target]))
        logits[row, target] = s * (
            math.cos(angle + m) if angle + m < math.pi else math.cos(angle) - m * math.sin(m)
        )
    return F.cross_entropy(logits, label)


def test_golden_vectors_of_the_original_recipe(golden):
    data = golden("taoruijie")
    loss_function = AAMsoftmax(24, m=0.2, s=30)
    loss_function.weight.data = torch.tensor(data["state/speaker_loss.weight"])
    embedding = torch.tensor(data["loss_emb"], requires_grad=True)
    loss, accuracy = loss_function(embedding, torch.tensor(data["loss_label"]))
    loss.backward()
    assert relative_error(loss.detach(), data["loss_value"]) < 1e-5
    assert accuracy.item() == pytest.approx(float(data["loss_prec1"].item()))
    assert relative_error(embedding.grad, data["loss_grad_emb"]) < 1e-5
    assert relative_error(loss_function.weight.grad, data["loss_grad_weight"]) < 1e-5


@pytest.mark.parametrize(("system", "m", "s", "continuous"), [
    ("speechbrain", 0.2, 30, False), ("modelscope", 0.3, 32, True), ("wespeaker", 0.2, 32, True),
    ("pyannote", math.radians(10), 50, False),
])  # fmt: skip
def test_golden_losses_of_other_systems(golden, system, m, s, continuous):
    data = golden(system)
    weight = torch.tensor(data["state/classifier/weight" if system == "speechbrain" else "loss_weight"])
    turned = system == "pyannote"  # whose classes are columns
    weight = weight.t().clone() if turned else weight
    loss_function = AAMsoftmax(*weight.shape[:1], m, s, weight.shape[1], continuous)
    loss_function.weight.data = weight
    embedding = torch.tensor(data["loss_emb"], requires_grad=True)
    loss, _ = loss_function(embedding, torch.tensor(data["loss_label"]))
    loss.backward()
    assert relative_error(loss.detach(), data["loss_value"]) < 1e-5
    assert relative_error(embedding.grad, data["loss_grad_emb"]) < 1e-5
    gradient = loss_function.weight.grad
    assert relative_error(gradient.t() if turned else gradient, data["loss_grad_weight"]) < 1e-5


@pytest.mark.parametrize("m", [0.0, 0.2, 0.5])
def test_against_the_angles(m):
    torch.manual_seed(0)
    loss_function = AAMsoftmax(10, m=m, s=30, embedding_size=4)
    label = torch.arange(10)
    embedding = torch.randn(10, 4)
    embedding[:3] = -loss_function.weight.data[:3] + 0.02 * torch.randn(3, 4)  # beyond pi - m
    assert relative_error(
        loss_function(embedding, label)[0].detach(), by_definition(embedding, loss_function.weight.data, label, m, 30)
    ) < 1e-5


def test_without_margin_it_is_the_softmax_of_cosines():
    loss_function = AAMsoftmax(7, m=0.0, s=12)
    embedding, label = torch.randn(5, 192), torch.tensor([0, 6, 3, 3, 1])
    logits = 12 * F.linear(F.normalize(embedding), F.normalize(loss_function.weight))
    assert torch.allclose(loss_function(embedding, label)[0], F.cross_entropy(logits, label), atol=1e-5)


def test_accuracy_in_percent():
    loss_function = AAMsoftmax(4, embedding_size=4)
    loss_function.weight.data = torch.eye(4)
    embedding = torch.eye(4)[[0, 1, 2, 3, 0]]
    assert loss_function(embedding, torch.tensor([0, 1, 2, 0, 1]))[1].item() == pytest.approx(60.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [1e-12, 1.0, 1e12])
def test_embeddings_on_the_class_vector_have_finite_gradients(sign, level):
    loss_function = AAMsoftmax(5)
    embedding = (sign * level * loss_function.weight.data[:3]).clone().requires_grad_()
    loss, _ = loss_function(embedding, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.isfinite() and embedding.grad.isfinite().all() and loss_function.weight.grad.isfinite().all()


def test_autocast_changes_nothing():
    loss_function = AAMsoftmax(50)
    embedding, label = torch.randn(20, 192), torch.arange(20)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_function(embedding, label)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_function(embedding, label)[0])
