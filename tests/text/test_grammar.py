"""The grammar: one sentence per (seed, index), exact probabilities of what it draws."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from packages.text.grammar import Grammar
from packages.text.philox import philox

ROOT = Path(__file__).parents[2]
LEVELS = ["micro", "small", "long"]
KNOWN_ANSWERS = [  # Random123, philox4x32-10: counter, key, output
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@cache
def grammar(level: str) -> Grammar:
    return Grammar(level)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, output):
    drawn = philox(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(word[0]) for word in drawn) == output


@pytest.mark.parametrize("level", LEVELS)
def test_a_sentence_is_the_same_in_any_company(level):
    indices = [10**9, 3, 2**40, 17, 3]
    together = grammar(level).samples(5, indices)
    assert together == [grammar(level).sample(5, index) for index in indices]
    assert len({sentence.words for sentence in together}) == 4


PRINT = """
import hashlib; from packages.text.grammar import Grammar
print(hashlib.sha256(Grammar({level!r}).ids(1, range(500)).tobytes()).hexdigest())
"""


@pytest.mark.parametrize("level", LEVELS)
def test_a_sentence_is_the_same_in_any_process(level):
    digests = {
        subprocess.run(
            [sys.executable, "-c", PRINT.format(level=level)],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
