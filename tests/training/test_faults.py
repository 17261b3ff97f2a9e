"""What machines and people do to a training run (faults.py, with 10 kills); and the parts of its defence, alone."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from tools import InputError, RunError, save_tensors
from training import state
from training.settings import OPTIMIZERS, make_optimizer, take_step

FAULTS = ["kills", "torn_states", "two_runs", "full_disk", "read_only_disk", "another_disk", "spoilt_data", "odd_clock",
          "no_network", "bad_steps"]  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """{fault: its row of the table, (how often, what happened, ...)}."""
    script = [sys.executable, ROOT / "tests" / "studies" / "faults.py", "--kills", "10"]
    found = subprocess.run(script, capture_output=True, text=True, timeout=1800)
    print(found.stdout)
    rows = [line.split(" | ") for line in found.stdout.splitlines() if " | " in line]
    rows = {row[0]: row[2:] for row in rows}
    assert rows.keys() == set(FAULTS), found.stdout + found.stderr
    return rows


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_but_the_work_since_the_last_state(rows, fault):
    often, happened = rows[fault][:2]
    if happened.startswith("not tried"):
        pytest.skip(happened)
    assert often != "FAILED", happened
    assert int(often) >= (10 if fault == "kills" else 1)


# ---- steps that are skipped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("spoilt_at", [0, 2])
def test_a_step_that_is_skipped_leaves_no_trace(name, spoilt_at):
    """The weights are those of a run in which that step never was, the first one included."""
    args = SimpleNamespace(optimizer=name, lr=0.1, weight_decay=0.01)
    gradients = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))

    def weights_after(steps):
        weight = torch.nn.Parameter(torch.ones(3, 4))
        optimizer = make_optimizer(args, [weight], torch.device("cpu"))
        for step in steps:
            weight.grad = gradients[step] if step is not None else torch.full((3, 4), math.nan)
            before = weight.detach().clone()
            take_step(optimizer, torch.tensor(float(step is None)))
            assert torch.equal(before, weight) == (step is None)
        return weight.detach()

    disturbed = [*range(spoilt_at), None, *range(spoilt_at, 5)]
    assert torch.equal(weights_after(disturbed), weights_after(range(5)))


def test_momentum_that_is_there_from_the_beginning_is_that_of_torch():
    """make_optimizer fills in zeros, where torch would begin with the first gradient: the same."""
    weights = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    ours = make_optimizer(SimpleNamespace(optimizer="sgd", lr=0.1, weight_decay=0.01), weights[:1], torch.device("cpu"))
    plain = torch.optim.SGD(weights[1:], lr=0.1, weight_decay=0.01, momentum=0.9, nesterov=True)
    for step in range(4):
        for weight, optimizer in zip(weights, (ours, plain)):
            weight.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(*weights)


# ---- states on disk --------------------------------------------------------------------------------------------------


def content(number):
    return {"kind": "training state", "number": number, "weights": {"w": torch.arange(5000) + number}, "settings": {},
            "optimizer": {}, "epoch": 1, "step": 0, "speakers": [], "train_list_sha256": ""}  # fmt: skip


def test_the_last_two_states_are_kept(tmp_path):
    for number in range(4):
        state.save_state(tmp_path, content(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt", "state_before.pt"]
    assert state.load_state(tmp_path)[0]["number"] == 3
    (tmp_path / "state.pt").unlink()
    assert state.load_state(tmp_path)[0]["number"] == 2


@pytest.mark.parametrize("place", [0.01, 0.3, 0.5, 0.8, 0.99])
def test_a_bit_that_has_turned_is_noticed(tmp_path, capsys, place):
    """Wherever it is, the state is either refused or means the same."""
    for number in range(2):
        state.save_state(tmp_path, content(number))
    whole = (tmp_path / "state.pt").read_bytes()
    spoilt = bytearray(whole)
    spoilt[int(place * len(whole))] ^= 4
    (tmp_path / "state.pt").write_bytes(spoilt)
    found, last_is_damaged = state.load_state(tmp_path)
    expected = content(found["number"])
    assert torch.equal(found["weights"]["w"], expected["weights"]["w"])
    if found["number"] == 0:
        assert last_is_damaged and "state_before.pt, the one before" in capsys.readouterr().out


def test_a_damaged_state_never_takes_the_place_of_the_good_one(tmp_path):
    for number in range(2):
        state.save_state(tmp_path, content(number))
    (tmp_path / "state.pt").write_bytes(b"torn")
    _, last_is_damaged = state.load_state(tmp_path)
    state.save_state(tmp_path, content(2), last_is_damaged)
    assert (tmp_path / "state_damaged.pt").read_bytes() == b"torn"
    (tmp_path / "state.pt").write_bytes(b"torn again")
    assert state.load_state(tmp_path)[0]["number"] == 0


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_a_state_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, error):
    for number in range(2):
        state.save_state(tmp_path, content(number))
    load = torch.load

    def fails(path, **more):
        if path.name == "state.pt":
            raise error
        return load(path, **more)

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(RunError, match=r"state\.pt cannot be read: (out of memory|Input/output error)"):
        state.load_state(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt", "state_before.pt"]


def test_without_any_whole_state_nothing_is_begun(tmp_path):
    assert state.load_state(tmp_path) == (None, False)
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match="choose another --save_path"):
        state.load_state(tmp_path)


def test_a_file_of_ours_is_checked_by_its_checksums(tmp_path):
    from tools import load_checkpoint, save_checkpoint

    path = tmp_path / "a.model"
    save_checkpoint(path, {"kind": "model", "weights": {"w": torch.arange(5000)}})
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(5000).numpy().tobytes()[800:900])
    content[at] ^= 1
    path.write_bytes(content)
    read = torch.load(path, weights_only=True)["weights"]["w"]
    assert not torch.equal(read, torch.arange(5000))  # torch does not notice
    with pytest.raises(InputError, match=r"a\.model is damaged: the checksum"):
        load_checkpoint(path, "model")


def test_one_run_at_a_time(tmp_path):
    (tmp_path / "model").mkdir()
    leftover = tmp_path / "model" / ".model_0001.model.123.part"
    leftover.write_bytes(b"")
    other = tmp_path / "another_run" / ".state.pt.124.part"  # which is being written
    other.parent.mkdir()
    other.write_bytes(b"")
    with state.only_run_in(tmp_path):
        assert not leftover.exists() and other.exists()
        with pytest.raises(InputError, match="being written to by process"), state.only_run_in(tmp_path):
            pass
    with state.only_run_in(tmp_path):
        pass


def test_a_full_disk_is_an_os_error_for_tensors_too():
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        def flush(self):
            pass

    with pytest.raises(OSError, match="No space left"):
        save_tensors({"a": torch.zeros(1000)}, Full())
