"""After `make setup SYSTEM=1`: imports the core packages of pyproject.toml, prints versions, fails if one is missing.

Knows names and versions only; whether a version lies in its range is checked where `packaging` is at hand.
"""

import re
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

IMPORTED_AS = {"pyyaml": "yaml"}
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    """`jsonargparse[signatures]>=4.39,<5` -> `jsonargparse`."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def installed(requirement: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(name_of(requirement))
    except metadata.PackageNotFoundError:
        return None


def fits(requirement: str, version: str) -> bool:
    """Whether the version lies in the requirement's range (True where nobody can tell)."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def loads(requirement: str) -> str:
    """Why the package does not import; empty when it does."""
    name = name_of(requirement)
    try:
        import_module(IMPORTED_AS.get(name, name))
    except Exception as error:
        return f"does not import: {error}"
    return ""


def core() -> list[str]:
    """Prints the core packages; returns those that are missing or broken."""
    missing = []
    for requirement in PROJECT["dependencies"]:
        version = installed(requirement)
        trouble = loads(requirement) if version else "missing"
        range_note = "" if not version or fits(requirement, version) else "outside the range"
        print(f"  {requirement:38} {version or ''}  {trouble or range_note}".rstrip())
        missing += [requirement] if trouble else []
    return missing


def extras() -> None:
    """Prints one line for each extra of which something is missing."""
    for name, requirements in PROJECT["optional-dependencies"].items():
        missing = [each for each in requirements if not each.startswith(PROJECT["name"]) and not installed(each)]
        if missing:
            print(f"  without {', '.join(missing)}: what the extra [{name}] brings is off")


if __name__ == "__main__":
    missing = core()
    extras()
    if missing:
        sys.exit(f"Missing: {', '.join(missing)}. Carry them in .wheels/ (make wheels WHEELS=...) or install them.")
