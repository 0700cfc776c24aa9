from shared.training import cli
from tests.cli.tiny.module import TinyData, TinyModule

if __name__ == "__main__":
    cli.main(TinyModule, TinyData)
