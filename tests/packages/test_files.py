"""What packages write: whole under its name, or not at all."""

from pathlib import Path

import pytest

from packages.files import put


def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path, monkeypatch):
    path = put(tmp_path / "new/a.png", b"whole")

    def torn(self, content):
        self.write_text("ha")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        put(path, b"other")
    assert path.read_text() == "whole"


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    written, whole = [], Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: written.append(self) or whole(self, content))
    assert put(tmp_path / "a", b"one") == put(tmp_path / "a", b"two") == tmp_path / "a"
    assert len({*written, tmp_path / "a"}) == 3 and [*tmp_path.iterdir()] == [tmp_path / "a"]
