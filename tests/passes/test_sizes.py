"""Predicted bytes against what the quantize pass writes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from passes.core.base import Context
from passes.formats.sizes import layer_bytes, pays
from passes.graph.layers import find_layers
from passes.graph.model import Model
from passes.opset import upgrade
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import Quantize, required_policy_opset
from tests.nets import Net

SCHEMES = [
    *(f"gse{bits}:block{size}" for bits in (2, 3, 5, 6, 8) for size in (8, 32)),
    *(f"int{bits}:channel" for bits in (3, 4, 5, 8)),
    *(f"tcq{bits}" for bits in (2, 3, 4, 5)),
    "int4:block16", "int8", "int16:channel", "float",
]  # fmt: skip


def network(cin: int, cout: int, kernel: int) -> Model:
    net = Net(opset=21)
    x = net.input("x", ["N", cin, 7, 7])
    weight = net.weight(cout, cin, kernel, kernel)
    return net.model(net.add("Conv", x, weight, name="conv", pads=[kernel // 2] * 4))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(SCHEMES), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 5]))
def test_the_streams_take_what_was_predicted(text: str, cin: int, cout: int, kernel: int) -> None:
    model, scheme = network(cin, cout, kernel), Scheme.parse(text)
    layer = find_layers(model)[0]
    assume(scheme.is_float or pays(layer, scheme))
    policy = Policy({layer.name: LayerPolicy(scheme)})
    lifted = upgrade(model, required_policy_opset(policy), "the test", Context())
    written = Quantize.of(policy)(lifted, Context()).model
    own = [t for t in written.proto.graph.initializer if not t.name.startswith("onnxq_")]
    stored = sum(len(tensor.raw_data) for tensor in own if not tensor.name.endswith("_shape"))
    flat = 0 if scheme.is_float else 400
    assert layer_bytes(layer, scheme) - flat == pytest.approx(stored, abs=2)
