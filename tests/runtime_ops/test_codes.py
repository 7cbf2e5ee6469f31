"""Packed weights as int8 codes: exact where a row fits, refused where not, the same in numpy and C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime_ops.decode
from runtime_ops.bitpack import pack_bits
from runtime_ops.code_kernels import affine_codes_native, gse_codes_native, tcq_codes_native
from runtime_ops.codes import decode_affine_codes, decode_gse_codes
from runtime_ops.decode import (
    decode_packed_affine_codes,
    decode_packed_gse_codes,
    decode_packed_tcq_codes,
)
from runtime_ops.gse import decode_affine, decode_gse, encode_gse
from runtime_ops.library import isas
from runtime_ops.trellis import chain_bytes, decode_tcq, decode_tcq_codes, tcq_levels

Array = npt.NDArray[Any]


@st.composite
def weights(draw: st.DrawFn) -> dict[str, Any]:
    """Streams whose exponents and zero points lie so near that rows of both kinds come up."""
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    bits, size = draw(st.integers(2, 8)), draw(st.sampled_from([1, 3, 8, 9, 16, 32, 100]))
    rows, row_size = draw(st.integers(1, 9)), draw(st.sampled_from([1, 7, 8, 9, 16, 31, 33, 64, 130]))
    groups = -(-row_size // size)
    mantissas = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, row_size))
    mantissas //= rng.choice([1, 1, 4, 256], (rows, 1))  # short rows fit where full ones do not
    mantissas *= np.repeat(rng.integers(0, 3, (rows, groups)) > 0, size, axis=1)[:, :row_size]
    spread = draw(st.integers(0, 31))
    zero_point = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), rows * groups)
    return {
        "packed": pack_bits(mantissas, bits),
        "exponents": pack_bits(rng.integers(0, spread + 1, rows * groups), 5),
        "zero_point": zero_point.astype(np.int8),
        "scale": rng.uniform(0.01, 1, rows * groups).astype(np.float16),
        "bits": bits,
        "group_size": size,
        "shape": (rows, row_size),
    }


def gse_of(case: dict[str, Any], **changes: Any) -> tuple[Any, ...]:
    case = {**case, "base": -40, **changes}
    return tuple(case[name] for name in ("packed", "exponents", "bits", "group_size", "base", "shape"))


def affine_of(case: dict[str, Any], **changes: Any) -> tuple[Any, ...]:
    case = {**case, **changes}
    return tuple(case[name] for name in ("packed", "zero_point", "bits", "group_size", "shape"))


@given(case=weights())
@settings(max_examples=150, deadline=None)
def test_rows_that_fit_are_the_decoded_weight(case: dict[str, Any]) -> None:
    codes, scale, fits = decode_gse_codes(*gse_of(case))
    wanted = decode_gse(*gse_of(case))
    assert codes.dtype == np.int8
    np.testing.assert_array_equal((codes * scale[:, np.newaxis])[fits], wanted[fits])
    assert not codes[~fits].any()
    np.testing.assert_array_equal(np.isnan(scale), ~fits)

    codes, fits = decode_affine_codes(*affine_of(case))
    scales = np.repeat(case["scale"].astype(np.float32).reshape(len(codes), -1), case["group_size"], axis=1)
    real = decode_affine(
        case["packed"], case["scale"], case["zero_point"], case["bits"], case["group_size"], case["shape"]
    )
    np.testing.assert_array_equal((codes * scales[:, : codes.shape[1]])[fits], real[fits])
    assert not codes[~fits].any()
    assert fits.all() or case["bits"] == 8  # narrower codes less zero points of their range always do


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("spread", [0, 1, 3, 6, 31])
def test_gse_fits_wherever_spread_and_bits_are_eight_at_most(bits: int, spread: int) -> None:
    """Rows with the least and the largest mantissa at the largest exponent: they fit exactly then."""
    mantissas = np.asarray([[1 << (bits - 1), 0], [(1 << (bits - 1)) - 1, 1]]) * [[-1], [1]]
    exponents = pack_bits(np.asarray([spread, 0]), 5)  # a group of zeros has the least one and does not count
    shape = (2, 2)
    _, _, fits = decode_gse_codes(
        pack_bits(mantissas, bits), pack_bits(np.asarray([spread, 0, spread, 0]), 5), bits, 1, -9, shape
    )
    assert fits.tolist() == [True, spread + bits <= 8]
    codes, scale, fits = decode_gse_codes(pack_bits(mantissas[0], bits), exponents, bits, 1, -9, (1, 2))
    assert (codes.tolist(), scale.tolist(), fits.tolist()) == (
        [mantissas[0].tolist()],
        [2.0 ** (spread - 9)],
        [True],
    )


def test_a_row_of_zeros_fits() -> None:
    codes, scale, fits = decode_gse_codes(
        np.zeros(8, np.uint8), pack_bits(np.asarray([9, 31]), 5), 4, 8, -9, (1, 16)
    )
    assert not codes.any()
    assert (scale.tolist(), fits.tolist()) == ([2.0**-9], [True])


def test_zero_points_may_lead_out_of_int8() -> None:
    packed = np.asarray([[100, -28, 5], [100, -29, 5]], np.int8).view(np.uint8)
    codes, fits = decode_affine_codes(packed, np.asarray([-27, 100], np.int8), 8, 3, (2, 3))
    assert codes.tolist() == [[127, -1, 32], [0, 0, 0]]
    assert fits.tolist() == [True, False]
    # A trained weight in GSE: exponents of a row lie near each other.
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    tensor = encode_gse(values, 4, 16)
    streams = pack_bits(tensor.mantissas, 4), pack_bits(tensor.codes, 5)
    codes, scale, fits = decode_gse_codes(*streams, 4, 16, tensor.exponent_base, (8, 64))
    assert fits.all()
    np.testing.assert_array_equal(codes * scale[:, np.newaxis], tensor.decoded())


@pytest.mark.usefixtures("native")
@given(case=weights(), spare=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_every_instruction_set_gives_the_same_codes(case: dict[str, Any], spare: int) -> None:
    longer = np.append(case["packed"].reshape(-1), np.full(spare, 85, np.uint8))
    gse, affine = decode_gse_codes(*gse_of(case)), decode_affine_codes(*affine_of(case))
    for isa in isas():
        for found, wanted in (
            *zip(gse_codes_native(*gse_of(case, packed=longer), isa=isa), gse, strict=True),
            *zip(affine_codes_native(*affine_of(case, packed=longer), isa=isa), affine, strict=True),
        ):
            np.testing.assert_array_equal(found, wanted, err_msg=isa)


@pytest.mark.usefixtures("native")
@given(
    bits=st.integers(2, 5),
    shape=st.tuples(
        st.sampled_from([1, 7, 8, 16, 63, 64, 65, 130]), st.sampled_from([1, 7, 8, 9, 64, 65, 130])
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_levels_are_what_tcq_scales(bits: int, shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, chain_bytes(shape[0] * shape[1], bits), dtype=np.uint8)
    scale = rng.standard_normal(shape[0]).astype(np.float16)
    levels = rng.integers(-128, 128, 4096).astype(np.int8)
    codes = decode_tcq_codes(packed, levels, bits, shape)
    assert codes.dtype == np.int8
    wanted = decode_tcq(packed, scale, levels, bits, shape)
    np.testing.assert_array_equal(codes * scale.astype(np.float32)[:, np.newaxis], wanted)
    for isa in isas():
        np.testing.assert_array_equal(
            tcq_codes_native(packed, levels, bits, shape, isa=isa), codes, err_msg=isa
        )


def sample() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "packed": rng.integers(0, 256, 83, dtype=np.uint8),
        "exponents": np.zeros(5, np.uint8),
        "zero_point": np.zeros(8, np.int8),
        "bits": 5,
        "group_size": 32,
        "shape": (4, 33),
    }


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bits": 9}, "2 to 8"),
        ({"bits": 1}, "2 to 8"),
        ({"group_size": 0}, "groups of 0|group_size"),
        ({"shape": ()}, "shape"),
        ({"shape": (5, 33)}, "need|too few"),
        ({"packed": np.zeros(82, np.uint8)}, "need|too few"),
    ],
)
def test_malformed_streams_are_refused(
    native: bool,
    changes: dict[str, Any],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if native:
        request.getfixturevalue("native")
    else:
        monkeypatch.setattr(runtime_ops.decode, "native_available", lambda: False)
    decode_packed_gse_codes(*gse_of(sample()))
    decode_packed_affine_codes(*affine_of(sample()))
    with pytest.raises(ValueError, match=text):
        decode_packed_gse_codes(*gse_of(sample(), **changes))
    with pytest.raises(ValueError, match=text):
        decode_packed_affine_codes(*affine_of(sample(), **changes))
    with pytest.raises(ValueError, match="exponent_base"):
        decode_packed_gse_codes(*gse_of(sample(), base=98 - 5))
    with pytest.raises(ValueError, match=r"need|too few"):
        decode_packed_gse_codes(*gse_of(sample(), exponents=np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match=r"zero.point"):
        decode_packed_affine_codes(*affine_of(sample(), zero_point=np.zeros(7, np.int8)))
    with pytest.raises(ValueError, match=r"need|too few"):
        decode_packed_tcq_codes(np.zeros(8, np.uint8), tcq_levels(), 3, (4, 33))
    with pytest.raises(ValueError, match="levels must hold"):
        decode_packed_tcq_codes(np.zeros(99, np.uint8), tcq_levels()[1:], 3, (4, 33))
    with pytest.raises(ValueError, match="2 to 5 bits"):
        decode_packed_tcq_codes(np.zeros(99, np.uint8), tcq_levels(), 6, (4, 3))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("isa", isas() or ["scalar"])
def test_codes_go_where_they_are_told_and_nowhere_else(isa: str) -> None:
    case = sample()
    held = np.full(4 * 33 + 64, 42, np.int8)
    out = held[32:-32]
    wanted = decode_gse_codes(*gse_of(case))[0].reshape(-1)
    assert gse_codes_native(*gse_of(case), out=out, isa=isa)[0] is out
    np.testing.assert_array_equal(out, wanted)
    affine_codes_native(*affine_of(case), out=out, isa=isa)
    stream = np.zeros(chain_bytes(4 * 33, 3), np.uint8)
    tcq_codes_native(stream, tcq_levels(), 3, (4, 33), out=out, isa=isa)
    assert (out == tcq_levels()[0]).all()
    assert (held[:32] == 42).all()
    assert (held[-32:] == 42).all()
    wrongs: list[Any] = [np.empty(131, np.int8), np.empty(132, np.uint8), np.empty(264, np.int8)[::2]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="out"):
            gse_codes_native(*gse_of(case), out=wrong, isa=isa)
