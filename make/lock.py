"""Prints constraints.txt for this environment: the exact closure of our requirements, torch first, without CUDA's.

A CUDA machine and a CPU machine print the same lines: local versions (`+cpu`) are cut, and what only CUDA's torch
brings (nvidia-*, cuda-*, triton) is pinned by torch itself.
"""

import re
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CUDA = re.compile(r"nvidia|cuda|triton")


def closure(name: str, extras: frozenset[str], seen: dict[str, set[str]]) -> None:
    """Walks the installed requirements of a distribution and fills `seen` (name -> extras walked)."""
    for line in metadata.requires(name) or []:
        need = Requirement(line)
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        key, wanted = canonicalize_name(need.name), frozenset(need.extras) or frozenset({""})
        if key not in seen or not wanted <= seen[key]:
            seen.setdefault(key, set()).update(wanted)
            closure(need.name, wanted, seen)


def lines(root: str = "palimpsest") -> list[str]:
    """`name==version` for each distribution in the closure of root[all]."""
    seen: dict[str, set[str]] = {}
    closure(root, frozenset({"", "all"}), seen)
    names = sorted(name for name in seen if name != root and not CUDA.match(name))
    names.sort(key=lambda name: name != "torch")
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]


if __name__ == "__main__":
    print("\n".join(lines()))
