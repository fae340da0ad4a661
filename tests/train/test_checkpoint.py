"""A checkpoint is exact, whole or not there, and of this model or refused."""

import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter

from assay.errors import CheckpointError, DiskError
from assay.nn.optim import Multiplier, OptimConfig, build_optimizer, set_rates
from assay.train import checkpoint

POSITION = {"epoch": 2, "best": [0.5, -1.0], "scaler": {}}


class Net(nn.Module):
    def __init__(self, width: int = 5, extra: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.late = nn.Linear(width, width)
        self.head = nn.Linear(width, 2)
        if extra:
            self.extra = nn.Linear(2, 2)


class Trainee:
    """A net that takes deterministic steps; its `late` layer joins at some step."""

    def __init__(self, optimizer: str, joins_at: int = 0, **fields: object) -> None:
        torch.manual_seed(0)
        self.net = Net(**fields)
        self.config = OptimConfig(optimizer=optimizer, lr=0.05)
        self.prefixes = {"head.": Multiplier(lr=0.5)}
        self.optimizer = build_optimizer(self.net, self.config, self.prefixes)
        self.joins_at = joins_at

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            set_rates(self.optimizer, self.config, self.prefixes, step / 10)
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad(set_to_none=True)
            hidden = self.net.norm(self.net.body(x))
            hidden = self.net.late(hidden) if step >= self.joins_at else hidden
            self.net.head(hidden).square().mean().backward()
            self.optimizer.step()

    def save(self, folder: Path, step: int) -> Path:
        return checkpoint.save(folder, step, self.net, self.optimizer, POSITION | {"step": step})

    def load(self, path: Path) -> dict:
        return checkpoint.load(path, self.net, self.optimizer)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_shard(folder: Path) -> Path:
    return next(folder.glob("*.distcp"))


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
@pytest.mark.parametrize(("saved_at", "joins_at"), [(3, 0), (3, 5), (0, 0)])
def test_what_is_loaded_continues_bit_for_bit(tmp_path, optimizer, saved_at, joins_at):
    """Also where a layer has had no gradient yet, and before the first step."""
    straight = Trainee(optimizer, joins_at)
    straight.steps(0, saved_at)
    path = straight.save(tmp_path, saved_at)
    straight.steps(saved_at, 8)

    resumed = Trainee(optimizer, joins_at)
    for parameter in resumed.net.parameters():
        parameter.data.fill_(7)
    assert resumed.load(path) == POSITION | {"step": saved_at}
    resumed.steps(saved_at, 8)
    for name, tensor in straight.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], tensor), name
    assert_same_moments(straight, resumed)


def assert_same_moments(trainee: Trainee, other: Trainee) -> None:
    for name, parameter in trainee.net.named_parameters():
        ours = trainee.optimizer.state[parameter]
        theirs = other.optimizer.state[other.net.get_parameter(name)]
        assert set(ours) == set(theirs) >= {"exp_avg", "exp_avg_sq"}
        for key, moment in ours.items():
            other_moment = torch.as_tensor(theirs[key])
            assert torch.equal(torch.as_tensor(moment), other_moment), (name, key)


def test_saving_leaves_model_and_optimiser_alone(tmp_path):
    saved, other = Trainee("adamw"), Trainee("adamw")
    for step in range(4):
        saved.steps(step, step + 1)
        saved.save(tmp_path, step)
    other.steps(0, 4)
    for name, tensor in other.net.state_dict().items():
        assert torch.equal(saved.net.state_dict()[name], tensor)
    assert_same_moments(saved, other)


def test_the_newest_wins_and_two_are_kept(tmp_path):
    trainee = Trainee("adamw")
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "never") is None
    for step in (9, 10, 100):
        trainee.save(tmp_path, step)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert trainee.load(newest)["step"] == 100
    assert len(list(tmp_path.iterdir())) == checkpoint.KEEP.last == 2


@pytest.mark.parametrize("keep", [checkpoint.Keep(1), checkpoint.Keep(1, 2)])
def test_a_copy_of_a_checkpoint_is_none_and_stays(tmp_path, keep):
    """As `cp -r step-00000001 step-00000001-old` makes it; its name comes last."""
    trainee = Trainee("adamw")
    first = trainee.save(tmp_path, 1)
    copies = [tmp_path / name for name in ("step-00000001-old", "step-old", "step-1")]
    for copy in copies:
        shutil.copytree(first, copy)
    for step in (2, 100_000_000):
        path = checkpoint.save(tmp_path, step, trainee.net, trainee.optimizer, POSITION, keep)
        assert checkpoint.latest(tmp_path) == path
    assert all(copy.is_dir() for copy in copies)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (checkpoint.Keep(1), [31]),
        (checkpoint.Keep(3), [20, 23, 31]),
        (checkpoint.Keep(2, 10), [11, 20, 23, 31]),  # the first at or after 10 and 20; 31 is newest
        (checkpoint.Keep(1, 1), [3, 11, 13, 16, 20, 23, 31]),
    ],
)
def test_some_are_kept_for_good(tmp_path, keep, expected):
    trainee = Trainee("adamw")
    for step in (3, 11, 13, 16, 20, 23, 31):
        checkpoint.save(tmp_path, step, trainee.net, trainee.optimizer, POSITION, keep)
    kept = sorted(int(path.name[5:]) for path in tmp_path.iterdir())
    assert kept == expected


