"""The operators in an ONNX Runtime session: right values, and errors that name the node, never a crash."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_ops.bitpack import packed_bytes
from runtime_ops.gse import decode_affine, decode_gse
from runtime_ops.library import LibraryMissingError, isas, load_library, register

pytestmark = pytest.mark.usefixtures("native")

ISAS = isas() or ["scalar"]
DOMAIN = "ai.onnxq"
BAD = "block.3/conv"  # the node's name, which every error must have


def gse_inputs(rows: int, row_size: int, bits: int, size: int) -> dict[str, Any]:
    rng = np.random.default_rng(bits)
    groups = rows * -(-row_size // size)
    return {
        "packed": rng.integers(0, 256, packed_bytes(rows * row_size, bits), dtype=np.uint8),
        "exponents": rng.integers(0, 256, packed_bytes(groups, 5), dtype=np.uint8),
    }


def affine_inputs(rows: int, row_size: int, bits: int, size: int) -> dict[str, Any]:
    rng = np.random.default_rng(bits)
    groups = rows * -(-row_size // size)
    return {
        "packed": rng.integers(0, 256, packed_bytes(rows * row_size, bits), dtype=np.uint8),
        "scale": rng.normal(size=(rows, groups // rows)).astype(np.float16),
        "zero_point": rng.integers(-128, 128, (rows, groups // rows)).astype(np.int8),
    }


# Tables as the model-local functions take them: the kernel must not mind any of them.
GSE_TABLES: dict[str, Any] = {
    "scales": np.ones(32, np.float32),
    "groups": np.ones(2, np.int64),
    "granules": np.ones(3, np.int64),
    "index": np.ones((4, 1), np.int64),
    "shape": np.ones(4, np.int64),
    "unpack": np.ones((4, 16), np.float32),
    "half": np.ones(16, np.float32),
    "sign": np.ones((16, 8), np.float32),
    "unpack5": np.ones((5, 8), np.float32),
    "modulus": np.array(4, np.int32),
}
AFFINE_TABLES = {name: GSE_TABLES[name] for name in ("granules", "index", "shape", "unpack", "half", "sign")}


def run(op: str, inputs: dict[str, Any], constant: bool = True, **attributes: Any) -> Any:
    """One node in a session with the operators; `inputs` are initializers or inputs of the graph."""
    node = helper.make_node(op, list(inputs), ["y"], name=BAD, domain=DOMAIN, **attributes)
    tensors = [numpy_helper.from_array(array, name) for name, array in inputs.items()]
    infos = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in tensors
    ]
    graph = helper.make_graph(
        [node],
        "graph",
        [] if constant else infos,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors if constant else [],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    register(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {} if constant else inputs)[0]


def gse(inputs: dict[str, Any] | None = None, constant: bool = True, **changes: Any) -> Any:
    attributes = {"bits": 5, "group_size": 32, "exponent_base": -30, "shape": [4, 11, 3], **changes}
    wished = {name: value for name, value in attributes.items() if value is not None}
    return run("GSEDequantizeLinear", inputs or gse_inputs(4, 33, 5, 32), constant, **wished)


def affine(inputs: dict[str, Any] | None = None, constant: bool = True, **changes: Any) -> Any:
    attributes = {"bits": 5, "group_size": 32, "shape": [4, 11, 3], **changes}
    wished = {name: value for name, value in attributes.items() if value is not None}
    return run("PackedDequantizeLinear", inputs or affine_inputs(4, 33, 5, 32), constant, **wished)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tables", [True, False], ids=["tables", "no tables"])
def test_same_bits_as_numpy(isa: str, bits: int, tables: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_ISA", isa)
    for shape, size in (([6, 3, 11], 32), ([16, 1, 3, 3], 16), ([5, 480], 64), ([2, 1], 8)):
        rows, row_size = shape[0], int(np.prod(shape[1:]))
        inputs = gse_inputs(rows, row_size, bits, size)
        given = {**inputs, **(GSE_TABLES if tables else {})}
        found = gse(given, bits=bits, group_size=size, shape=shape, exponent_base=-40)
        np.testing.assert_array_equal(
            found, decode_gse(inputs["packed"], inputs["exponents"], bits, size, -40, shape), strict=True
        )
        packed = affine_inputs(rows, row_size, bits, size)
        given = {**packed, **(AFFINE_TABLES if tables else {})}
        found = affine(given, bits=bits, group_size=size, shape=shape)
        wished = decode_affine(packed["packed"], packed["scale"], packed["zero_point"], bits, size, shape)
        np.testing.assert_array_equal(found.view(np.uint32), wished.view(np.uint32), strict=True)


def test_inputs_may_come_at_run_time() -> None:
    inputs = gse_inputs(4, 33, 5, 32)
    wished = decode_gse(inputs["packed"], inputs["exponents"], 5, 32, -30, (4, 11, 3))
    np.testing.assert_array_equal(gse(inputs, constant=False), wished)
    longer = {name: np.tile(array, (2, 3)) for name, array in inputs.items()}
    np.testing.assert_array_equal(gse(longer, constant=False), wished)
    packed = affine_inputs(4, 33, 5, 32)
    wished = decode_affine(packed["packed"], packed["scale"], packed["zero_point"], 5, 32, (4, 11, 3))
    np.testing.assert_array_equal(affine(packed, constant=False), wished)


def test_axis_zero_is_accepted() -> None:
    np.testing.assert_array_equal(gse(axis=0), gse())


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"bits": 1}, "bits must be 2 to 8"),
    ({"bits": 9}, "bits must be 2 to 8"),
    ({"bits": 2**32 + 4}, "bits must be 2 to 8"),
    ({"bits": None}, "attribute bits"),
    ({"bits": 4.0}, "attribute bits"),
    ({"group_size": 0}, "group_size must be at least 1"),
    ({"group_size": -(2**63)}, "group_size must be at least 1"),
    ({"group_size": None}, "attribute group_size"),
    ({"shape": [0, 33]}, "shape must have"),
    ({"shape": [4, -33]}, "shape must have"),
    ({"shape": None}, "attribute shape"),
    ({"shape": [2**62, 4]}, "more values than"),
    ({"shape": [2**40, 2**40]}, "more values than"),
    ({"shape": [1, 2**32, 2**32, 2**32]}, "more values than"),
    ({"shape": [2] * 70}, "more values than"),
    ({"shape": [5, 33]}, "packed holds too few bytes"),
    ({"shape": [2**50]}, "packed holds too few bytes"),
    ({"group_size": 1}, "too few bytes|one number for each group"),
    ({"axis": 1}, "axis must be 0"),
    ({"axis": -1}, "axis must be 0"),
    ({"axis": 0.0}, "attribute axis"),
    ({"axis": "rows"}, "attribute axis"),
    ({"axis": [0]}, "attribute axis"),
]


@pytest.mark.parametrize(("changes", "text"), BOTH)
def test_bad_attributes_are_refused_by_name(changes: dict[str, Any], text: str) -> None:
    for op in (gse, affine):
        with pytest.raises(Exception, match=f"{BAD}.*({text})") as caught:
            op(**changes)
        assert "onnxruntime" in type(caught.value).__module__


@pytest.mark.parametrize("base", [-127, 93, 2**40, -(2**63), None, 0.5])
def test_bad_exponent_bases_are_refused_by_name(base: Any) -> None:
    with pytest.raises(Exception, match=f"{BAD}.*exponent_base"):
        gse(exponent_base=base)


def test_bad_inputs_are_refused_by_name() -> None:
    good, packed = gse_inputs(4, 33, 5, 32), affine_inputs(4, 33, 5, 32)
    infinite = packed["scale"].copy()
    infinite[3, 1] = np.inf
    empty = np.zeros(0, np.uint8)
    cases = [
        (gse, {**good, "packed": good["packed"][:-1]}, "packed holds too few bytes"),
        (gse, {**good, "exponents": good["exponents"][:-1]}, "exponents hold too few bytes"),
        (gse, {**good, "packed": empty}, "packed holds too few bytes"),
        (gse, {**good, "exponents": empty}, "exponents hold too few bytes"),
        (gse, {**good, "packed": good["packed"].view(np.int8)}, "[Tt]ype"),
        (gse, {**good, "exponents": good["exponents"].astype(np.float32)}, "[Tt]ype"),
        (affine, {**packed, "packed": packed["packed"][:-1]}, "packed holds too few bytes"),
        (affine, {**packed, "scale": packed["scale"][:-1]}, "one number for each group"),
        (affine, {**packed, "zero_point": packed["zero_point"][:, :1]}, "one number for each group"),
        (affine, {**packed, "scale": infinite}, "scale must be finite"),
        (affine, {**packed, "scale": packed["scale"].astype(np.float32)}, "[Tt]ype"),
        (affine, {**packed, "zero_point": packed["zero_point"].view(np.uint8)}, "[Tt]ype"),
    ]
    for op, inputs, text in cases:
        for constant in (True, False):
            with pytest.raises(Exception, match=f"(?s){BAD}.*({text})|({text}).*{BAD}"):
                op(inputs, constant=constant)


@pytest.mark.parametrize("count", [0, 1])
def test_missing_inputs_are_refused(count: int) -> None:
    inputs = dict(list(gse_inputs(4, 33, 5, 32).items())[:count])
    with pytest.raises(Exception, match=BAD):
        run("GSEDequantizeLinear", inputs, bits=5, group_size=32, exponent_base=-30, shape=[4, 33])


def test_an_unknown_instruction_set_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_ISA", "mmx")
    with pytest.raises(Exception, match=f"{BAD}.*instruction set"):
        gse()


def test_sizes_are_known_when_the_session_is_made() -> None:
    node = helper.make_node(
        "GSEDequantizeLinear",
        ["p", "e"],
        ["w"],
        domain=DOMAIN,
        bits=8,
        group_size=8,
        exponent_base=0,
        shape=[2, 3],
    )
    graph = helper.make_graph(
        [node, helper.make_node("Transpose", ["w"], ["y"])],
        "graph",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.ones(6, np.uint8), "p"),
            numpy_helper.from_array(np.ones(2, np.uint8), "e"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    register(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [3, 2]


def test_registering_twice_is_fine() -> None:
    options = ort.SessionOptions()
    register(options)
    register(ort.SessionOptions())
    assert onnx.__version__  # and nothing was raised


class _Api(ctypes.Structure):
    """The first entry of OrtApi: CreateStatus(code, text) -> status."""

    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    _fields_ = [("create_status", create)]


class _Base(ctypes.Structure):
    """OrtApiBase: GetApi(version) -> OrtApi or null, GetVersionString()."""

    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    version = ctypes.CFUNCTYPE(ctypes.c_void_p)
    _fields_ = [("get_api", get), ("get_version", version)]


@pytest.mark.parametrize("newest", [12, 0])
def test_an_onnx_runtime_that_is_too_old_gets_a_status(newest: int) -> None:
    said: list[tuple[int, bytes]] = []

    def create(code: int, text: bytes) -> int:
        said.append((code, text))
        return 4242

    version_text = ctypes.create_string_buffer(b"1.12.0")
    api = _Api(_Api.create(create))
    base = _Base(
        _Base.get(lambda version: ctypes.addressof(api) if version <= newest else None),
        _Base.version(lambda: ctypes.addressof(version_text)),
    )
    library = load_library()
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
        ("RegisterCustomOps", library)
    )
    status = function(None, ctypes.addressof(base))
    if newest:
        assert status == 4242
        assert b"need ONNX Runtime 1." in said[0][1]
        assert b"this one is 1.12.0" in said[0][1]
    else:
        assert status is None


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_LIBRARY", "/nowhere/libonnxq_ops.so")
    with pytest.raises(LibraryMissingError, match="nowhere"):
        register(ort.SessionOptions())
