from projects.arc.ablate import ablate
from projects.arc.data import ArcData
from projects.arc.finetune import FinetuneOptions, finetune
from projects.arc.module import ArcModule
from shared.training import cli
from shared.training.verbs import Verb

if __name__ == "__main__":
    verbs = {"ablate": Verb(ablate), "finetune": Verb(finetune)}
    cli.main(ArcModule, ArcData, verbs=verbs, groups={"finetune": FinetuneOptions})
