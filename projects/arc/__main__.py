from projects.arc.ablate import AblateOptions, ablate
from projects.arc.data import ArcData
from projects.arc.module import ArcModule
from projects.arc.subsets import HardestOptions, hardest
from shared.training import cli
from shared.training.verbs import Verb

if __name__ == "__main__":
    verbs = {"ablate": Verb(ablate, AblateOptions), "hardest": Verb(hardest, HardestOptions)}
    cli.main(ArcModule, ArcData, verbs=verbs)
