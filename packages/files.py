"""How the rooms of `packages` write a file. Knows bytes."""

import os
import uuid
from pathlib import Path


def put(path: Path, content: bytes) -> Path:
    """Write a file, folders included, so that a kill at any moment leaves the old one or the new one, and two writers
    do not meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path
