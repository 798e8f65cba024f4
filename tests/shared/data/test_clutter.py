from shared.data.clutter import walk_files


def test_clutter_is_left_out_at_any_depth_and_links_are_followed(tmp_path):
    for inner in ("a/b/x.png", "a/__MACOSX/y.png", "a/._x.png", "@eaDir/z.png", ".ipynb_checkpoints/w.png"):
        (tmp_path / "data" / inner).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / inner).touch()
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "v.png").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "a" / "round").symlink_to(tmp_path / "data")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in walk_files(tmp_path / "data")]
    assert found == ["a/b/x.png", "link/v.png"]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    for name in ("P1", "P2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t1.nii.gz").touch()
    (tmp_path / "P1" / "loop").symlink_to(tmp_path)
    assert [path.name for path in walk_files(tmp_path / "P1")] == ["t1.nii.gz"]
