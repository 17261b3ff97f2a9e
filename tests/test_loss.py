import math

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error

from loss import AAMsoftmax


def by_definition(embedding, weight, label, m, s, continuous=False, top_k=0, penalty=0.0):
    """Float64, utterance by utterance and class by class, with the angles themselves; can be differentiated."""
    embedding, weight = F.normalize(embedding.double()), F.normalize(weight.double(), dim=-1)
    weight = weight.unsqueeze(1) if weight.dim() == 2 else weight
    rows = []
    for vector, target in zip(embedding, label.tolist()):
        cosine = [max(vector @ centre for centre in centres) for centres in weight]
        logits = list(cosine)
        angle = torch.acos(cosine[target])
        if angle + m < math.pi:
            logits[target] = torch.cos(angle + m)
        else:
            logits[target] = cosine[target] - (1 - math.cos(m) if continuous else m * math.sin(m))
        wrong = sorted((each for each in range(len(weight)) if each != target), key=lambda each: -cosine[each])
        for each in wrong[:top_k]:
            angle = torch.acos(cosine[each])
            logits[each] = torch.cos(angle - penalty) if angle > penalty else cosine[each] + 1 - math.cos(penalty)
        rows.append(s * torch.stack(logits))
    return F.cross_entropy(torch.stack(rows), label)


@pytest.mark.parametrize(("system", "m", "s", "continuous"), [
    ("taoruijie", 0.2, 30, False), ("speechbrain", 0.2, 30, False), ("modelscope", 0.3, 32, True),
    ("wespeaker", 0.2, 32, True), ("pyannote", math.radians(10), 50, False),
])  # fmt: skip
def test_golden_losses(golden, system, m, s, continuous):
    data = golden(system)
    names = {"taoruijie": "state/speaker_loss.weight", "speechbrain": "state/classifier/weight"}
    weight, gradient = torch.tensor(data[names.get(system, "loss_weight")]), torch.tensor(data["loss_grad_weight"])
    if system == "pyannote":  # its classes are columns
        weight, gradient = weight.t().clone(), gradient.t()
    loss_function = AAMsoftmax(len(weight), m, s, weight.shape[1], continuous)
    loss_function.weight.data = weight
    embedding = torch.tensor(data["loss_emb"], requires_grad=True)
    loss, accuracy = loss_function(embedding, torch.tensor(data["loss_label"]))
    loss.backward()
    assert relative_error(loss.detach(), data["loss_value"]) < 1e-5
    assert relative_error(embedding.grad, data["loss_grad_emb"]) < 1e-5
    assert relative_error(loss_function.weight.grad, gradient) < 1e-5
    assert system != "taoruijie" or accuracy.item() == pytest.approx(data["loss_prec1"].item())


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, None])
@pytest.mark.parametrize(("sub_centres", "top_k"), [(1, 0), (3, 0), (1, 2), (2, 5), (3, 100)])
@pytest.mark.parametrize("continuous", [False, True])
def test_every_option_and_its_gradients_against_the_angles(margin, sub_centres, top_k, continuous):
    torch.manual_seed(sub_centres)
    loss_function = AAMsoftmax(9, 0.5, 20, 4, continuous, sub_centres, top_k)
    weight = loss_function.weight.detach().clone().requires_grad_()
    last_centre = weight.data.view(9, sub_centres, 4)[:, -1]
    embedding, label = torch.randn(30, 4), torch.arange(30) % 9
    embedding[:5] = -last_centre[:5] + 0.05 * torch.randn(5, 4)  # beyond pi - margin, unless another centre is nearer
    for row in range(5, 20):  # on a wrong class, nearly or quite: within the penalty and without
        embedding[row] = last_centre[label[row] - 1] + 0.004 * (row - 4) * F.normalize(torch.randn(4), dim=0)
    if sub_centres == 1:
        angle = torch.acos(F.normalize(embedding.double()) @ F.normalize(last_centre.double()).T)
        assert (angle[range(5), label[:5]] > math.pi - 0.1).any()
        assert (angle < 0.012).any() and ((angle > 0.012) & (angle < 0.06)).any()
    ours, theirs = embedding.clone().requires_grad_(), embedding.clone().requires_grad_()

    loss = loss_function(ours, label, None if margin is None else torch.tensor(margin))[0]
    m = 0.5 if margin is None else margin
    expected = by_definition(theirs, weight, label, m, 20, continuous, top_k, 0.06 * m / 0.5)
    loss.backward()
    expected.backward()
    assert relative_error(loss.detach(), expected.detach()) < 1e-5
    assert relative_error(ours.grad, theirs.grad) < 1e-4
    assert relative_error(loss_function.weight.grad, weight.grad) < 1e-4


def test_a_rising_margin_is_compiled_once():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    loss_function = AAMsoftmax(12, sub_centres=2, top_k=3)
    compiled = torch.compile(loss_function, backend=backend, fullgraph=True)
    embedding, label = torch.randn(8, 192), torch.arange(8)
    for margin in torch.tensor([0.0, 0.05, 0.1, 0.2]):
        expected = loss_function(embedding, label, margin)[0]
        assert torch.equal(compiled(embedding, label, margin)[0], expected)
        assert loss_function(embedding, label, margin.item())[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(graphs) == 1


def test_class_vectors_begin_equally_long_whatever_their_number():
    for sub_centres in (1, 3):
        weight = AAMsoftmax(3000, embedding_size=200, sub_centres=sub_centres).weight
        assert weight.shape == ((3000, 200) if sub_centres == 1 else (3000, 3, 200))
        assert weight.std().item() == pytest.approx(math.sqrt(2 / 3200), rel=0.01)  # Glorot and Bengio 2010, eq. 12


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("sub_centres", "top_k"), [(1, 0), (3, 2)])
def test_embeddings_on_a_class_vector_have_finite_gradients(sign, level, sub_centres, top_k):
    loss_function = AAMsoftmax(5, sub_centres=sub_centres, top_k=top_k)
    embedding = (sign * level * loss_function.weight.data.view(-1, 192)[:3]).clone().requires_grad_()
    loss, _ = loss_function(embedding, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.isfinite() and embedding.grad.isfinite().all() and loss_function.weight.grad.isfinite().all()


@pytest.mark.parametrize(("sub_centres", "top_k"), [(1, 0), (3, 5)])
def test_autocast_changes_nothing(sub_centres, top_k):
    loss_function = AAMsoftmax(50, sub_centres=sub_centres, top_k=top_k)
    embedding, label = torch.randn(20, 192), torch.arange(20)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_function(embedding, label)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_function(embedding, label)[0])
