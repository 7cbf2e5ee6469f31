"""The C++ decoders give the numpy reference's bits on every instruction set, and refuse what is malformed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime_ops import library
from runtime_ops.bitpack import packed_bytes
from runtime_ops.gse import decode_affine, decode_gse
from runtime_ops.kernels import decode_affine_native, decode_gse_native
from runtime_ops.library import LibraryMissingError, isas, library_path, library_status

pytestmark = pytest.mark.usefixtures("native")

# Where there is no library something must be in the list, so that the tests are there to skip.
ISAS = isas() or ["scalar"]
BITS = range(2, 9)
# (rows, row size): one value; less than a vector; depthwise 3x3 and 5x5; odd; one that once broke a tail.
SHAPES = [(1, 1), (1, 7), (7, 1), (16, 9), (6, 25), (5, 27), (3, 33), (2, 100), (3, 480), (1, 1003), (700, 8)]
GROUP_SIZES = [1, 3, 7, 8, 12, 16, 32, 64, 128, 5000]


def same(found: npt.NDArray[np.float32], wished: npt.NDArray[np.float32]) -> bool:
    return found.shape == wished.shape and bool((found.view(np.uint32) == wished.view(np.uint32)).all())


def streams(rows: int, row_size: int, bits: int, size: int, seed: int = 0) -> dict[str, Any]:
    """Random input of both decoders; the scales of an odd seed have both signs and zeros."""
    rng = np.random.default_rng(seed)
    groups = rows * -(-row_size // size)
    scale = rng.uniform(2.0**-24, 4, groups).astype(np.float16)
    if seed % 2:
        scale *= rng.integers(-1, 2, groups).astype(np.float16)
    return {
        "packed": rng.integers(0, 256, packed_bytes(rows * row_size, bits), dtype=np.uint8),
        "exponents": rng.integers(0, 256, packed_bytes(groups, 5), dtype=np.uint8),
        "scale": scale,
        "zero_point": rng.integers(-128, 128, groups).astype(np.int8),
    }


def gse_of(case: dict[str, Any], **changes: Any) -> tuple[Any, ...]:
    numbers = {"bits": 5, "group_size": 32, "exponent_base": -30, "shape": (4, 33), **changes}
    return (case["packed"], case["exponents"], *numbers.values())


def affine_of(case: dict[str, Any], **changes: Any) -> tuple[Any, ...]:
    numbers = {"bits": 5, "group_size": 32, "shape": (4, 33), **changes}
    return (case["packed"], case["scale"], case["zero_point"], *numbers.values())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_as_numpy(isa: str, bits: int) -> None:
    for number, shape in enumerate(SHAPES):
        for size in GROUP_SIZES:
            case = streams(*shape, bits, size, seed=number)
            base = int(np.random.default_rng(number).integers(-126, 98 - bits))
            gse = gse_of(case, bits=bits, group_size=size, exponent_base=base, shape=shape)
            assert same(decode_gse_native(*gse, isa=isa), decode_gse(*gse)), (shape, size)
            affine = affine_of(case, bits=bits, group_size=size, shape=shape)
            assert same(decode_affine_native(*affine, isa=isa), decode_affine(*affine)), (shape, size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [32, 1_000_003])
def test_one_long_row(isa: str, size: int) -> None:
    case = streams(1, 1_000_003, 7, size)
    changes: dict[str, Any] = {"bits": 7, "group_size": size, "shape": (1, 1_000_003)}
    gse, affine = gse_of(case, **changes), affine_of(case, **changes)
    assert same(decode_gse_native(*gse, isa=isa), decode_gse(*gse))
    assert same(decode_affine_native(*affine, isa=isa), decode_affine(*affine))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("lowest", [True, False])
def test_ends_of_the_exponent_range(isa: str, bits: int, lowest: bool) -> None:
    case = streams(3, 40, bits, 8)
    base = -126 if lowest else 97 - bits
    gse = gse_of(case, bits=bits, group_size=8, exponent_base=base, shape=(3, 40))
    found = decode_gse_native(*gse, isa=isa)
    assert np.isfinite(found).all()
    assert same(found, decode_gse(*gse))
    beyond = base + (-1 if lowest else 1)
    with pytest.raises(ValueError, match="exponent_base"):
        decode_gse_native(
            *gse_of(case, bits=bits, group_size=8, exponent_base=beyond, shape=(3, 40)), isa=isa
        )


@pytest.mark.parametrize("isa", ISAS)
def test_every_scale_and_zero_point(isa: str) -> None:
    """All finite float16, positive (with denormals) and with both signs, against all zero points."""
    patterns = np.arange(1 << 16).astype(np.uint16)
    scale = patterns[(patterns & 0x7C00) != 0x7C00].view(np.float16)
    rng = np.random.default_rng(0)
    for chosen in (scale[: len(scale) // 2][1:], scale):
        groups = len(chosen)
        packed = rng.integers(0, 256, groups * 8, dtype=np.uint8)
        zero_point = rng.integers(-128, 128, groups).astype(np.int8)
        packed[::16] = zero_point[::2].view(np.uint8)  # zeros, whose sign follows from the scale's
        affine = (packed, chosen, zero_point, 8, 8, (groups, 8))
        assert same(decode_affine_native(*affine, isa=isa), decode_affine(*affine))


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_is_written_beyond_the_output(isa: str) -> None:
    for row_size in (1, 7, 8, 9, 15, 16, 17, 31, 33):
        case = streams(3, row_size, 3, 4)
        held = np.full(3 * row_size + 64, 42, np.float32)
        out = held[32 : 32 + 3 * row_size]
        shape = (3, row_size)
        gse = gse_of(case, bits=3, group_size=4, shape=shape)
        assert decode_gse_native(*gse, out=out, isa=isa) is out
        assert same(out, decode_gse(*gse).reshape(-1))
        decode_affine_native(*affine_of(case, bits=3, group_size=4, shape=shape), out=out, isa=isa)
        assert (held[:32] == 42).all()
        assert (held[-32:] == 42).all()


def test_longer_buffers_and_other_shapes_of_them_are_fine() -> None:
    case = streams(4, 33, 5, 32)
    longer = {
        name: np.concatenate([array, np.ones(7, array.dtype)]).reshape(-1, 1) for name, array in case.items()
    }
    assert same(decode_gse_native(*gse_of(longer)), decode_gse(*gse_of(case)))
    assert same(decode_affine_native(*affine_of(longer)), decode_affine(*affine_of(case)))
    assert same(
        decode_gse_native(*gse_of(case, shape=(4, 11, 3))), decode_gse(*gse_of(case, shape=(4, 11, 3)))
    )


def test_buffers_with_strides_are_read_in_order() -> None:
    case = streams(4, 33, 5, 32)
    spread = {name: np.repeat(array, 2)[::2] for name, array in case.items()}
    assert same(decode_gse_native(*gse_of(spread)), decode_gse(*gse_of(case)))
    assert same(decode_affine_native(*affine_of(spread)), decode_affine(*affine_of(case)))


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"bits": 1}, "bits must be 2 to 8"),
    ({"bits": 9}, "bits must be 2 to 8"),
    ({"bits": 2**32 + 4}, "out of range"),
    ({"group_size": 0}, "group_size"),
    ({"group_size": -(2**63)}, "group_size"),
    ({"shape": ()}, "shape"),
    ({"shape": (4, 0)}, "shape"),
    ({"shape": (-4, 33)}, "shape"),
    ({"shape": (5, 33)}, "packed holds too few bytes"),
    ({"group_size": 1}, "too few bytes|one number for each group"),
]


@pytest.mark.parametrize(("changes", "text"), MALFORMED)
def test_malformed_input_is_refused(changes: dict[str, Any], text: str) -> None:
    case = streams(4, 33, 5, 32)
    with pytest.raises(ValueError, match=text):
        decode_gse_native(*gse_of(case, **changes))
    with pytest.raises(ValueError, match=text):
        decode_affine_native(*affine_of(case, **changes))


def test_more_malformed_input_is_refused() -> None:
    case = streams(4, 33, 5, 32)
    for number in (98 - 5, -127, 2**40):
        with pytest.raises(ValueError, match="exponent_base"):
            decode_gse_native(*gse_of(case, exponent_base=number))
    for value in (np.inf, -np.inf, np.nan):
        scale = case["scale"].copy()
        scale[-1] = value
        with pytest.raises(ValueError, match="scale must be finite"):
            decode_affine_native(*affine_of({**case, "scale": scale}))
    with pytest.raises(ValueError, match="scale is float32"):
        decode_affine_native(*affine_of({**case, "scale": case["scale"].astype(np.float32)}))
    with pytest.raises(ValueError, match="packed is int8"):
        decode_gse_native(*gse_of({**case, "packed": case["packed"].view(np.int8)}))
    with pytest.raises(ValueError, match="no bytes"):
        decode_gse_native(*gse_of({**case, "packed": case["packed"][:0]}))
    with pytest.raises(ValueError, match="instruction sets are"):
        decode_gse_native(*gse_of(case), isa="mmx")
    wrong: list[Any] = [np.empty(131, np.float32), np.empty(132, np.float64), np.empty(264, np.float32)[::2]]
    for out in wrong:
        with pytest.raises(ValueError, match="out"):
            decode_gse_native(*gse_of(case), out=out)


def test_error_codes_have_texts() -> None:
    loaded = library.load_library()
    texts = [loaded.onnxq_error(code).decode() for code in range(-2, 40)]
    assert texts[2] == "no error"
    assert texts[0] == texts[-1] == "unknown error"
    assert len(set(texts)) > 10
    # A null pointer is refused, whatever else is said.
    assert loaded.onnxq_decode_gse(None, 100, None, 100, 4, 1, 1, 1, 0, None, 1, -1) != 0
    assert loaded.onnxq_decode_affine(None, 100, None, None, 9, 4, 1, 1, 1, None, 1, -1) != 0
    # Sizes whose product does not fit are refused before they are used.
    held = np.zeros(64, np.float32)
    address = held.ctypes.data
    code = loaded.onnxq_decode_gse(
        address, 64, address, 64, 8, 2**62, 2**62, 1, 0, address, held.size, library.isas().index("scalar")
    )
    assert "more values" in loaded.onnxq_error(code).decode()


def test_environment_picks_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_status()["isa"] in isas()
    monkeypatch.setenv("ONNXQ_ISA", "scalar")
    assert library_status()["isa"] == "scalar"
    monkeypatch.setenv("ONNXQ_ISA", "mmx")
    status = library_status()
    assert status["isa"] is None
    assert "ONNXQ_ISA=mmx" in status["reason"]
    with pytest.raises(ValueError, match="instruction set"):
        decode_gse_native(*gse_of(streams(4, 33, 5, 32)))


def test_status_names_the_file() -> None:
    status = library_status()
    assert status["built"]
    assert Path(status["path"]) == library_path()
    assert status["reason"] == ""


def test_a_file_that_is_no_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").write_bytes(b"no library")
    for name in ("broken", "absent"):
        monkeypatch.setenv("ONNXQ_LIBRARY", str(tmp_path / name))
        with pytest.raises(LibraryMissingError, match=name):
            library.load_library()
        assert library_status()["built"] is False
        assert isas() == []
        with pytest.raises(LibraryMissingError):
            decode_gse_native(*gse_of(streams(4, 33, 5, 32)))
