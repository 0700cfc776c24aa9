"""`python -m shared.training.template fit --config configs/template/base.yaml --config configs/template/nano.yaml`"""

from shared.training import cli
from shared.training.template.data import TemplateData
from shared.training.template.module import TemplateModule

if __name__ == "__main__":
    cli.main(TemplateModule, TemplateData)
