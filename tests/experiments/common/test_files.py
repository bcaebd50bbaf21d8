"""Files that are complete or missing, and folders that the scripts made."""

import json
import os
import stat
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.files import claim_folder, read_json, read_mapping, write_atomically, write_json
from tests.experiments.small import contents


def test_json_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "a.json", {"loss": [1.5, None], "name": "é"})
    assert read_json(tmp_path / "a.json") == {"loss": [1.5, None], "name": "é"}
    assert list(contents(tmp_path)) == ["a.json"]


def test_an_older_file_is_replaced(tmp_path):
    write_json(tmp_path / "a.json", list(range(100)))
    write_json(tmp_path / "a.json", [1])
    assert read_json(tmp_path / "a.json") == [1]


def test_others_may_read_the_file(tmp_path):
    write_atomically(tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=["full", "interrupted"])
@pytest.mark.parametrize("function", ["chmod", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, function, error):
    write_json(tmp_path / "a.json", "old")
    before = contents(tmp_path)

    def fail(*args):
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)):
        write_json(tmp_path / "a.json", "new")
    assert contents(tmp_path) == before


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", "old")
    circle = []
    circle.append(circle)
    with pytest.raises(ValueError, match="Circular"):
        write_json(tmp_path / "a.json", circle)
    assert read_json(tmp_path / "a.json") == "old"


def test_the_new_file_is_complete_before_it_is_seen(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((json.loads(Path(source).read_text()), os.path.exists(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_json(tmp_path / "a.json", [1, 2, 3])
    assert seen == [([1, 2, 3], False)]


def test_no_file_is_none(tmp_path):
    assert read_json(tmp_path / "a.json") is None


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"\xff", None, b"[" * 100_000], ids=["empty", "cut", "binary", "folder", "deep"]
)
def test_a_damaged_file_is_named_and_how_to_start_over(tmp_path, content):
    for name, what in (("a.json", "remove it"), ("run.json", f"remove the folder {tmp_path}")):
        path = tmp_path / name
        path.mkdir() if content is None else path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name} is damaged \(.*\); {what} to start over"):
            read_json(path)


@pytest.mark.parametrize("content", ["null", "[]", "3", '"text"', "{}", '{"a": null}', '{"a": "x"}'])
def test_a_file_that_holds_something_else(tmp_path, content):
    path = tmp_path / "a.json"
    assert read_mapping(path, {"a": int}) is None
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"a\.json is damaged \(it.*\); remove it to start over"):
        read_mapping(path, {"a": int})
    path.write_text('{"a": 1}')
    assert read_mapping(path, {"a": int}) == {"a": 1}


@pytest.mark.parametrize("below", ["", "new", "new/deeper"], ids=["itself", "child", "grandchild"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, below):
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"{link} is a link to nowhere, which does not exist; remove the link, or"):
        claim_folder(link / below, "marker.json")
    link.unlink()
    claim_folder(link / below, "marker.json")  # the advice works


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"], ids=["long", "zero"])
def test_a_name_that_is_no_path_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"the output folder .* choose another with --output_dir"):
        claim_folder(tmp_path / name, "marker.json")


def test_a_new_an_empty_and_an_own_folder_are_taken(tmp_path):
    claim_folder(tmp_path / "new/deeper", "marker.json")
    claim_folder(tmp_path, "marker.json")
    (tmp_path / "results.txt").touch()
    (tmp_path / "marker.json").touch()
    claim_folder(tmp_path, "marker.json")
    assert sorted(contents(tmp_path)) == ["marker.json", "results.txt"]  # and nothing was created


def test_a_folder_whose_marker_was_half_written_is_taken(tmp_path, monkeypatch):
    def killed(*args):
        raise SystemExit

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(os, "unlink", lambda name: None)  # a kill leaves no time for it
    with pytest.raises(SystemExit):
        write_json(tmp_path / "marker.json", {})
    assert len(contents(tmp_path)) == 1
    claim_folder(tmp_path, "marker.json")


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "marker.json.bak"])
def test_a_folder_of_somebody_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("a year of work")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path} is not empty .* no marker\.json.* --output_dir"):
        claim_folder(tmp_path, "marker.json")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("below", ["", "new", "new/deeper"], ids=["itself", "child", "grandchild"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    with pytest.raises(ConfigError, match=rf"{folder} cannot be written \(Not a directory\).* --output_dir"):
        claim_folder(folder, "marker.json")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)  # the superuser may write anywhere
    with pytest.raises(ConfigError, match=rf"{tmp_path / 'new'} cannot be written \(Permission denied\)"):
        claim_folder(tmp_path / "new", "marker.json")
    assert contents(tmp_path) == {}
