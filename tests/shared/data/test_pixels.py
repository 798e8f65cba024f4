"""Pixels in a file are those in memory, whoever reads them in whatever order; damage and a full disk are told."""

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shared.data import pixels as module
from shared.data.pixels import Pixels, in_order
from shared.errors import DataError

SHAPES = [(3, 6, 6), (3, 6, 6), (1, 6, 6), (3, 4, 9)]


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, shape, dtype=np.uint8) for shape in SHAPES]


def written(path, images):
    pixels = Pixels(file=path.open("x+b"), path=path)
    assert [pixels.append(image) for image in images] == list(range(len(images)))
    return pixels


def test_a_file_gives_what_memory_gives_in_any_order_and_to_threads(tmp_path, images):
    memory, file = Pixels(), written(tmp_path / ".new", images)
    for image in images:
        memory.append(image)
    file.publish(tmp_path / "sub" / "all.pixels")
    again = Pixels(file.shapes, file.checksums)
    again.open(tmp_path / "sub" / "all.pixels")
    assert not (tmp_path / ".new").exists() and again.nbytes == memory.nbytes == sum(image.size for image in images)
    order = [3, 0, 2, 1] * 50
    with ThreadPoolExecutor(4) as threads:
        for pixels in (memory, file, again):
            for number, image in zip(order, threads.map(pixels.read, order), strict=True):
                np.testing.assert_array_equal(image, images[number])
    out = np.zeros((2, 3, 6, 6), np.uint8)
    again.read(1, out[1])
    np.testing.assert_array_equal(out[1], images[1])
    assert not out[0].any()


def test_a_mask_is_kept_as_bytes():
    pixels = Pixels()
    pixels.append(np.eye(3, dtype=bool)[None])
    assert pixels.read(0).dtype == np.uint8 and pixels.read(0)[0].tolist() == np.eye(3).tolist()


@pytest.mark.parametrize("damage", ["flipped", "cut off"])
def test_damage_is_told_at_the_first_reading_and_the_file_removed(tmp_path, images, damage):
    path = tmp_path / "a.pixels"
    pixels = written(path, images)
    pixels.read(0)
    content = bytearray(path.read_bytes())
    content[images[0].size + 5] ^= 1
    with path.open("r+b") as file:
        file.write(content)
        if damage == "cut off":
            file.truncate(images[0].size + 20)
    np.testing.assert_array_equal(pixels.read(0), images[0])
    with pytest.raises(DataError, match=r"a\.pixels: image 2 of 4 is not what was written .* decoded anew"):
        pixels.read(1)
    assert not path.exists()


def test_a_file_of_other_length_is_not_opened(tmp_path, images):
    pixels = written(tmp_path / "a.pixels", images)
    pixels.flush()
    with (tmp_path / "a.pixels").open("ab") as file:
        file.write(b"x")
    with pytest.raises(OSError, match=r"360 bytes of pixels are needed, it has 361"):
        Pixels(pixels.shapes, pixels.checksums).open(tmp_path / "a.pixels")


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, images):
    pixels = written(tmp_path / ".a.pixels", images)
    full = OSError(errno.ENOSPC, "No space left on device")
    pixels._file = type("Full", (), {"write": lambda *_: (_ for _ in ()).throw(full)})()
    with pytest.raises(DataError, match=r"\.a\.pixels: no room for decoded patches .*No space left.*--cache_dir"):
        pixels.append(images[0])
    assert not list(tmp_path.iterdir())


def test_threads_do_not_run_far_ahead():
    started = []
    results = in_order(lambda item: started.append(item) or item, range(1000), 4)
    assert next(results) == 0 and len(started) <= module.WAITING
    assert list(results) == list(range(1, 1000)) and len(started) == 1000
