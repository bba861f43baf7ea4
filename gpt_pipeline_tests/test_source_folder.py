"""Which files a folder or a pattern of one's own names: all of them, or an error that says which are not."""

from __future__ import annotations

import glob
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import find_raw, prepare_raw
from gpt_pipeline.data.file_kinds import TEXT, kind_of
from gpt_pipeline.data.sources.folder import LocalFiles, local_files
from gpt_pipeline.errors import ConfigError

links = pytest.mark.skipif(os.name == "nt", reason="links need a right there")


def files_of(path: Path) -> LocalFiles:
    return local_files(str(path), key="data.source")


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}\n', encoding="utf-8")
    return folder


@contextmanager
def nobody() -> Iterator[Path]:
    """Yield an empty folder, and be a user whom a folder can keep out, which root is not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # root's own folder for such may be closed to others
        Path(folder).chmod(0o755)
        user = os.geteuid()
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)
            for path in Path(folder).rglob("*"):
                path.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="a folder keeps nobody out there")
@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "*/*.jsonl", "*/sub/*.jsonl"])
def test_local_files_in_a_folder_that_cannot_be_read_are_not_left_out_silently(pattern: str) -> None:
    with nobody() as own:
        sub = "sub/" if "sub" in pattern else ""
        write(own, f"open/{sub}a.jsonl", f"closed/{sub}b.jsonl")
        (own / "closed").chmod(0)
        os.seteuid(os.geteuid() or 65534)
        files = files_of(own / pattern)
        with pytest.raises(
            ConfigError, match=r"closed.* \(Permission denied\)', need .* read it \(chmod\), repair .* pattern"
        ):
            files.opened()
        assert files.names == (f"open/{sub}a.jsonl",)  # what was made without it stays finished
        assert files_of(own / "open" / pattern.removeprefix("*/")).opened().names == ("a.jsonl",)


@pytest.mark.skipif(os.name == "nt", reason="a folder keeps nobody out there")
@pytest.mark.parametrize("name", ["", "*.jsonl", "a.jsonl"])
def test_local_files_below_a_folder_that_cannot_be_read_are_away(name: str) -> None:
    with nobody() as own:
        write(own, "closed/own/a.jsonl")
        (own / "closed").chmod(0)
        os.seteuid(os.geteuid() or 65534)
        files = files_of(own / "closed" / "own" / name)
        assert files.names == ()
        with pytest.raises(ConfigError, match=r"found .*closed/own.*, need .* that exists, in .* this user can read"):
            files.opened()


@pytest.mark.skipif(os.name == "nt", reason="a folder keeps nobody out there")
@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*.jsonl", "*/sub/*.jsonl"])
@pytest.mark.parametrize("closed", ["lost+found", "System Volume Information", "$RECYCLE.BIN/S-1-5-21"])
def test_local_files_of_a_whole_disk_are_read_without_what_its_system_keeps_to_itself(
    closed: str, pattern: str
) -> None:
    with nobody() as own:
        needed = "open/sub/a.jsonl" if "sub" in pattern else "a.jsonl"
        write(own, needed)
        (own / closed).mkdir(parents=True)
        (own / closed).chmod(0)
        os.seteuid(os.geteuid() or 65534)
        assert files_of(own / pattern).opened().names == (needed,)


@pytest.mark.skipif(os.name == "nt", reason="a folder keeps nobody out there")
def test_local_files_beside_a_closed_folder_with_the_system_attribute_of_windows_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with nobody() as own:
        write(own, "a.jsonl")
        (own / "My Music").mkdir(mode=0)
        os.seteuid(os.geteuid() or 65534)
        with pytest.raises(ConfigError, match="My Music"):
            files_of(own).opened()
        attributes = SimpleNamespace(st_mode=stat.S_IFDIR, st_file_attributes=stat.FILE_ATTRIBUTE_SYSTEM)
        with monkeypatch.context() as patched:
            patched.setattr(os, "lstat", lambda _: attributes)
            assert files_of(own).opened().names == ("a.jsonl",)


@pytest.mark.parametrize("names", [("A.PARQUET", "b.PARQUET"), ("A.Parquet", "b.PARQUET", "sub/c.PARQUET")])
def test_local_files_of_parquet_are_known_by_their_ending_in_any_case(tmp_path: Path, names: tuple[str, ...]) -> None:
    write(tmp_path, *names, ".hidden.PARQUET")
    assert files_of(tmp_path).opened().names == names[:2]
    assert files_of(tmp_path / names[0]).opened().names == names[:1]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt", "sub/a.txt", "sub/a.parquet", "README.md"])
def test_local_files_beside_parquet_in_capitals_are_refused_and_what_was_made_of_them_stays(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, name, "B.PARQUET", *([] if kind_of(name) == TEXT else ["README.md"]))
    files = files_of(tmp_path)
    with pytest.raises(
        ConfigError,
        match=rf"found 'B\.PARQUET beside {name}', need .* one case; rename .*/\*{Path(name).suffix} or .*\*\.PARQUET",
    ):
        files.opened()
    assert files.names == (name,)
    if os.name != "nt":  # where patterns have no case
        assert files_of(tmp_path / f"**/*{Path(name).suffix}").opened().names == (name,)
        assert files_of(tmp_path / "*.PARQUET").opened().names == ("B.PARQUET",)
    write(tmp_path, "synth_001.parquet")  # beside which others do not count at all
    assert files.opened().names == ("synth_001.parquet",)


@links
def test_local_files_of_a_pattern_end_where_links_go_round_in_circles(tmp_path: Path) -> None:
    own = write(tmp_path / "own", "a.jsonl", "one/b.jsonl", "two/c.jsonl")
    for link, target in (
        ("latest", "."),
        ("current", "."),
        ("up", ".."),
        ("one/other", "../two"),
        ("two/other", "../one"),
    ):
        (own / link).symlink_to(target)
    found = files_of(own / "**" / "*.jsonl").opened().names
    assert found == ("a.jsonl", "one/b.jsonl", "one/other/c.jsonl", "two/c.jsonl", "two/other/b.jsonl")


@links
@pytest.mark.parametrize("pattern", ["**/*.jsonl", "*/*.jsonl", "**", "*/**/[ab].jsonl", "**/.h/*.jsonl", "**/in/*"])
def test_local_files_of_a_pattern_are_those_that_glob_finds_also_behind_links_that_do_not_lead_back(
    tmp_path: Path, pattern: str
) -> None:
    write(tmp_path / "other disk", "in/b.jsonl", "d.jsonl")
    own = write(
        tmp_path / "own", "a.jsonl", "in/a.jsonl", "in/deep/b.jsonl", "in/.h/c.jsonl", ".h/d.jsonl", "in/.e.jsonl"
    )
    (own / "linked").symlink_to(tmp_path / "other disk")
    needed = [name for name in glob.glob(pattern, root_dir=own, recursive=True) if (own / name).is_file()]
    assert files_of(own / pattern).opened().names == tuple(sorted(needed))


@links
def test_local_files_of_a_pattern_that_finds_a_link_to_nowhere_name_it(tmp_path: Path) -> None:
    own = write(tmp_path / "own", "a.jsonl")
    (own / "b.jsonl").symlink_to("nowhere")
    (own / "LICENSE").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"b\.jsonl \(No such file or directory\)', need .* repair or remove it"):
        files_of(own / "*").opened()


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*.jsonl", "[a].jsonl"])
def test_local_files_of_a_pattern_below_a_folder_with_brackets_in_its_name_are_found(
    tmp_path: Path, pattern: str
) -> None:
    folder = write(tmp_path / "texts [old]", "a.jsonl")
    write(tmp_path / "texts o", "a.jsonl")  # what the name is as a pattern
    source = files_of(folder / pattern).opened()
    assert (source.folder, source.names) == (folder, ("a.jsonl",))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_local_files_below_a_folder_whose_name_is_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path / "own", f"{name}/a.jsonl")
    config = DataConfig(num_samples="all", source=str(tmp_path / "own"), format="text")
    assert find_raw(config, tmp_path / "data") is None
    with pytest.raises(ConfigError, match=r"caf.*udce9/a\.jsonl.*need files with UTF-8 names"):
        prepare_raw(config, tmp_path / "data")
