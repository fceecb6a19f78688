"""``adt-fast evaluate``"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from .._runs.folder import checkpoint_of
from .._runs.folder_lock import FolderLock
from .._runs.generator_attacks import check_generator_attack, fitted_attack, is_generator_attack
from .._runs.trained_model import TrainedModel
from .._settings.arguments import Folder, argument, default_is
from ..checkpoint import load_model
from ..config import TrainedModelConfig
from ..evaluation import AttackLike, RobustReport, accuracy_table, create_attack, evaluate, split_attack_names
from ..evaluation.outcomes import check_state
from ..experiment import CLOSING_ATTACKS
from ..input_gradient import EngineOptions, Precision
from .command import begun

_STATE_NAME = "state.safetensors"


@dataclass(frozen=True)
class Evaluate(TrainedModelConfig):
    """Report a trained classifier's accuracy, natural, under attacks, and under all of them together (A_rob)."""

    attacks: Annotated[str, tyro.conf.arg(metavar="paper|NAME,...")] = CLOSING_ATTACKS
    """Attacks with commas between them, or paper for those of the paper's Table 1: fgsm, pgd-20, pgd-100, mim-20,
    cw-30, feaattack. Others are spsa-256 (samples), exp, exp-am, imp-am and l2l (whose generator is trained first),
    transfer-NAME (see --source) and autoattack. Options may follow: pgd-20:restarts=5:step_size=1/255."""

    output: Annotated[Path | None, Folder, default_is("none")] = None
    """Folder for the report (JSON, Markdown, HTML) and for the state to resume from."""

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on where an evaluation with the same settings and --output was stopped."""

    survivors_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Attack only what withstood the attacks before: A_rob comes sooner, and an attack's own accuracy is not known."""

    source: Annotated[Path | None, argument(Path, "RUN_OR_CHECKPOINT"), default_is("none")] = None
    """Model on which the images of transfer- attacks are made."""

    precision: Precision = "fp32"
    """Arithmetic of the model while it is attacked. In 16 bits a rounding error could pass for robustness."""

    examples: int = 8
    """How many images the report shows with their perturbations."""

    def __call__(self) -> None:
        names = split_attack_names(self.attacks)
        if self.resume and self.output is None:
            raise ValueError("output must be given with --resume: the folder where the state is")
        lock = None if self.output is None else FolderLock.again(self.output)  # first: in use, all else may change
        check_state(self._in_output(_STATE_NAME), self.resume)
        trained = TrainedModel(self)
        source = None if self.source is None else load_model(checkpoint_of(self.source))[0].to(trained.device)
        self._check_attacks(trained, names, source)
        with nullcontext() if self.output is None else lock or FolderLock(self.output):
            check_state(self._in_output(_STATE_NAME), self.resume)  # nobody else writes there from here on
            print(trained.headline, flush=True)
            with begun(self._how_to_go_on()):
                report = self._report(trained, names, source)
                files = [] if self.output is None else report.save(self.output)
        print(f"\n{accuracy_table(report.accuracies())}")
        for warning in report.warnings:
            print(f"\nwarning: {warning}")
        if files:
            print(f"\nsaved {', '.join(file.name for file in files)} to {self.output}{_missing(files)}")

    def _check_attacks(self, trained: TrainedModel, names: tuple[str, ...], source: nn.Module | None) -> None:
        """Looks at all of them, before a generator is trained for hours."""
        pool = next(iter(trained.loader))
        engine = EngineOptions(precision=self.precision)
        for name in names:
            if is_generator_attack(name):
                check_generator_attack(name, trained)
            else:
                create_attack(name, trained.model, trained.epsilon, norm=trained.norm, source=source, engine=engine,
                              pool=pool)  # fmt: skip

    def _in_output(self, name: str) -> Path | None:
        return None if self.output is None else self.output / name

    def _report(self, trained: TrainedModel, names: tuple[str, ...], source: nn.Module | None) -> RobustReport:
        attacks: dict[str, str | AttackLike] = dict(zip(names, names))
        for name in filter(is_generator_attack, names):
            path = self._in_output(re.sub("[:/]", "-", name) + ".safetensors")
            attacks[name] = fitted_attack(name, trained, path, progress=None)
        return evaluate(
            trained.model, trained.data, attacks, epsilon=trained.epsilon, norm=trained.norm,
            batch_size=self.batch_size, seed=self.seed, survivors_only=self.survivors_only, source=source,
            engine=EngineOptions(precision=self.precision),
            state=self._in_output(_STATE_NAME), resume=self.resume,
            examples=self.examples, progress=None,
        )  # fmt: skip

    def _how_to_go_on(self) -> str:
        if self.output is None:
            return "interrupted; with --output, an evaluation can be resumed"
        return f"interrupted; the same command with --resume goes on from {self.output}"


def _missing(files: list[Path]) -> str:
    if any(file.suffix == ".html" for file in files):
        return ""
    return '; for an HTML report with figures: pip install "adt_fast[report]"'
