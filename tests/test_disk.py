"""A full disk, and one that cannot be written: one sentence, and nothing that was there is lost."""

import builtins
import errno
import json
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_checkpoint import assert_same
from test_resume import same, train

import ppl_vae
from ppl_vae import load_run, page, plots
from ppl_vae.checkpoint import load_checkpoint, save_checkpoint
from ppl_vae.cli import main
from ppl_vae.directory import RunDirectory
from ppl_vae.writing import WriteError, append_text, confined, file_name, write_bytes, write_text


@contextmanager
def full_after(num, code=errno.ENOSPC, suffix=""):
    """The disk takes so many files of this suffix, and of the next one only the first half."""
    left = [num]
    to_disk, opens, raw = os.fdopen, builtins.open, os.open

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise OSError(code, os.strerror(code))

        def __getattr__(self, name):
            return getattr(self.file, name)

    def counted(path):
        if not str(path).endswith(suffix):
            return False
        left[0] -= 1
        return left[0] < 0

    written = {}

    def raw_open(path, flags, *args, **kwargs):
        handle = raw(path, flags, *args, **kwargs)
        if flags & (os.O_WRONLY | os.O_RDWR):
            written[handle] = str(path)
        return handle

    def by_handle(handle, mode="r", *args, **kwargs):
        file = to_disk(handle, mode, *args, **kwargs)
        return Half(file) if "w" in mode and counted(written.get(handle, "")) else file

    def by_path(path, mode="r", *args, **kwargs):
        file = opens(path, mode, *args, **kwargs)
        return Half(file) if set(mode) & set("wax") and counted(path) else file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", raw_open)
        patch.setattr(os, "fdopen", by_handle)
        patch.setattr(builtins, "open", by_path)
        patch.setattr(os, "fsync", lambda handle: None)
        yield left


OLD, NEW = {"a": torch.zeros(200), "step": 1}, {"a": torch.ones(200), "b": torch.ones(9), "step": 2}


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_none_of_the_new_one(tmp_path):
    folder = tmp_path / "c"
    save_checkpoint(folder, OLD)
    files = 4  # two of tensors, the state, and one more than there are
    for num in range(files - 1):
        with full_after(num), pytest.raises(WriteError, match="/c cannot .*is full.*whole") as said:
            save_checkpoint(folder, NEW)
        assert said.value.errno == errno.ENOSPC
        assert_same(load_checkpoint(folder), OLD)
        # The half that was written would keep the disk full.
        assert [path.name for path in tmp_path.iterdir()] == ["c"]
    with full_after(files - 1):
        save_checkpoint(folder, NEW)
    assert_same(load_checkpoint(folder), NEW)


@pytest.mark.parametrize("num", [0, 1, 2, 5, 9, 14, 20, 27, 33])
def test_a_training_on_a_full_disk_goes_on_bit_for_bit_where_there_is_room(tmp_path, num):
    whole = train(tmp_path / "whole")
    with full_after(num), pytest.raises(WriteError, match="the disk is full"):
        train(tmp_path / "cut")
    directory = RunDirectory(tmp_path / "cut")
    if (state := directory.load()) is not None:
        assert len(directory.metrics()) >= state["progress"]["lines"]
    assert same(whole, train(tmp_path / "cut", resume=True))
    assert not list((tmp_path / "cut").rglob(".*"))


def test_metrics_that_are_cut_short_are_read_up_to_there(tmp_path):
    train(tmp_path / "run", num_steps=6)
    directory = RunDirectory(tmp_path / "run")
    lines = directory.metrics()
    with full_after(0), pytest.raises(WriteError, match="metrics.jsonl cannot be written: the d"):
        directory.append_metrics(lines[0])
    assert not directory.metrics_path.read_text().endswith("\n")
    assert directory.metrics() == lines
    for text in ("3", "[]", '{"split": "train"}', "\udcff", "[" * 100_000):
        content = json.dumps(lines[0]) + "\n" + text + "\n"
        directory.metrics_path.write_bytes(content.encode(errors="surrogateescape"))
        assert directory.metrics() == lines[:1]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: page.write(path, title="", summary={}, config="", results={}, figures=[]),
        lambda path: RunDirectory(path.parent).write_results({"elbo": 1}),
        lambda path: RunDirectory(path.parent).write_config({"seed": 1}),
        lambda path: plots.save(plots.samples(torch.zeros(1, 1, 4, 4)), path),
    ],
    ids=["text", "page", "results", "config", "figure"],
)
def test_what_cannot_be_written_leaves_what_was_there(tmp_path, write):
    for name in ("file", "results.json", "config.yaml"):
        (tmp_path / name).write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_after(0), pytest.raises(WriteError, match="cannot be written: the disk is full"):
        write(tmp_path / "file")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "code, says",
    [
        (errno.EROFS, "the file system is read-only.*make it writable"),
        (errno.EACCES, "that is not permitted"),
        (errno.EDQUOT, "quota is used up.*make room"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_the_reason_is_said(tmp_path, code, says):
    with full_after(0, code), pytest.raises(WriteError, match=says) as caught:
        write_text(tmp_path / "file", "text")
    assert caught.value.errno == code


TINY = ("train --data digits --num_steps 30 --checkpoint_every 10 --eval_every 10 --log_every 10 "
        "--model.hidden [4] --guide.hidden [4] --tensorboard false --compile false --report false "
        "--out {} --progress false")  # fmt: skip


@pytest.fixture
def small():
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".jsonl", ".part"])
def test_the_command_line_says_it_in_one_sentence_and_resumes(tmp_path, capsys, suffix):
    words = TINY.format(tmp_path / "run").split()
    with full_after(7 if not suffix else 2, suffix=suffix):
        assert main(words) == 2
    message = capsys.readouterr().err
    assert re.fullmatch(r"ppl-vae: \S*/run\S* cannot be written: the disk is full\..*\n", message)
    assert main([*words, "--resume"]) == 0
    assert load_run(tmp_path / "run").step == 30


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("command", ["evaluate {} --num_particles 5", "sample {}", "report {}"])
def test_reading_commands_on_a_full_disk(tmp_path, capsys, command):
    assert main(TINY.format(tmp_path / "run").split()) == 0
    capsys.readouterr()
    with full_after(0):
        assert main(command.format(tmp_path / "run").split()) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"ppl-vae: .* cannot be written: the disk is full\..*\n", captured.err)


