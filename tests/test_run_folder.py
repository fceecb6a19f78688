"""The folder of a run: one process at a time has it, whatever becomes of that one; and what it tells of the run."""

import errno
import fcntl
import json
import multiprocessing
import os
import platform
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import safetensors
import torch
import yaml
from folders import contents
from safetensors.torch import load_file

import adt_fast
from adt_fast import _commit, cli
from adt_fast._runs import folder_lock
from adt_fast._runs.checkpoint import RunCheckpoint
from adt_fast._runs.command_line import command_line, running_command
from adt_fast._runs.folder import RunFolder, check_new
from adt_fast._runs.machine import device_name, versions
from adt_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")

ROOT = Path(adt_fast.__file__).parent.parent
ROUNDS = 20


@pytest.fixture
def context(monkeypatch):
    """Processes are forked from one that has imported everything and holds nothing; it finds modules by this alone."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["adt_fast.cli", "test_run_folder", "sklearn.datasets"])
    return context


def outcome_of(make, *arguments, **options):
    """What a process gets: the folder, or the words in which it is refused."""
    try:
        return make(*arguments, **options), ""
    except (ValueError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"


def send_outcome(pipe, path, resume=False):
    pipe.send(outcome_of(RunFolder, path, resume=resume)[1])


def refusal(context, path, **options):
    """Why another process cannot have the folder; empty if it can."""
    here, there = context.Pipe()
    process = context.Process(target=send_outcome, args=(there, path), kwargs=options)
    process.start()
    there.close()
    process.join()
    return here.recv()


def hold(pipe, path, fork=False):
    folder = RunFolder(path)
    child = os.fork() if fork else 0
    if fork and child == 0:  # which inherits all that is open
        time.sleep(60)
        os._exit(0)
    pipe.send(child)
    time.sleep(60)
    return folder


@contextmanager
def holding(context, path, **options):
    """A process that has the folder, and the process id of its child."""
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(there, path), kwargs=options)
    process.start()
    there.close()
    child = here.recv()
    try:
        yield process, child
    finally:
        process.kill()
        process.join()
        if child:
            os.kill(child, signal.SIGKILL)


# One process at a time


def compete(barrier, pipe, root):
    """Both processes reach for each folder at once."""
    results = []
    for number in range(ROUNDS):
        barrier.wait(60)
        folder, refused = outcome_of(RunFolder, root / "of" / str(number))
        barrier.wait(60)
        results.append(refused)
        del folder
    barrier.wait(60)
    named = RunFolder.named_by_time(str(root / "named"))
    barrier.wait(60)
    pipe.send((os.getpid(), results, named.path))


def test_of_two_processes_that_start_at_once_one_gets_the_folder(context, tmp_path):
    barrier, pipes = context.Barrier(2), [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=compete, args=(barrier, there, tmp_path)) for _, there in pipes]
    for process, (_, there) in zip(processes, pipes):
        process.start()
        there.close()
    (one, ones, one_named), (other, others, other_named) = (here.recv() for here, _ in pipes)
    for process in processes:
        process.join()
    assert len(ones) == len(others) == ROUNDS
    for number, results in enumerate(zip(ones, others)):
        assert sorted(map(bool, results)) == [False, True], results
        winner = one if results[1] else other
        wanted = f"ValueError: output {tmp_path}/of/{number} is in use by process {winner} on {platform.node()} since 2"
        assert "".join(results).startswith(wanted)
    assert one_named != other_named, "without a name of their own, both get a folder"


def test_a_killed_process_holds_no_folder(context, tmp_path):
    with holding(context, tmp_path / "run") as (process, _):
        for _ in range(2):  # being refused leaves the words for the next one
            with pytest.raises(ValueError, match=f"output .*run is in use by process {process.pid} on "):
                RunFolder(tmp_path / "run")
        with pytest.raises(ValueError, match="in use"):  # though there is nothing to resume
            RunFolder(tmp_path / "run", resume=True)
        process.kill()
        process.join()
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == process.pid, "it is there, but no lock"
        RunFolder(tmp_path / "run")


def test_a_child_left_behind_holds_no_folder(context, tmp_path):
    with holding(context, tmp_path / "run", fork=True) as (process, child):
        assert "in use" in refusal(context, tmp_path / "run")
        process.kill()
        process.join()
        os.kill(child, 0)
        RunFolder(tmp_path / "run")


def test_a_child_that_ends_frees_nothing(context, tmp_path):
    folder = RunFolder(tmp_path / "run")
    child = os.fork()
    if child == 0:
        refused = outcome_of(RunFolder, tmp_path / "run")[1]
        del folder
        os._exit("in use" not in refused)
    assert os.waitpid(child, 0)[1] == 0, "it is another process"
    assert "in use" in refusal(context, tmp_path / "run")


def test_within_a_process_a_folder_is_handed_on(context, tmp_path):
    first = RunFolder(tmp_path / "run")
    first.write_config({"device": "cpu"})
    (tmp_path / "link").symlink_to("run")
    second = RunFolder(tmp_path / "link", resume=True)
    del first
    assert "in use" in refusal(context, tmp_path / "run", resume=True)
    second.close()
    assert refusal(context, tmp_path / "run", resume=True) == ""


def test_a_folder_that_is_made_anew_is_another_one(context, tmp_path):
    first = RunFolder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    second = RunFolder(tmp_path / "run")
    assert "in use" in refusal(context, tmp_path / "run")
    del first
    assert "in use" in refusal(context, tmp_path / "run")
    del second
    assert refusal(context, tmp_path / "run") == ""


def test_a_used_folder_is_refused_and_one_with_a_lock_alone_is_empty(tmp_path):
    (tmp_path / ".lock").write_text("of something else")
    check_new(tmp_path)
    RunFolder(tmp_path).log(event="epoch", epoch=1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="must be a new or an empty folder"):
        RunFolder(tmp_path)
    (tmp_path / ".lock").unlink()
    with pytest.raises(ValueError, match="must be a new or an empty folder"):
        RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        RunFolder(tmp_path, resume=True)
    assert contents(tmp_path) == before and not (tmp_path / ".lock").exists(), "nothing is left in others' folders"


def test_a_run_that_comes_and_goes_meanwhile_is_seen(tmp_path, monkeypatch):
    class AfterAnother(folder_lock.FolderLock):
        def __init__(self, folder):
            super().__init__(folder)
            (folder / "config.yaml").touch()

    monkeypatch.setattr("adt_fast._runs.folder.FolderLock", AfterAnother)
    with pytest.raises(ValueError, match="must be a new or an empty folder"):
        RunFolder(tmp_path / "run")


def test_a_name_that_another_process_has_just_taken_is_passed_over(tmp_path, monkeypatch):
    names = iter([tmp_path / "taken", tmp_path / "free"])
    monkeypatch.setattr("adt_fast._runs.folder.name_by_time", lambda prefix: next(names))
    (tmp_path / "taken").mkdir()
    assert RunFolder.named_by_time("runs/any").path == tmp_path / "free"


@pytest.mark.parametrize(
    "written, holder", [(b'{"pid": 7, "host": "here", "time": "now"}\n', "process 7 on here since now"),
                        (b'{"pid": 7', "another process")],
)  # fmt: skip
def test_a_holder_may_need_a_moment_to_tell_who_it_is(written, holder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "_SECONDS_TO_WRITE", 0.3)
    with open(tmp_path / ".lock", "wb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.05, file.write, [written])
        timer.start()
        with pytest.raises(ValueError, match=f"is in use by {holder};"):
            RunFolder(tmp_path)
        timer.join()


# Where there is nothing to write to


def in_an_unwritable_folder(pipe, path, full):
    if full:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    elif os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    send_outcome(pipe, path)


@pytest.mark.parametrize("full, reason", [(True, "File too large"), (False, "Permission denied")])
def test_a_folder_that_cannot_be_written_to_is_an_error(full, reason, context):
    path = Path(tempfile.mkdtemp())  # one that any user can reach
    path.chmod(0o555)
    here, there = context.Pipe()
    process = context.Process(target=in_an_unwritable_folder, args=(there, path, full))
    process.start()
    process.join()
    assert reason in (words := here.recv()) and f"{path}/.lock" in words
    path.chmod(0o755)
    shutil.rmtree(path)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    class WithoutLocks:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(descriptor, operation):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for module in (WithoutLocks, None):
        monkeypatch.setattr(folder_lock, "fcntl", module)
        with pytest.warns(RuntimeWarning, match="without locks .* see to it that no other process writes there") as all:
            RunFolder(tmp_path / str(module))
        assert Path(all[0].filename).name == "test_run_folder.py"


# Commands

FLAGS = ["--method", "standard", "--train-limit", "40", "--batch-size", "16", "--test-limit", "8", "--epochs", "2",
         "--device", "cpu", "--save-every", "0"]  # fmt: skip


def train_haltingly(pipe, folder):
    """In its third minibatch, it waits to be told to go on."""
    torch.set_num_threads(1)
    step, steps = Trainer.step, []

    def halting(self, *batch, **options):
        steps.append(1)
        if len(steps) == 3:
            pipe.send("halted")
            pipe.recv()
        return step(self, *batch, **options)

    Trainer.step = halting
    os._exit(cli.main(["train", *FLAGS, "--output", str(folder)]))


def test_a_run_under_way_is_left_alone(context, tmp_path, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert cli.main(["train", *FLAGS, "--output", str(whole)]) == 0
    here, there = context.Pipe()
    process = context.Process(target=train_haltingly, args=(there, folder))
    process.start()
    there.close()  # so that a process that ends is not waited for
    assert here.recv() == "halted"
    before = contents(folder)
    for flags in (["--resume"], FLAGS, [*FLAGS, "--resume"]):
        assert cli.main(["train", "--output", str(folder), *flags]) == 2
        assert f"output {folder} is in use by process {process.pid} on" in capsys.readouterr().err
    assert cli.main(["evaluate", str(whole), "--test-limit", "8", "--output", str(folder)]) == 2
    assert f"output {folder} is in use by process {process.pid} on" in capsys.readouterr().err
    assert contents(folder) == before
    here.send("go on")
    process.join()
    assert process.exitcode == 0
    found, expected = load_file(folder / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_evaluation_under_way_is_left_alone(context, tmp_path, capsys):
    assert cli.main(["train", *FLAGS, "--output", "run"]) == 0
    flags = ["evaluate", "run", "--attacks", "fgsm", "--test-limit", "8", "--device", "cpu", "--output", "report"]
    with holding(context, tmp_path / "report") as (process, _):
        (tmp_path / "report" / "state.safetensors").write_bytes(b"of the other process")
        before = contents(tmp_path / "report")
        for resume in ([], ["--resume"]):
            assert cli.main([*flags, *resume]) == 2
            assert f"output report is in use by process {process.pid} on" in capsys.readouterr().err
        assert contents(tmp_path / "report") == before
    (tmp_path / "report" / "state.safetensors").unlink()
    assert cli.main(flags) == 0
    assert "report.json" in contents(tmp_path / "report")
    assert cli.main([*flags[:-1], "new", "--norm", "l1"]) == 2
    assert not (tmp_path / "new").exists(), "a bad setting leaves nothing behind"


def test_an_evaluation_holds_its_folder(context, tmp_path, capsys, monkeypatch):
    assert cli.main(["train", *FLAGS, "--output", "run"]) == 0
    refused = []
    monkeypatch.setattr(
        "adt_fast.commands.evaluate.evaluate", lambda *_, **__: refused.append(refusal(context, tmp_path / "report"))
    )
    with pytest.raises(AttributeError):  # there is no report
        cli.main(["evaluate", "run", "--attacks", "fgsm", "--test-limit", "8", "--output", "report"])
    assert len(refused) == 1 and f"in use by process {os.getpid()}" in refused[0]
    assert refusal(context, tmp_path / "report") == ""


# What ran


def test_a_run_tells_what_ran_it(tmp_path):
    arguments = ["train", *FLAGS, "--output", "my run"]
    assert cli.main(arguments) == 0
    recorded = yaml.safe_load((tmp_path / "my run" / "config.yaml").read_text())
    build = adt_fast.build_info()
    assert recorded["versions"] == {
        "adt_fast": adt_fast.__version__, "commit": build["commit"] or "unknown", "torch": torch.__version__,
        "python": platform.python_version(), "numpy": numpy.__version__, "safetensors": safetensors.__version__,
        "device": device_name(torch.device("cpu")), "threads": 1, "instruction_set": build["cpu_instruction_set"],
    }  # fmt: skip
    line = f"command: adt-fast train {' '.join(FLAGS)} --output 'my run'\n"
    assert line in (tmp_path / "my run" / "config.yaml").read_text(), "as a shell takes it"
    assert recorded["started"].endswith("+00:00")


def test_a_program_has_no_command(tmp_path):
    with command_line(["train"]):
        assert running_command() == "adt-fast train"
    RunFolder(tmp_path).write_config({"device": "cpu"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["command"] is None


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("threads", 7, "number of threads 1, and this is 7"),
        ("instruction_set", "avx1024", "instruction set .*, and this is avx1024"),
        ("device", "another", "device .*, and this is another"),
        ("commit", "0" * 40, "adt_fast's commit .*, and this is 0000"),
        ("torch", "1.0", "torch .*, and this is 1.0"),
        ("python", "2.7", None),
    ],
)
def test_going_on_elsewhere_is_a_warning(name, value, words, tmp_path, monkeypatch):
    RunCheckpoint(tmp_path).save({"state": 1})
    elsewhere = versions(torch.device("cpu")) | {name: value}
    monkeypatch.setattr("adt_fast._runs.checkpoint.versions", lambda device: elsewhere)
    checkpoint = RunCheckpoint(tmp_path)
    assert checkpoint.load() == {"state": 1}
    assert len(checkpoint.warnings) == (words is not None)
    if words is not None:
        assert re.search(f"last.safetensors was saved with {words}.*: the run may differ", checkpoint.warnings[0])


def test_threads_do_not_matter_to_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("adt_fast._runs.checkpoint.versions", lambda device: {"device": "gpu", "threads": 1})
    RunCheckpoint(tmp_path, "cuda").save({})
    monkeypatch.setattr("adt_fast._runs.checkpoint.versions", lambda device: {"device": "gpu", "threads": 2})
    for device, warnings in (("cuda", 0), ("cpu", 1)):
        checkpoint = RunCheckpoint(tmp_path, device)
        checkpoint.load()
        assert len(checkpoint.warnings) == warnings


# The commit


def git(*words, folder):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    finished = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return finished.stdout.strip()


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def commit_of(root):
    return runpy.run_path(str(root / "adt_fast" / "_commit.py"))["commit"]()


@pytest.fixture
def checkout(tmp_path):
    """A small package of this name, with this one's build files, and its commit."""
    (tmp_path / "checkout" / "adt_fast").mkdir(parents=True)
    shutil.copy(_commit.__file__, tmp_path / "checkout" / "adt_fast")
    (tmp_path / "checkout" / "adt_fast" / "__init__.py").write_text('__version__ = "1"\n')
    git("init", "-q", folder=tmp_path / "checkout")
    git("add", ".", folder=tmp_path / "checkout")
    git("commit", "-q", "-m", "First", folder=tmp_path / "checkout")
    return tmp_path / "checkout", git("rev-parse", "HEAD", folder=tmp_path / "checkout")


