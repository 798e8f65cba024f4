import hashlib
import os

from shared import digests
from shared.digests import Digests, sha256


def test_equals_hashlib(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(os.urandom(3_000_000))
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() == Digests()(path)


def test_exchanged_folders_are_seen_although_sizes_and_time_stamps_agree(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(name.encode())
        os.utime(tmp_path / name / "x", ns=(10**18, 10**18))
    found = Digests(tmp_path)
    before = [found(tmp_path / name / "x") for name in "ab"]
    found.save()
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    again = Digests(tmp_path)
    assert [again(tmp_path / name / "x") for name in "ab"] == before[::-1]


def test_a_file_rewritten_with_its_old_time_stamp_is_read_again(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    stat = path.stat()
    found = Digests()
    before = found(path)
    path.write_bytes(b"2")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert found(path) == hashlib.sha256(b"2").hexdigest() != before


def test_an_unchanged_file_is_not_read_twice(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"1")
    first = Digests(tmp_path)
    value = first(tmp_path / "x")
    first.save()
    monkeypatch.setattr(digests, "sha256", lambda path: 1 / 0)
    assert Digests(tmp_path)(tmp_path / "x") == value


def test_a_damaged_cache_is_made_anew(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    for damage in ("{", "[1]", '{"a": 3}'):
        (tmp_path / digests.CACHE).write_text(damage)
        found = Digests(tmp_path)
        assert found(tmp_path / "x") == sha256(tmp_path / "x")
        found.save()
