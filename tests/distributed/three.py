"""What three ranks do; the tests that read it are in test_three.py."""

from pathlib import Path
from typing import Any

from shared.training import cli
from shared.training.console import quieten
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule
from tests.distributed.facts import facts
from tests.distributed.group import check, main
from tests.distributed.project import Setting, train
from tests.distributed.settings import fits, template


@check
def k1(folder: Path) -> Any:
    return facts(train(folder, "run", fits()["k1"]))


@check
def evaluated(folder: Path) -> Any:
    return facts(train(folder, "run", fits()["evaluated"]))


@check
def cut(folder: Path) -> Any:
    return facts(train(folder, "run", Setting(shard=True)))


@check
def template_on_three(folder: Path) -> Any:
    cli.main(TemplateModule, TemplateData, template(folder, 3))


if __name__ == "__main__":
    quieten()
    main()
