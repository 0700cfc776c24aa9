"""E2E restaurant descriptions (Novikova et al. 2017) in the form `name : Alimentum | area : city centre||text`.

Several texts share one field set; a split keeps them together. Knows the format and the slots, no vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from packages.text.documents import Document, files, key, lines


def documents(path: str) -> Iterator[Document]:
    """Every text with its slots; the group is the field set, whatever the order of its fields.

    ValueError: a line of another form, with file and number.
    """
    for file in files(path, ".txt"):
        for number, line in enumerate(lines(file), 1):
            if line.strip():
                yield _document(line, f"{file}, line {number}")


def _document(line: str, where: str) -> Document:
    fields, bars, text = line.partition("||")
    if not bars or not text.strip():
        raise ValueError(f"{where}: {line[:40]!r}; wanted `name : value | name : value||text`")
    slots = dict(sorted(parse(fields, where).items()))
    group = key(*(f"{name}={value}" for name, value in slots.items()))
    return Document(text.strip(), group, slots, joined(slots))


def parse(fields: str, where: str = "fields") -> dict[str, str]:
    """`name : Alimentum | food : Thai` as {"name": "Alimentum", "food": "Thai"}. ValueError: a part without a colon."""
    slots = {}
    for part in fields.split("|"):
        name, colon, value = (each.strip() for each in part.partition(":"))
        if not (name and colon and value):
            raise ValueError(f"{where}: the field {part.strip()!r} is not `name : value`; put a name before a colon")
        slots[name] = value
    return slots


def joined(slots: Mapping[str, str]) -> str:
    """The fields as text again; parse(joined(slots)) == slots."""
    return " | ".join(f"{name} : {value}" for name, value in slots.items())


def by_fields(found: Iterable[Document]) -> dict[str, list[Document]]:
    """The texts of each field set, in their order: references of one meaning, paraphrases of each other."""
    sets: dict[str, list[Document]] = defaultdict(list)
    for document in found:
        sets[document.group].append(document)
    return dict(sets)


def slot_values(found: Iterable[Document]) -> dict[str, tuple[str, ...]]:
    """All values of every slot, both sorted: the attributes a label counts. Ask it of the training part."""
    values: dict[str, set[str]] = defaultdict(set)
    for document in found:
        for name, value in document.slots.items():
            values[name].add(value)
    return {name: tuple(sorted(values[name])) for name in sorted(values)}


def labels(slots: Mapping[str, str], values: Mapping[str, Sequence[str]]) -> list[int]:
    """For every slot of `values`, the place of the value among those known; -1: absent, or never seen in training."""
    return [known.index(slots[name]) if slots.get(name) in known else -1 for name, known in values.items()]
