"""Where the real files for measuring lie; a test that wants them is skipped, with the reason, where they are not."""

from pathlib import Path

import pytest

REAL = Path(__file__).parents[3] / "shared" / "data" / "text"


@pytest.fixture
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip("../shared/data/text is not here: real files for measuring, never copied into the repository")
    return REAL
