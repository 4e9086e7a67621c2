"""Pictures: the path from any file to a model's input, and refusals of what is none."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_pictures import damaged_avif, needs_avif

from subtune_deploy.errors import PictureError
from subtune_deploy.pictures import load_picture, prepare
from subtune_deploy.spec import InputSpec

PLAIN = InputSpec(shape=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)
IMAGENET = InputSpec(shape=(3, 32, 32))


AVIF = ["AVIF"] if ".avif" in Image.registered_extensions() else []


def photograph(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("size", [(40, 40), (50, 71), (97, 45), (20, 300), (33, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_path_is_torchvision_s(size: tuple[int, int], interpolation: str) -> None:
    from torchvision.transforms import InterpolationMode, v2

    spec = InputSpec(shape=(3, 32, 32), interpolation=interpolation)
    reference = v2.Compose(
        [
            v2.Resize(round(32 / spec.crop), interpolation=InterpolationMode(interpolation)),
            v2.CenterCrop(32),
            v2.PILToTensor(),
        ]
    )
    array = photograph(*size)
    wanted = reference(Image.fromarray(array)).numpy().astype(np.float32) / 255
    wanted = (wanted - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    np.testing.assert_allclose(prepare(array, spec), wanted, atol=1e-6)


def test_files_and_arrays_take_one_path(tmp_path: Path) -> None:
    array = photograph(60, 45)
    result = load_picture(save(tmp_path / "a.png", array), IMAGENET)
    assert result.dtype == np.float32
    assert result.shape == (3, 32, 32)
    np.testing.assert_array_equal(result, prepare(array, IMAGENET))


def test_an_input_that_is_not_square_is_covered() -> None:
    spec = InputSpec(shape=(3, 10, 40), mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)
    left_to_right = np.broadcast_to(np.arange(0, 240, dtype=np.uint8)[None, :, None], (200, 240, 3))
    result = prepare(np.ascontiguousarray(left_to_right), spec)
    assert result.shape == (3, 10, 40)
    assert result[0, 0, 0] < 0.02  # the whole width is kept,
    assert result[0, 0, -1] > 0.9  # the height is cropped


def test_normalisation_is_per_channel() -> None:
    spec = InputSpec(shape=(3, 4, 4), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25), crop=1.0)
    white = np.full((9, 9, 3), 255, np.uint8)
    np.testing.assert_allclose(prepare(white, spec)[:, 0, 0], [1.0, 1.0, 0.0])


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    array = np.zeros((16, 16, 3), np.uint8)
    array[:, :8] = 255  # the left half is white, and orientation 6 says: turn by 90 degrees clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    result = load_picture(save(tmp_path / "turned.png", array, exif=exif.tobytes()), PLAIN)
    assert result[0, 2].min() == 1.0
    assert result[0, 13].max() == 0.0


def test_grey_becomes_three_equal_channels_and_colour_one(tmp_path: Path) -> None:
    grey = photograph(16, 16)[:, :, 0]
    three = load_picture(save(tmp_path / "grey.png", grey), PLAIN)
    np.testing.assert_allclose(three, np.broadcast_to(grey / np.float32(255), (3, 16, 16)), atol=1e-6)
    np.testing.assert_array_equal(prepare(grey, PLAIN), three)
    one = InputSpec(shape=(1, 16, 16), mean=(0.0,), std=(1.0,), crop=1.0)
    assert load_picture(save(tmp_path / "colour.png", photograph(16, 16)), one).shape == (1, 16, 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "I;16"])
def test_every_usual_mode_is_taken(tmp_path: Path, mode: str) -> None:
    array = np.full((16, 16, 3), 128, np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(np.full((16, 16), 128 * 257, np.uint16))
    elif mode == "P":
        picture = Image.fromarray(array).quantize(4)
    else:
        picture = Image.fromarray(array).convert(mode)
    picture.save(tmp_path / "a.tiff")
    result = load_picture(tmp_path / "a.tiff", PLAIN)
    if mode == "1":
        assert set(np.unique(result)) <= {0.0, 1.0}
    else:
        np.testing.assert_allclose(result, 128 / 255, atol=0.02)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    clear = np.full((16, 16, 4), 200, np.uint8)
    clear[..., 3] = 0
    np.testing.assert_allclose(load_picture(save(tmp_path / "a.png", clear), PLAIN), 200 / 255, atol=1e-6)


def test_a_palette_with_transparency_is_taken_in_silence(tmp_path: Path) -> None:
    picture = Image.fromarray(photograph(16, 16)).quantize(16)
    picture.save(tmp_path / "a.png", transparency=bytes(range(16)))
    assert load_picture(tmp_path / "a.png", PLAIN).shape == (3, 16, 16)


# what is refused


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photograph(64, 64)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a picture"),
        (b"# A text\n", "not a picture"),
        (b"PK\x03\x04" + bytes(100), "not a picture"),
        (jpeg()[:400], "truncated or damaged"),
        (jpeg()[:-200], "truncated or damaged"),
        (png_that_claims(16, 16), "truncated or damaged"),
        (png_that_claims(60_000, 60_000), "absurdly large"),
        (png_that_claims(11_000, 9_000), "absurdly large"),
        (png_that_claims(2_000_000_000, 2_000_000_000), "absurdly large"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=complaint) as caught:
        load_picture(path, PLAIN)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@needs_avif
def test_a_damaged_avif_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(damaged_avif())
    with pytest.raises(PictureError, match=r"a\.avif is truncated or damaged: Failed to decode") as caught:
        load_picture(tmp_path / "a.avif", PLAIN)
    assert "\n" not in caught.value.message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(PictureError, match="there is no picture"):
            load_picture(path, PLAIN)


def test_a_picture_that_would_grow_absurdly_when_resized_is_refused() -> None:
    with pytest.raises(PictureError, match="absurdly large"):
        prepare(np.zeros((1, 60_000), np.uint8), InputSpec(shape=(3, 224, 224)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3, 1), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array: np.ndarray) -> None:
    with pytest.raises(PictureError, match="is no picture"):
        prepare(array, PLAIN)


def test_a_spec_that_pictures_cannot_fill_is_refused() -> None:
    array = photograph(16, 16)
    with pytest.raises(PictureError, match="4 channels"):
        prepare(array, InputSpec(shape=(4, 16, 16), mean=(0.0,) * 4, std=(1.0,) * 4))
    with pytest.raises(PictureError, match="1 normalisation values for 3 channels"):
        prepare(array, InputSpec(shape=(3, 16, 16), mean=(0.0,)))
    with pytest.raises(PictureError, match="'biliniar'") as caught:
        prepare(array, InputSpec(shape=(3, 16, 16), interpolation="biliniar"))
    assert "bilinear" in caught.value.hint


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", *AVIF]),
    place=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=12),
)
def test_a_damaged_file_is_read_or_refused_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: float, noise: bytes
) -> None:
    stream = io.BytesIO()
    Image.fromarray(photograph(24, 24)).save(stream, kind)
    content = bytearray(stream.getvalue())
    start = int(place * len(content))
    content[start : start + len(noise)] = noise
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(content)
    with contextlib.suppress(PictureError):
        assert np.isfinite(load_picture(path, PLAIN)).all()