def test_the_same_step_can_be_saved_again(tmp_path):
    trainee = Trainee("adamw")
    trainee.save(tmp_path, 5)
    trainee.steps(0, 1)
    path = trainee.save(tmp_path, 5)
    other = Trainee("adamw")
    other.load(path)
    assert torch.equal(other.net.body.weight, trainee.net.body.weight)


def test_what_a_kill_left_half_written_is_ignored_and_replaced(tmp_path):
    trainee = Trainee("adamw")
    good = trainee.save(tmp_path, 1)
    half = tmp_path / ".step-00000002"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    (half / "stranger").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.latest(tmp_path) == good
    newer = trainee.save(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == newer
    assert not (newer / "stranger").exists()


def test_a_kill_while_saving_leaves_the_one_before(tmp_path, monkeypatch):
    trainee = Trainee("adamw")
    good = trainee.save(tmp_path, 1)

    def killed(folder: Path) -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_checksums", killed)
        with pytest.raises(KeyboardInterrupt):
            trainee.save(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == good


def test_ctrl_c_while_tensors_are_written_is_no_fault_of_the_disk(tmp_path, monkeypatch):
    trainee = Trainee("adamw")
    good = trainee.save(tmp_path, 1)

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSystemWriter, "write_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainee.save(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == good


@pytest.mark.parametrize("damage", ["bit", "missing", "position", "checksums", "truncated"])
def test_a_damaged_checkpoint_falls_back_with_a_warning(tmp_path, damage):
    trainee = Trainee("adamw")
    good, bad = trainee.save(tmp_path, 1), trainee.save(tmp_path, 2)
    match damage:
        case "bit":
            flip_a_byte(a_shard(bad))
        case "missing":
            a_shard(bad).unlink()
        case "position":
            (bad / "position.json").write_text(json.dumps(POSITION | {"step": 3}))
        case "checksums":
            (bad / "checksums.json").write_text("{")
        case "truncated":
            a_shard(bad).write_bytes(a_shard(bad).read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert checkpoint.latest(tmp_path) == good


def test_where_all_are_damaged_nothing_starts_silently_from_scratch(tmp_path):
    trainee = Trainee("adamw")
    for step in (1, 2):
        flip_a_byte(a_shard(trainee.save(tmp_path, step)))
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match="All 2 checkpoints"),
    ):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("fields", [{"width": 6}, {"extra": True}])
def test_another_model_is_refused(tmp_path, fields):
    """Wider, with a layer more, and (the other way round) with a layer less."""
    plain, other = Trainee("adamw"), Trainee("adamw", **fields)
    for trainee in (plain, other):
        trainee.steps(0, 1)
    for saved, loader in ((plain, other), (other, plain)):
        path = saved.save(tmp_path, 1)
        before = loader.net.body.weight.detach().clone()
        with pytest.raises(CheckpointError, match="does not fit this model"):
            loader.load(path)
        assert torch.equal(loader.net.body.weight, before)


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path, full_disk):
    trainee = Trainee("adamw")
    trainee.steps(0, 1)
    whole = trainee.save(tmp_path, 1)
    for room in (0, 100, 1000):
        with (
            pytest.raises(DiskError, match=r"step-00000002 cannot be written"),
            full_disk(room),
        ):
            trainee.save(tmp_path, 2)
        assert checkpoint.latest(tmp_path) == whole
    assert checkpoint.latest(trainee.save(tmp_path, 2).parent).name == "step-00000002"


def test_whatever_lies_in_the_newest_checkpoint_the_one_before_is_taken(tmp_path, damages):
    trainee = Trainee("adamw")
    trainee.steps(0, 1)
    whole, newest = trainee.save(tmp_path, 1), trainee.save(tmp_path, 2)
    for name in ("checksums.json", "position.json", ".metadata", "__0_0.distcp"):
        for _ in damages(newest / name):
            with pytest.warns(UserWarning, match="is damaged"):
                assert checkpoint.latest(tmp_path) == whole
    assert checkpoint.latest(tmp_path) == newest


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_code_in_an_index_is_refused_and_not_run(tmp_path):
    trainee = Trainee("adamw")
    trainee.steps(0, 1)
    path = trainee.save(tmp_path, 1)
    (path / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"is none of ours \(it names .*; delete its folder"):
        trainee.load(path)
    (path / ".metadata").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(CheckpointError, match="holds a PosixPath and no index"):
        trainee.load(path)
    assert not (tmp_path / "ran").exists()


def test_an_index_that_leads_elsewhere_is_refused(tmp_path):
    trainee = Trainee("adamw")
    trainee.steps(0, 1)
    path = trainee.save(tmp_path, 1)
    index = pickle.loads((path / ".metadata").read_bytes())
    next(iter(index.storage_data.values())).relative_path = "../elsewhere"
    (path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"names the file '\.\./elsewhere'"):
        trainee.load(path)


def test_code_in_a_value_is_refused_and_not_run(tmp_path):
    trainee = Trainee("adamw")
    trainee.steps(0, 1)
    trainee.optimizer.param_groups[0]["prefix"] = Trap(tmp_path / "ran")
    path = trainee.save(tmp_path, 1)
    (tmp_path / "ran").unlink(missing_ok=True)
    other = Trainee("adamw")
    other.steps(0, 1)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        other.load(path)
    assert not (tmp_path / "ran").exists()