@pytest.mark.usefixtures("small")
def test_a_grid_on_a_full_disk_ends_with_a_sentence_and_goes_on(tmp_path, capsys):
    words = TINY.format(tmp_path / "grid").replace("train", "compare").replace(
        "--report false", "--seed 0 1 --num_particles 5 --num_data 20").replace(
        "--progress false", "").split()  # fmt: skip
    with full_after(20):
        assert main(words) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert main(words) == 0
    assert (tmp_path / "grid" / "index.html").exists()


@pytest.mark.usefixtures("small")
def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in ("file/run", "file", "a" * 300, "a\0b"):
        words = [w.replace("OUT", f"{tmp_path}/{out}") for w in TINY.format("OUT").split()]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert message.startswith("ppl-vae: out is ") and message.count("\n") == 1


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of one megabyte, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, words = shutil.which("mount"), ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not mount or subprocess.run([mount, *words], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(tiny_disk):
    # Four fifths are taken, so that the second checkpoint has no room beside the first.
    (tiny_disk / "ballast").write_bytes(bytes(800_000))
    whole = train(num_steps=30)
    number = -1
    with pytest.raises(WriteError, match="the disk is full"):  # noqa: PT012
        for number in range(20):
            train(tiny_disk / str(number))
    assert number >= 0
    state = RunDirectory(tiny_disk / str(number)).load()
    (tiny_disk / "ballast").unlink()
    assert same(whole, train(tiny_disk / str(number), resume=True))
    assert state is None or state["progress"]["step"] < 30


def test_a_disk_that_is_really_read_only(tiny_disk, tmp_path):
    train(tiny_disk / "run", num_steps=6)
    if subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)]).returncode:
        pytest.skip("it cannot be made read-only")
    with pytest.raises((WriteError, ValueError), match="read-only"):
        train(tiny_disk / "run", num_steps=8, resume=True)
    with pytest.raises(ValueError, match="cannot be written to"):
        train(tiny_disk / "other", num_steps=6)
    assert load_run(tiny_disk / "run").step == 6


# ------------------------------------------------------------------------ links, names of files


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    (tmp_path / f".a.{os.getpid()}").symlink_to(tmp_path / "precious")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a").is_symlink()


def test_nothing_is_added_to_what_a_link_points_to(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    with pytest.raises(WriteError, match="it is a link"):
        append_text(tmp_path / "a", "more")
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_leads_out_of_a_folder_is_refused(tmp_path):
    root, other = tmp_path / "run", tmp_path / "other"
    root.mkdir(), other.mkdir()
    (root / "out").symlink_to(other)
    (root / "in").mkdir()
    (root / "round").symlink_to(root / "in")
    assert confined(root / "round" / "x", root) == root / "round" / "x"
    assert confined(root / "not" / "yet" / "x", root)
    for wrong in (root / "out" / "x", root / ".." / "x", other / "x", root / "in" / "..",
                  Path("/etc/passwd")):  # fmt: skip
        with pytest.raises(WriteError, match="leads out of"):
            confined(wrong, root)


@pytest.mark.parametrize(
    "words", ["../../x", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\0b", "\\\\x", "x" * 999]
)
def test_names_of_files_have_no_way_out(tmp_path, words):
    name = file_name(words)
    assert name not in ("", ".", "..") and len(name) <= 100
    path = tmp_path / name
    path.write_text("")
    assert path.resolve().parent == tmp_path.resolve() and not name.startswith(".")


@pytest.mark.parametrize("entry", ["../x", "/x", "a/b", "", ".", "..", "a\0", ".x"])
def test_entries_of_a_checkpoint_are_names(tmp_path, entry):
    with pytest.raises(TypeError, match="accepted at the top are strings, which name files"):
        save_checkpoint(tmp_path / "c", {entry: torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_site_of_any_name_gets_its_figure_inside(tmp_path):
    path = RunDirectory(tmp_path).figure_path("latents_../../../evil")
    assert path.parent == tmp_path / "figures"
    assert ppl_vae.directory.RunDirectory(tmp_path).figure_path("latents_z").name == "latents_z.png"
