from projects.arc.ablate import AblateOptions, ablate
from projects.arc.data import ArcData
from projects.arc.finetune import FinetuneOptions, finetune
from projects.arc.module import ArcModule
from projects.arc.subsets import HardestOptions, hardest
from shared.training import cli
from shared.training.verbs import Verb

if __name__ == "__main__":
    verbs = {
        "ablate": Verb(ablate, AblateOptions),
        "finetune": Verb(finetune),
        "hardest": Verb(hardest, HardestOptions),
    }
    cli.main(ArcModule, ArcData, verbs=verbs, groups={"finetune": FinetuneOptions})
