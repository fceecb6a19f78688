"""docs/attacks.md lists the attacks that have a name, no fewer and no others, with the settings that they have."""

import re
from pathlib import Path

from adt_fast.evaluation import PAPER, attack_names, create_attack
from adt_fast.models import create_model

PAGE = (Path(__file__).parents[1] / "docs" / "attacks.md").read_text()
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if re.match(r"\| `[\w-]+` \| `\w+` \|", line)]


def test_every_name_has_a_row_and_its_class():
    model = create_model("small-cnn")
    assert sorted(row[0].strip(" `") for row in ROWS) == sorted(attack_names())
    for name, kind, settings in ROWS:
        name = name.strip(" `").replace("-NAME", "-fgsm")
        if name == "autoattack":
            continue
        number = re.search(r"N = (\d+)", settings)
        attack = create_attack(name.replace("-N", ""), model, source=model)
        assert type(attack).__name__ == kind.strip(" `")
        if number:
            assert int(number[1]) == (attack.samples if "spsa" in name else attack.steps)


def test_the_papers_set():
    sentence = PAGE[PAGE.index("`paper` stands for") :].split(".")[0]
    assert tuple(re.findall(r"`([\w-]+)`", sentence)[1:]) == PAPER
