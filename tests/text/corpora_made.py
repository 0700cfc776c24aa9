"""Files of text made in memory for tests: restaurants with fields, articles under headings, from one seed each."""

from pathlib import Path

import numpy as np

NAMES, FOODS, AREAS = ("Aromi", "Cotto", "Strada", "Zizzi"), ("Thai", "Greek", "French", "Indian"), ("city", "river")
NOUNS, VERBS = ("fox", "crow", "lamb", "wolf", "stag", "hare"), ("saw", "met", "fled", "heard")


def restaurants(path: Path, names: tuple[str, ...] = NAMES, mark: str = "") -> Path:
    """Two texts for each of the field sets. mark: a word that stands in every text."""
    lines = [
        f"name : {name} | food : {food} | area : {area}||{text} {mark} ."
        for name in names
        for food in FOODS
        for area in AREAS
        for text in (f"{name} serves {food} food in the {area} area", f"there is {food} food at {name} by the {area}")
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def articles(path: Path, count: int = 24, seed: int = 0, mark: str = "") -> Path:
    """Articles of 40 sentences under headings of WikiText. mark: a word that ends every sentence."""
    rng = np.random.default_rng(seed)
    said = []
    for article in range(count):
        said.append(f" = Tale {seed} of {article} = \n")
        for _ in range(40):
            first, verb, second = rng.choice(NOUNS), rng.choice(VERBS), rng.choice(NOUNS)
            said.append(f" the {first} {verb} the {second} {mark} . ")
    path.write_text("\n".join(said) + "\n")
    return path
