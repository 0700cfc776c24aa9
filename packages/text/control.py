"""Whether texts say what they were given: BLEU against the references of the same field set, and the share of fields
whose value stands in the text; beside texts that were written for something else. Knows words, no model.

    rows = faithful(said, Asked(held_out, training))      # said[n] was written for asked.groups[n % len(asked.groups)]
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from packages.text.bleu import against_references as bleu
from packages.text.documents import Document
from packages.text.e2e import by_fields
from packages.text.empirical import spread
from packages.text.rows import Words
from packages.text.table import Row

UNSAID = ("yes", "no")  # values that no text says; fields that have them are not counted
ASKED = 5000  # groups of the training part, at most, that the nearest is looked for in


def says(text: Words, value: str) -> bool:
    """Whether the words of a value stand in a text, side by side and in any case."""
    return f" {' '.join(value.split())} ".lower() in f" {' '.join(text)} ".lower()


def present(texts: Iterable[tuple[Words, Mapping[str, str]]]) -> dict[str, tuple[int, int]]:
    """Of each field, and of all under "": how many of its values stand in their texts, of how many."""
    said, asked = Counter[str](), Counter[str]()
    for words, slots in texts:
        for name, value in slots.items():
            if value not in UNSAID:
                asked.update(("", name))
                said.update(("", name) if says(words, value) else ())
    return {name: (said[name], asked[name]) for name in sorted(asked)}


class Asked:
    """What is asked for: groups of documents that were written for the same, by their keys, so in no order of a file.

    held_out: those in question. training: where the nearest is retrieved from; may be empty.
    """

    def __init__(self, held_out: Iterable[Document], training: Iterable[Document]):
        self.groups = [group for _, group in sorted(by_fields(held_out).items())]
        self.training = list(by_fields(training).values())

    @cached_property
    def nearest(self) -> list[list[Document]]:
        """Of each group, that of the training part which has the most in common with it (fields, else words)."""
        known = [(parts(group[0]), group) for group in spread(self.training, min(len(self.training), ASKED))]
        wanted = [parts(group[0]) for group in self.groups]
        return [max(known, key=lambda each: len(mine & each[0]) / len(mine | each[0]))[1] for mine in wanted]

    def floors(self, count: int) -> Iterator[tuple[str, list[Words | None]]]:
        """Texts of people for the same groups in turn: one of the others of the group, which must then do without it
        as a reference; one of the nearest; one of the next group."""
        turns = [divmod(n, len(self.groups)) for n in range(count)]
        yield "true", [self.text(self.groups[g], turn) if len(self.groups[g]) > 1 else None for turn, g in turns]
        if self.training:
            yield "nearest", [self.text(self.nearest[g], turn) for turn, g in turns]
        yield "other", [self.text(self.groups[(g + 1) % len(self.groups)], turn) for turn, g in turns]

    def text(self, group: Sequence[Document], turn: int) -> Words:
        return group[turn % len(group)].text.split()

    def references(self, n: int, without: Words | None = None) -> list[Words]:
        """Of text n. without: one of them that is itself in question, left out once."""
        found: list[Words] = [document.text.split() for document in self.groups[n % len(self.groups)]]
        if without is not None:
            found.remove(list(without))
        return found


def parts(document: Document) -> frozenset[str]:
    """What a document was written for, in parts that can be compared."""
    fields = [f"{name}={value}" for name, value in document.slots.items()]
    return frozenset(fields or document.given.split())


def faithful(said: Sequence[Words], asked: Asked) -> list[Row]:
    """bleu, fields and fields/<name> of texts, beside those of people's texts."""
    found = {"": measured(list(said), asked, own=False)}
    found |= {name: measured(texts, asked, own=name == "true") for name, texts in asked.floors(len(said))}
    rows = []
    for name, (value, n) in found[""].items():
        floors = {floor: each[name][0] for floor, each in found.items() if floor and name in each}
        rows.append(Row(name, value, n, "share", "texts" if name == "bleu" else "values", floors))
    return rows


def measured(texts: Sequence[Words | None], asked: Asked, own: bool) -> dict[str, tuple[float, int]]:
    """Values and what they are counted on, by name. own: the texts are themselves among the references."""
    some = [(n, words) for n, words in enumerate(texts) if words is not None]
    references = [asked.references(n, words if own else None) for n, words in some]
    found = {"bleu": (bleu([words for _, words in some], references), len(some))} if some else {}
    slots = ((words, asked.groups[n % len(asked.groups)][0].slots) for n, words in some)
    for name, (said, count) in present(slots).items():
        found[f"fields/{name}" if name else "fields"] = said / count, count
    return found
