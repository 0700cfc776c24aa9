from projects.arc.data import ArcData
from projects.arc.module import ArcModule
from shared.training import cli

if __name__ == "__main__":
    cli.main(ArcModule, ArcData)
