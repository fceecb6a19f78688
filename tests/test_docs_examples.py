"""The examples of README.md and docs/ run: Python and commands, in their order, where the files are that they name.

The words of an example all stay and have to be right. What makes them quick (SMALLER), the names that they take for
granted (GIVEN), and what cannot be run here (NOT_RUN) are below; an example that is none of these fails.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from test_data import write_cifar10

from adt_fast import cli
from adt_fast.checkpoint_conversion import convert_checkpoint
from adt_fast.commands import COMMANDS
from adt_fast.config import TrainConfig
from adt_fast.data import cifar
from adt_fast.experiment import TrainingRun

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.reference.options import command_options

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

NOT_RUN = {
    "pre-commit install": "changes the checkout",
    "python -m studies": "takes an afternoon; tests/test_studies.py runs a small one",
    "pip install": "changes the environment that the tests run in",
    "pytest": "these are the tests",
    "python -m pytest": "these are the tests",
    "ruff": "looks at all sources, whatever the page",
    "cmake": "builds the native core",
    "python -m tools.": "writes into docs/, as tests/test_reference_pages.py compares",
    "python -m benchmarks.": "tests/test_benchmarks.py and its neighbours run them, smaller",
    "benchmarks/gpu_suite.sh": "is for GPU machines, and takes an hour",
    "tensorboard": "serves pages until it is stopped",
    "torchrun": "starts processes, as tests/test_distributed_training.py does",
}
"""Commands, by how they begin, and why they are not run."""

_TRAIN = "--model wrn-10-1 --epochs 1 --train-limit 32 --test-limit 8 --batch-size 16"
_DIGITS = "--epochs 1 --train-limit 32 --test-limit 8"

SMALLER = {
    r"train .*--resume": "",  # takes the settings of the run
    r"train .*--validation-images": f"{_TRAIN} --validation-images 8",
    r"train .*--data-dir DIR": _TRAIN,
    r"train .*--method \S+-am": f"{_DIGITS} --generator-width 8",
    r"train": _DIGITS,
    r"evaluate": "--test-limit 4",
    r"distribution": "--tried 10 --test-limit 8",
    r"landscape": "--steps 3 --test-limit 8",
    r"transfer": "--test-limit 4",
    r"entropy-sweep": f"{_DIGITS} --generator-width 8 --entropy-samples 2",
}
"""Commands, and the flags that are put behind them; the first that fits."""

SMALLER_PYTHON = {
    '"wrn-28-10"': '"wrn-10-1"',
    '"cuda"': '"cpu"',
    "epochs=76": "epochs=1",
    "fullgraph=True)": 'fullgraph=True, backend="aot_eager")',
    'load_dataset("cifar10", "test", data_dir="DIR")': 'load_dataset("cifar10", "test", data_dir="DIR", limit=4)',
}
"""Texts in Python examples, and what stands in for them."""

GIVEN = {
    "attacks.md": """
        images, labels = torch.rand(2, 3, 32, 32), torch.tensor([3, 5])
    """,
    "training.md": """
        from adt_fast import ADTExpTrainer
        from adt_fast.data import BatchLoader, load_dataset
        from adt_fast.models import create_model
        loader = BatchLoader(load_dataset("digits", "train", limit=32), 16)
        model = create_model("small-cnn", in_channels=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        trainer = ADTExpTrainer(model, optimizer)
        from adt_fast.config import TrainConfig
        from adt_fast.experiment import TrainingRun
        config = TrainConfig("standard", epochs=1, train_limit=32, test_limit=8)
    """,
}
"""What the Python of a page takes for granted."""

ONE_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""The environment of a process that torchrun has started alone."""

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; line is that of its first line, from 1."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    fences = re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    return [Block(fence[1].strip(), fence[2], text[: fence.start(2)].count("\n") + 1) for fence in fences]


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with what the examples name, and the md5 of the files of its CIFAR-10."""
    folder = tmp_path_factory.mktemp("world")
    data = folder / "DIR" / "cifar-10-batches-py"
    write_cifar10(data, count=10)
    md5s = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in data.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        publish(md5s, patch)
        config = TrainConfig(
            "standard", "cifar10", folder / "DIR", model="wrn-10-1", epochs=1, train_limit=32, test_limit=8,
            device="cpu", output=folder / "RUN",
        )  # fmt: skip
        run = TrainingRun(config)
        run.train()
        run.evaluate()
    shutil.copytree(folder / "RUN", folder / "RUN_OR_CHECKPOINT")
    for name in ("FOREIGN.pt", "theirs.pt"):
        convert_checkpoint(folder / "RUN" / "model.safetensors", folder / name, layout="wrn", normalization="drop")
    return folder, md5s


def publish(md5s: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    """From here on, files of these sums are the published ones."""
    for files in cifar._CIFAR10.files.values():
        for name in files:
            patch.setitem(files, name, md5s[name])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples(page, world, tmp_path, monkeypatch, capsys):
    folder, md5s = world
    publish(md5s, monkeypatch)
    for module in ("wandb", "torch.utils.tensorboard"):  # tests/test_loggers.py has the real ones, where they are
        monkeypatch.setitem(sys.modules, module, MagicMock(**{"init.return_value.step": 0}))
    for name, value in {**ONE_OF_ONE, "ADT_FAST_DATA": str(folder / "DIR")}.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    namespace = {"torch": torch}
    exec(textwrap.dedent(GIVEN.get(page.name, "")), namespace)
    for block in blocks(page):
        place = f"{page.name}, line {block.line}"
        if block.language == "python":
            run_python(block, page, namespace)
        elif block.language == "":
            for command in commands(block):
                run_command(command, place, capsys)
        else:
            assert block.language == "text", f"{place}: examples are python, or commands in a block without a language"


def run_python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    text = block.text
    for theirs, ours in SMALLER_PYTHON.items():
        text = text.replace(theirs, ours)
    exec(compile("\n" * (block.line - 1) + text, page.name, "exec"), namespace)


def commands(block: Block) -> list[list[str]]:
    """The words of each command; && is between two on a line."""
    lines = [line for text in block.text.replace("\\\n", " ").splitlines() for line in text.split(" && ")]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_command(words: list[str], place: str, capsys: pytest.CaptureFixture) -> None:
    line = " ".join(words)
    if words[0] != "adt-fast":
        assert any(line.startswith(beginning) for beginning in NOT_RUN), f"{place}: neither run nor in NOT_RUN: {line}"
        return
    smaller = next((flags for pattern, flags in SMALLER.items() if re.match(pattern, " ".join(words[1:]))), "")
    status = cli.main([*words[1:], *smaller.split()])
    output = capsys.readouterr()
    assert status == 0, f"{place}: {line} {smaller}\n{output.out}{output.err}"


def test_commands_in_the_text_have_the_options_they_name():
    for page in PAGES:
        for words in map(str.split, re.findall(r"`adt-fast ([^`]+)`", page.read_text())):
            known = [option.name for option in command_options(COMMANDS[words[0]])] if words[0] in COMMANDS else []
            unknown = {word for word in words if word.startswith("--")} - {*known, "--help"}
            assert not unknown and (known or words[0] in (*COMMANDS, "COMMAND")), f"{page.name}: adt-fast {words}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name} links to {target}, which is not there"
            assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}: no such heading"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
