import sys

from projects.text.ablation import AblationOptions, ablation
from projects.text.commands import DenoiseOptions, calibrate, denoise, schedules, spelled
from projects.text.data import TextData
from projects.text.goals import GoalsOptions, goals
from projects.text.module import TextDiffusion
from projects.text.sampling import Sampling
from projects.text.statistics import StatisticsOptions, statistics
from projects.text.sweep import SamplerOptions, sampler
from shared.training import cli
from shared.training.verbs import Verb

if __name__ == "__main__":
    verbs = {
        "ablation": Verb(ablation, AblationOptions),
        "calibrate": Verb(calibrate),
        "denoise": Verb(denoise, DenoiseOptions),
        "goals": Verb(goals, GoalsOptions),
        "sampler": Verb(sampler, SamplerOptions),
        "schedules": Verb(schedules),
        "statistics": Verb(statistics, StatisticsOptions),
    }
    cli.main(TextDiffusion, TextData, spelled(sys.argv[1:]), verbs=verbs, groups={"sampling": Sampling})
