"""Training states on disk, damaged in many ways; the mean of models."""

import copy
import resource
from unittest.mock import Mock

import pytest
import torch

from tools import InputError, RunError, save_checkpoint
from training import state
from training.run import mean_of_models


def content(number):
    return {"kind": "training state", "number": number, "weights": {"w": torch.arange(5000) + number}, "settings": {},
            "optimizer": {}, "epoch": 1, "step": 0, "speakers": [], "train_list_sha256": ""}  # fmt: skip


def test_the_last_two_states_are_kept(tmp_path):
    for number in range(4):
        state.save_state(tmp_path, content(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt", "state_before.pt"]
    assert state.load_state(tmp_path)["number"] == 3
    (tmp_path / "state.pt").unlink()
    assert state.load_state(tmp_path)["number"] == 2


@pytest.mark.parametrize("place", [0.01, 0.3, 0.5, 0.8, 0.99])
def test_a_bit_that_has_turned_is_noticed(tmp_path, capsys, place):
    """Wherever it is, the state is either refused or means the same."""
    for number in range(2):
        state.save_state(tmp_path, content(number))
    whole = (tmp_path / "state.pt").read_bytes()
    spoilt = bytearray(whole)
    spoilt[int(place * len(whole))] ^= 4
    (tmp_path / "state.pt").write_bytes(spoilt)
    found = state.load_state(tmp_path)
    expected = content(found["number"])
    assert torch.equal(found["weights"]["w"], expected["weights"]["w"])
    if found["number"] == 0:
        assert found["last_is_damaged"] and "resuming from" in capsys.readouterr().out


def test_a_damaged_state_never_takes_the_place_of_the_good_one(tmp_path):
    for number in range(2):
        state.save_state(tmp_path, content(number))
    (tmp_path / "state.pt").write_bytes(b"torn")
    state.save_state(tmp_path, content(2), state.load_state(tmp_path)["last_is_damaged"])
    assert (tmp_path / "state_damaged.pt").read_bytes() == b"torn"
    (tmp_path / "state.pt").write_bytes(b"torn again")
    assert state.load_state(tmp_path)["number"] == 0


@pytest.mark.parametrize("error", [MemoryError(), OSError(13, "Permission denied")])
def test_a_state_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, error):
    state.save_state(tmp_path, content(0))
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    with pytest.raises(RunError, match=r"state\.pt cannot be read: (out of memory|Permission denied)"):
        state.load_state(tmp_path)


def test_without_any_whole_state_nothing_is_begun(tmp_path):
    assert state.load_state(tmp_path) is None
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match="choose another --save_path"):
        state.load_state(tmp_path)


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
    for name, made in (("new", True), ("mine", False)):
        if not made:
            (tmp_path / name).mkdir()
        with pytest.raises(InputError), state.only_run_in(tmp_path / name):
            (tmp_path / name / "log.txt").touch()
            raise InputError("before anything else was written")
        assert (tmp_path / name).exists() == (not made)


def test_a_full_disk_is_an_os_error_for_tensors_too(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may grow larger
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/a\.model'"):
            save_checkpoint(tmp_path / "a.model", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_the_mean_of_models_is_their_mean(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    states, paths = [], []
    for number in range(3):
        with torch.no_grad():
            network[0].weight.add_(torch.randn_like(network[0].weight))
            network(torch.randn(8, 3))
        states.append(copy.deepcopy(network.state_dict()))
        paths.append(tmp_path / f"{number}.model")
        save_checkpoint(paths[-1], {"kind": "model", "weights": states[-1]})
    mean = mean_of_models(paths[:2], states[2])
    assert mean.keys() == states[0].keys() and mean["1.num_batches_tracked"] == 3
    for key in ("0.weight", "0.bias", "1.running_mean", "1.running_var"):
        expected = torch.stack([state[key].double() for state in states]).mean(0)
        torch.testing.assert_close(mean[key], expected.float(), rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match=r"gone\.model does not exist"):
        mean_of_models([tmp_path / "gone.model"], states[2])
