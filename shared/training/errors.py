"""A user's mistake, told in at most six lines: what was seen, what was wanted, what to do.

Knows how jsonargparse words its refusals and turns them into a sentence with the key, the file and line the value came
from and the nearest valid key (difflib). Does not know what any key means.
"""

import difflib
import errno
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from shared.training.interrupts import Stopped, stoppable

if TYPE_CHECKING:
    from shared.training.layers import Layers

MAX_LINES = 6
CALLED_HERE = {"global_batch": "batch_size", "learning_rate": "lr"}  # names from elsewhere, which no spelling leads to
EXIT_CODE = 2
GO_ON = "All that is under its name is whole: give the same command again (a training goes on with RESUME=1 RUN=)."
PATIENCE = 2.0  # seconds that a rank gives rank 0 to make the same mistake
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOLD = "palimpsest/told"


class Mistake(ValueError):
    """Something the user can put right. The text is the whole message, shown without a traceback (DEBUG=1 shows it)."""


@contextmanager
def told() -> Iterator[None]:
    """Print a Mistake raised inside as plain lines on stderr, once for all ranks, and leave with exit code 2. A full
    disk is one, too; what a rank suffers because another has told its mistake and left is none. SIGINT and SIGTERM
    end what is inside, in a sentence.
    """
    try:
        with stoppable():
            yield
    except Stopped as stopped:
        if _is_first():
            print(f"Stopped by {stopped.name}. {GO_ON}", file=sys.stderr, flush=True)
        raise
    except Exception as error:
        text = _sentence(error)
        if os.environ.get("DEBUG") or (text is None and not _is_told()):
            raise
        if text is not None and (speaker := _speaker()) is not None:
            print("\n".join((speaker + text).splitlines()[:MAX_LINES]), file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from error


def _sentence(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.errno in FULL:
        return f"The disk refuses to take more ({error}). Make room, then try again."
    return str(error) if isinstance(error, Mistake) else None


def _board() -> Any:
    """What the ranks read and write together; None before they have met."""
    import torch.distributed as dist

    met = dist.is_available() and dist.is_initialized()
    return dist.distributed_c10d._get_default_store() if met else None


def _is_told() -> bool:
    """Whether a rank has told a mistake, or the board has gone with rank 0."""
    try:
        board = _board()
        return board is not None and board.check([_TOLD])
    except RuntimeError:
        return True


def _is_first() -> bool:
    """Whether this is the first rank of its node."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def _speaker() -> str | None:
    """What this rank puts before its mistake; None where another tells it. Before ranks have met, the first of each
    node speaks: they read one command line. Later rank 0 does at once, and any other if rank 0 goes on as before.
    """
    if (board := _board()) is None:
        return "" if _is_first() else None
    import torch.distributed as dist

    rank = dist.get_rank()
    if rank:
        time.sleep(PATIENCE)
        if _is_told():
            return None
    board.set(_TOLD, "")
    return f"Rank {rank}: " if rank else ""


@contextmanager
def blamed_on(layers: "Layers") -> Iterator[None]:
    """Turn what a constructor refuses into a Mistake that says where the value was set."""
    try:
        yield
    except Mistake:
        raise
    except ModuleNotFoundError as error:
        raise missing_library(error) from error
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise Mistake(_at(layers.origin_of_message(str(error))) + _plain(error)) from error


def missing_library(error: ModuleNotFoundError) -> Mistake:
    """The sentence for a library that is not installed; names the extra of this distribution that brings it."""
    name = (error.name or str(error)).split(".")[0]
    extra = _extra_with(name)
    wanted = f'pip install -e ".[{extra}]" (or `make setup EXTRAS={extra}`)' if extra else f"pip install {name}"
    return Mistake(f"The library `{name}` is not installed and this configuration needs it. Do: {wanted}.")


def nearest(word: str, known: Iterable[str], quote: str = "`{}`") -> str:
    """' Did you mean `x`?' for the closest known word, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {quote.format(close[0])}?" if close else ""


def choices(names: Iterable[str]) -> str:
    """'a, b or c', sorted as given."""
    listed = list(names)
    return " or ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]])) or "nothing"


def explain(message: str, parser: Any, layers: "Layers") -> Mistake:
    """The Mistake behind a parser's refusal: an unknown key or flag first, else the value the message complains of."""
    known = known_keys(parser, layers.classes())
    for key, origin, is_flag in layers.origins():
        if not _is_known(_bare(key), known):
            shown, quote = (f"flag `--{key}`", "`--{}`") if is_flag else (f"key `{key}`", "`{}`")
            return Mistake(f"{_at(origin)}there is no {shown}.{_hint(_bare(key), known, quote)}")
    return _refused_value(message, layers)


def known_keys(parser: Any, classes: dict[str, str]) -> set[str]:
    """Every dotted key `parser` accepts, without `init_args`, including those of the classes the layers name."""
    keys = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    for key, class_path in classes.items():
        keys |= {f"{key}.{inner}" for inner in _class_keys(class_path)}
    return keys


def _class_keys(class_path: str) -> set[str]:
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(getattr(__import__(module, fromlist=[name]), name), fail_untyped=False)
    except (ImportError, AttributeError, ValueError):
        return set()  # the class itself is the mistake; the parser's message says so
    return {"class_path", "dict_kwargs", *known_keys(parser, {})}


def _is_known(key: str, known: set[str]) -> bool:
    key = key.rstrip("+")
    if key in known or any(other.startswith(key + ".") for other in known):
        return True
    owner = next((parent for parent in _parents(key) if parent in known), "")
    is_group = any(other.startswith(owner + ".") and not other.endswith(".help") for other in known)
    return bool(owner) and not is_group  # a value with keys of its own, such as a class nobody has named yet


def _parents(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _hint(key: str, known: set[str], quote: str) -> str:
    """The nearest key beside it, else one with the same last part, else the nearest anywhere."""
    parent = next((p for p in _parents(key) if any(k.startswith(p + ".") for k in known)), "")
    siblings = sorted(k for k in known if k.startswith(parent + ".")) if parent else sorted(known)
    leaf = key.rpartition(".")[2]
    if (called := f"{parent}.{CALLED_HERE.get(leaf)}") in known:
        return f" Did you mean {quote.format(called)}?"
    same_leaf = sorted(k for k in known if k.rpartition(".")[2] == leaf)
    if same_leaf and not parent:
        return f" Did you mean {quote.format(same_leaf[0])}?"
    return nearest(key, siblings, quote) or nearest(key, sorted(known), quote)


def _refused_value(message: str, layers: "Layers") -> Mistake:
    if found := re.search(r"argument --(\S+): expected", message):
        return Mistake(f"Command line: the flag `--{found[1]}` has no value. Give it one: `--{found[1]} VALUE`.")
    if found := re.search(r"unrecognized arguments: (.*)", message):
        return Mistake(f"Command line: `{found[1]}` is not a flag. Flags start with --, as in --optim.lr 3e-4.")
    if found := re.search(r"are required: (.*)", message):
        return Mistake(f"No layer sets `{found[1]}`, which has no default. Set it in a config or by a flag.")
    key = found[1] if (found := re.search(r'Parser key "([^"]+)"', message)) else ""
    where, message = _at(layers.origin(key)), _CHOICE_OR_NONE.sub(r"\1. Got value: ", message)
    if found := re.search(r"Expected an? (.*)\. Got value: (.*)", message):
        value = found[2].strip()
        hint = nearest(value, re.findall(r"'(\w+)'", found[1]) if "Literal" in found[1] else [])
        return Mistake(f"{where}`{key}` is {value!r}; wanted {_type_name(found[1])}.{hint}")
    return Mistake(f"{where}`{key}` is refused: {_essence(message)}")


_CHOICE_OR_NONE = re.compile(  # what may also be left out is refused as the choice it is
    r"Does not validate.*Errors:\s*- (Expected an? \S*Literal[^\n]*)\n\s*- Expected a <class 'NoneType'>\n"
    r".*Given value: ",
    re.DOTALL,
)


def _type_name(text: str) -> str:
    """'a number' for "<class 'float'>"; the choices of a Literal; else the type as it is written."""
    if found := re.search(r"Literal\[(.*)\]", text):
        return f"one of {found[1]}"
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return _TYPES.get(name, name)


_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "tuple": "a list"}


def _essence(message: str) -> str:
    """What the parser found wrong, without the union it tried in vain."""
    if found := re.search(r"Problem with given class_path '([^']+)':\s*(.+)", message):
        return f"{found[1]}: {found[2]}."
    if bases := re.findall(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        return (
            f"{bases[0][0]} is not {choices(base for _, base in bases)}. Name one of those, or a class derived from it."
        )
    if found := re.search(r"Errors:\n((?:\s*- .*\n?)+)", message):
        tried = [line.strip(" -") for line in found[1].splitlines()]
        return (
            "; ".join(re.sub(r"Expected an? (.*)", lambda m: "not " + _type_name(m[1]), line) for line in tried) + "."
        )
    return " ".join(line.strip() for line in message.splitlines() if not line.startswith("Parser key"))


def _at(origin: str) -> str:
    return f"{origin}: " if origin else ""


def _plain(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} does not exist. Give the path of an existing file or folder."
    return str(error)


def _bare(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "init_args")


def _extra_with(library: str) -> str | None:
    try:
        required = metadata.requires("palimpsest") or []
    except metadata.PackageNotFoundError:
        return None
    for line in required:
        found = re.match(rf"{re.escape(library)}\b.*extra == ['\"](\w+)['\"]", line, re.IGNORECASE)
        if found and found[1] not in ("all", "dev"):
            return found[1]
    return None