@needs_git
def test_the_commit_of_a_checkout(checkout, tmp_path, monkeypatch):
    root, head = checkout
    git("tag", "-a", "-m", "A tag", "v1", folder=root)
    (root / "adt_fast" / "_commit.txt").write_text("one noted in the sources is none")
    assert commit_of(root) == head
    git("worktree", "add", "-q", str(tmp_path / "worktree"), folder=root)
    git("init", "-q", str(tmp_path / "other"), folder=root)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert commit_of(root) == commit_of(tmp_path / "worktree") == head
    (root / "adt_fast" / "__init__.py").write_text("changed = True")
    assert commit_of(root) == f"{head}-dirty" and commit_of(tmp_path / "worktree") == head
    monkeypatch.setenv("PATH", "")
    assert commit_of(root) == ""


@needs_git
def test_the_commit_of_an_installed_package(checkout, tmp_path):
    """Within a checkout of something else, say a project that has its environment in its folder."""
    root, _ = checkout
    shutil.copytree(root / "adt_fast", root / "site-packages" / "adt_fast")
    assert commit_of(root / "site-packages") == ""
    (root / "site-packages" / "adt_fast" / "_commit.txt").write_text("c0ffee\n")
    assert commit_of(root / "site-packages") == "c0ffee"


@needs_git
@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")
def test_builds_note_the_commit(checkout, tmp_path):
    """A wheel from a checkout, and one from an sdist that has no git around it. Without the native module, which is not
    what this is about."""
    root, _ = checkout
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    (root / ".gitignore").write_text("*.egg-info/\n")
    git("add", ".", folder=root)
    git("commit", "-q", "-m", "Build files", folder=root)
    head = git("rev-parse", "HEAD", folder=root)

    def setup(*words, folder):
        run = subprocess.run([sys.executable, "setup.py", "-q", *words], cwd=folder, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr

    setup("build_py", "--build-lib", str(tmp_path / "built"), folder=root)
    assert commit_of(tmp_path / "built") == head
    setup("sdist", "--formats", "tar", "--dist-dir", str(tmp_path), folder=root)
    shutil.unpack_archive(next(tmp_path.glob("adt_fast-*.tar")), tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert commit_of(unpacked) == head
    setup("build_py", "--build-lib", str(tmp_path / "again"), folder=unpacked)
    assert commit_of(tmp_path / "again") == head
    assert not (root / "adt_fast" / "_commit.txt").exists() and commit_of(root) == head
