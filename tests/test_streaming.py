"""Training on rows on a disk: each row once, the same minibatches read ahead or not, resumed."""

import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch

import ppl_vae
from ppl_vae import NonFiniteError, fit, fit_replicas, load_run
from ppl_vae.cli import main
from ppl_vae.data import Blocks, Rows, Shards, Splits, load, split_rows
from ppl_vae.data.minibatches import minibatches
from ppl_vae.guides import MeanFieldGuide
from ppl_vae.models import VAE
from ppl_vae.results import evaluate_run

N = 230


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ppl_vae prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Grey shards; the first value of row i is i."""
    path = tmp_path_factory.mktemp("shards")
    rows = np.random.default_rng(0).integers(0, 256, (N, 6), dtype=np.uint8)
    rows[:, 0] = np.arange(N)
    for number, part in enumerate(np.array_split(rows, 4)):
        np.save(path / f"{number}.npy", part)
    return path


def stream(folder, *, binarize=None, seed=0, whole=True, **options):
    shards = Shards(folder, **options)
    data = shards if whole else load(folder, binarize=binarize)
    if not whole:
        object.__setattr__(data.train, "num_ahead", shards.num_ahead)
    return minibatches(data, 16, seed)


def take(batches, num):
    found = [batches.next()[0] for _ in range(num)]
    batches.close()
    return found


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("blocks", [None, Blocks(10, 3)])
def test_each_row_comes_at_most_once_an_epoch(folder, blocks):
    batches = stream(folder, blocks=blocks)
    orders = []
    for epoch in range(3):
        rows = [int(v) for _ in range(14) for v in (batches.next()[0][:, 0] * 255).round()]
        assert len(rows) == len(set(rows)) == 224
        assert (batches.epoch, batches.position) == (epoch, 14)
        orders.append(rows)
    batches.close()
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("blocks", [None, Blocks(10, 3)])
@pytest.mark.parametrize("num_ahead", [1, 4, 30])
def test_reading_ahead_changes_nothing(folder, num_ahead, blocks):
    plain = take(stream(folder, num_ahead=0, blocks=blocks), 40)
    assert equal(take(stream(folder, num_ahead=num_ahead, blocks=blocks), 40), plain)
    assert not equal(take(stream(folder, num_ahead=num_ahead, seed=1, blocks=blocks), 40), plain)


@pytest.mark.parametrize("num_ahead", [0, 4])
@pytest.mark.parametrize("stop", [0, 1, 13, 14, 15, 31])
@pytest.mark.parametrize("binarize", [None, "dynamic"])
def test_a_stream_goes_on_from_what_was_taken(folder, num_ahead, stop, binarize):
    def made():
        return stream(folder, whole=False, binarize=binarize, num_ahead=num_ahead)

    batches = made()
    for _ in range(stop):
        batches.next()
    at, state = (batches.epoch, batches.position), torch.get_rng_state()
    expected = take(batches, 20)
    torch.manual_seed(99)
    again = made()
    again.next()
    torch.set_rng_state(state)
    again.seek(*at)
    assert equal(take(again, 20), expected)
    assert (again.epoch, again.position) == (batches.epoch, batches.position)


def test_bits_are_drawn_as_they_are_taken(folder):
    def bits(num_ahead):
        torch.manual_seed(0)
        return take(stream(folder, whole=False, binarize="dynamic", num_ahead=num_ahead), 30)

    assert equal(bits(0), bits(4))
    assert torch.cat(bits(4)).unique().tolist() == [0.0, 1.0]


def test_numbers_may_be_asked_for_in_between(folder):
    plain = [rows.tolist() for rows in take(stream(folder), 6)]
    batches = stream(folder)
    found = [batches.next()[0].tolist()]
    for _ in range(2):
        found.append(batches.take(batches.next_index())[0].tolist())
        found.append(batches.next()[0].tolist())
    index = torch.stack([batches.next_index() for _ in range(2)])
    assert batches.take(index)[0].shape == (2, 16, 6)
    batches.close()
    assert found == plain[:5]


class Failing(Rows):
    """Rows of which one cannot be read."""

    data_shape = (2,)

    def __len__(self):
        return 64

    def take(self, index):
        if 7 in index:
            raise OSError("the disk is gone")
        return torch.zeros(len(index), 2)


def test_an_error_of_the_thread_is_one_of_the_stream():
    batches = minibatches(Failing(), 8, seed=0)
    with pytest.raises(OSError, match="the disk is gone"):
        take(batches, 9)
    assert not threads()
    at = batches.epoch, batches.position
    with pytest.raises(OSError, match="the disk is gone"):  # and again, for it is not read over
        batches.next()
    assert (batches.epoch, batches.position) == at
    with pytest.raises(OSError, match="the disk is gone"):
        train(Failing(), num_steps=9)


def test_grey_values_out_of_range_are_refused_as_they_are_read(tmp_path):
    x = np.random.default_rng(0).random((1000, 3))
    splits = Splits(split_rows(saved(tmp_path / "x.npy", x)).train, binarize="dynamic")
    minibatches(splits, 16, 0).next()
    x[:] = 1.5
    splits = Splits(split_rows(saved(tmp_path / "y.npy", x)).train, binarize="dynamic")
    with pytest.raises(ValueError, match=r"y.npy: train has values from 1.5 to 1.5, but only"):
        minibatches(splits, 16, 0).next()


def saved(path, array):
    np.save(path, array)
    return Shards(path)


def train(data, out=None, *, num_steps=30, pair=None, **options):
    torch.manual_seed(11)
    model = VAE((data.train if isinstance(data, Splits) else data).data_shape, 2, hidden=(8,))
    guide = MeanFieldGuide(model, hidden=(8,))
    if pair is not None:
        pair(model, guide)
    settings = {
        "batch_size": 16, "log_every": 3, "eval_every": 7, "checkpoint_every": 4,
        "compile": False, "tensorboard": False,
    }  # fmt: skip
    return fit(model, guide, data, num_steps=num_steps, out=out, **settings | options)


def same(one, other):
    ours, theirs = (
        [*r.model.state_dict().values(), *r.guide.state_dict().values()] for r in (one, other)
    )
    lines = [[{**m, "seconds": 0} for m in r.metrics] for r in (one, other)]
    return all(map(torch.equal, ours, theirs)) and lines[0] == lines[1]


class Stop(Exception):  # noqa: N818
    pass


def stopping_at(step):
    def arrange(model, guide):
        calls = iter(range(10**6))

        def hook(module, args):
            if next(calls) > step:
                raise Stop

        model.register_forward_pre_hook(hook)

    return arrange


@pytest.mark.parametrize("binarize", [None, "dynamic"])
@pytest.mark.parametrize("stop_after", [11, 40])
def test_an_interrupted_run_resumes_bit_for_bit(folder, tmp_path, binarize, stop_after):
    whole = train(load(folder, binarize=binarize), tmp_path / "whole")
    with pytest.raises(Stop):
        train(load(folder, binarize=binarize), tmp_path / "cut", pair=stopping_at(stop_after))
    assert not threads()
    resumed = train(load(folder, binarize=binarize), tmp_path / "cut", resume=True)
    assert same(whole, resumed)


def test_validation_is_by_the_rows_held_out(folder):
    result = train(load(folder, binarize="dynamic"))
    lines = [line for line in result.metrics if line["split"] == "valid"]
    assert len(lines) == 5
    given = train(split_rows(Shards(folder)).train, valid=load(folder).valid)
    assert [line["step"] for line in given.metrics if line["split"] == "valid"] == [
        7,
        14,
        21,
        28,
        30,
    ]


def test_all_rows_are_data_too(folder):
    result = train(Shards(folder), num_steps=28)
    assert result.metrics[-1]["epoch"] == pytest.approx(27 / 14, abs=0.1)
    assert all(line["split"] == "train" for line in result.metrics)


def test_ctrl_c_ends_the_thread(folder, tmp_path):
    def interrupted(model, guide):
        calls = iter(range(10**6))

        def hook(module, args):
            if next(calls) == 20:
                import signal

                signal.raise_signal(signal.SIGINT)

        model.register_forward_pre_hook(hook)

    with pytest.raises(KeyboardInterrupt, match="stopped at step"):
        train(load(folder), tmp_path / "cut", pair=interrupted)
    assert not threads()
    resumed = train(load(folder), tmp_path / "cut", resume=True)
    assert same(train(load(folder), tmp_path / "whole"), resumed)


def test_a_step_that_is_not_finite_ends_the_thread(folder):
    with pytest.raises(NonFiniteError):
        train(load(folder), optimizer=partial(torch.optim.SGD, lr=1e30))
    assert not threads()


@pytest.mark.slow
def test_compiled_steps_take_them(folder):
    eager = train(load(folder, binarize="dynamic"))
    compiled = train(load(folder, binarize="dynamic"), compile=True)
    assert compiled.compiled and not threads()
    ours, theirs = ([m["loss"] for m in r.metrics if "loss" in m] for r in (eager, compiled))
    assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5)


def test_replicas_take_them_each_in_its_own_order(folder):
    def pair():
        model = VAE((6,), 2, hidden=(8,))
        return model, MeanFieldGuide(model, hidden=(8,))

    options = {"num_steps": 20, "batch_size": 16, "compile": False, "log_every": 5}
    data = load(folder, binarize="dynamic")
    found = fit_replicas(pair, data, seeds=[3, 4], tensorboard=False, **options)
    assert not threads()
    for seed, result in zip([3, 4], found, strict=True):
        torch.manual_seed(seed)
        with ppl_vae.randomness.untouched(seed):
            model, guide = pair()
        alone = fit(model, guide, data, seed=seed, **options)
        ours, theirs = ([m["elbo"] for m in r.metrics] for r in (result, alone))
        assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5)


def test_a_run_on_shards_is_evaluated_and_reported(folder, tmp_path):
    data = load(folder, binarize="dynamic")
    name = {"data": str(folder), "binarize": "dynamic"}
    train(data, tmp_path / "run", config=name)
    run = load_run(tmp_path / "run")
    assert torch.equal(run.data().test, data.test)
    assert evaluate_run(run, run.data(), num_particles=5)["num_data"] == 23
    with pytest.raises(ValueError, match="'train' of .* has 184 rows on a disk, .* num_data"):
        evaluate_run(run, run.data(), split="train")
    results = evaluate_run(run, run.data(), split="train", num_data=50, num_particles=5)
    assert results["num_data"] == 50 and results["split"] == "train"
    with pytest.raises(ValueError, match="num_data is 185; accepted are 1 to 184"):
        evaluate_run(run, run.data(), split="train", num_data=185)


def test_the_command_line_trains_on_a_folder(folder, tmp_path, capsys):
    out = str(tmp_path / "run")
    arguments = ["train", "--data", str(folder), "--binarize", "dynamic", "--model", "VAE",
                 "--model.latent_dim", "2", "--model.hidden", "[8]", "--num_steps", "20",
                 "--batch_size", "16", "--progress", "false", "--out", out]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert main(["evaluate", out, "--num_particles", "5"]) == 0
    assert main(["report", out, "--split", "train"]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["train", *arguments[1:], "--num_steps", "30", "--resume"]) == 0
    assert main(["evaluate", out, "--split", "train"]) == 2
    assert "say how many with num_data (--num_data)" in capsys.readouterr().err


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from ppl_vae.data import Shards
from ppl_vae.data.minibatches import minibatches

def anonymous():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in l)
    return int(line.split()[1]) * 1024

path, num = sys.argv[1], int(sys.argv[2])
np.lib.format.open_memmap(path, "w+", np.uint8, (num, 784))  # with holes, on no place
batches = minibatches(Shards(path, divide_by=255), 128, seed=0)
for _ in range(5):
    batches.next()
before = anonymous()
for _ in range(60):
    batches.next()
print(anonymous() - before, anonymous())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    found = []
    for num in (10**5, 10**7):  # 78 MB and 7.8 GB
        command = [sys.executable, "-c", MEMORY, str(tmp_path / f"{num}.npy"), str(num)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append([int(word) for word in done.stdout.split()])
    assert all(grown < 8 * 2**20 for grown, _ in found)
    # A permutation in memory would be 80 MB.
    assert abs(found[1][1] - found[0][1]) < 20 * 2**20
