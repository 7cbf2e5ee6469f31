"""Fields are checked when an object is made, in Python too; each wrong word is a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import onnxq as oq
from onnxq.training import TrainConfig
from onnxq.tuning.config import TuneConfig
from passes.core.errors import UserError
from passes.core.fields import Option, When, check_fields, declared, from_texts, to_text
from passes.equalize import Equalize
from passes.fold_batchnorm import FoldBatchNorm
from passes.graph.model import Model
from passes.policy import LayerPolicy, Scheme
from passes.simplify import Simplify
from tests.nets import Net


@pytest.mark.parametrize(
    ("kind", "wrong", "says"),
    [
        (
            oq.Quantize,
            {"rounding": "adaronud"},
            "`rounding` adaronud: .*did you mean adaround",
        ),
        (oq.Quantize, {"placement": "fusd"}, "`placement` fusd: .*did you mean fused"),
        (oq.Quantize, {"standard": "no"}, "`standard` no: must be True or False"),
        (oq.Quantize, {"exclude": "first"}, r"`exclude` first: must be a tuple, as in \('first',\)"),
        (oq.Smooth, {"site": "ouput"}, "pass smooth: `site` ouput: is not one of output, input"),
        (oq.Smooth, {"floor": 0.0}, "`floor` 0: must be above 0"),
        (Equalize, {"clip": "max"}, "`clip` max"),
        (FoldBatchNorm, {"standalone": "all"}, "`standalone` all"),
        (Simplify, {"size_limit": -1}, "`size_limit` -1: must not be negative"),
        (Simplify, {"size_limit": 1.5}, "`size_limit` 1.5: must be a whole number"),
        (Scheme, {"format": "int", "bits": 8, "granularity": "chanel"}, "did you mean channel"),
        (LayerPolicy, {"smooth": "ouput"}, "`smooth` ouput: is not one of none, input, output"),
        (TuneConfig, {"model": object(), "data": "d"}, "`model` <object.*: must be text"),
        (
            TuneConfig,
            {"model": "m", "data": "d", "weights": ()},
            "at least one of `modes`",
        ),
        (
            TuneConfig,
            {"model": "m", "data": "d", "modes": ("statik",)},
            "`modes` statik: .*mean static",
        ),
        (TuneConfig, {"model": "m", "data": "d", "weights": ("int99",)}, "2 to 8 or 16 bits"),
        (TuneConfig, {"model": "m", "data": "d", "objectives": "metric"}, "at least two"),
        (TuneConfig, {"model": "m", "data": "d", "damping": "much"}, "`damping`: 'much' is neither"),
        (TuneConfig, {"model": "m", "data": "d", "threads": -1}, "`threads` -1: must not be negative"),
        (TrainConfig, {"quantizer": "lsk"}, "`quantizer` lsk: is not one of .*did you mean lsq"),
        (TrainConfig, {"epochs": float("nan")}, "`epochs` nan: must be a number"),
        (TrainConfig, {"distill": 1.5}, "`distill` 1.5: must be from 0 to 1"),
        (TrainConfig, {"bits": (1, 8), "method": "smpq"}, "`bits` 1: must be from 2 to 8"),
    ],
)
def test_wrong_words_are_refused_when_the_object_is_made(kind: Any, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        kind(**wrong)


@dataclass(frozen=True)
class _Held:
    number: Annotated[float, Option("A number.", above=0, when=When("kind", "fast"))] = 1.0
    kind: Literal["fast", "slow"] = "fast"
    names: tuple[str, ...] = ()
    on: bool = False


def test_texts_become_values_and_values_texts() -> None:
    texts = {"number": "0.5", "kind": "slow", "names": "a,b", "on": "true"}
    held = _Held(**from_texts(_Held, texts, "held"))
    assert held == _Held(0.5, "slow", ("a", "b"), True)
    assert {name: to_text(getattr(held, name)) for name in declared(_Held)} == texts
    with pytest.raises(UserError, match="held: has no option 'numbr'; did you mean number"):
        from_texts(_Held, {"numbr": "1"}, "held")
    with pytest.raises(UserError, match="`number` 0: must be above 0"):
        check_fields(_Held(0.0))


def test_where_an_option_is_read() -> None:
    (when,) = declared(_Held)["number"].option.conditions
    assert (when.holds("fast"), when.holds("slow")) == (True, False)
    assert str(when) == "with `kind` fast"
    assert When("modes", "static").holds(("weights,static",))
    assert When("objectives", "latency@*").holds("metric, latency@ort:cpu")
    assert not When("objectives", "latency@*").holds("metric,latency")
    assert [When("policy", absent=True).holds(value) for value in ("", "p.json", None)] == [True, False, True]
    assert When("activations", "float", "gse*", absent=True).holds("uint8")
    assert str(When("rounding", "gptq", "bias", "brecq")) == "with `rounding` gptq, bias or brecq"


def test_what_is_parsed_is_parsed_once_and_kept_apart() -> None:
    config = TuneConfig("m", "d", weights=("int4:channel", "int8:channel"), objectives="metric,bytes,bops")
    ladder = config.scheme_options.ladders["static"]
    assert [str(choice.weights) for choice in ladder] == ["int4:channel", "int8:channel", "float"]
    assert config.search_options.goal.axes == ("bytes", "bops")
    assert TuneConfig.from_json(config.to_json()) == config
    assert set(config.to_json()) == set(declared(TuneConfig))
    # The keys by which journals of earlier versions are known.
    assert {"--strategy", "--weights", "--seed", "--smooth-layers"} <= config.fingerprint().keys()
    assert not [key for key in config.fingerprint() if "options" in key]
    assert not [key for key in TrainConfig().identity() if "options" in key]
    assert re.fullmatch(r"\d+\.\d+", config.fingerprint()["--tau"])


def test_calibrated_ranges_fit_a_context(tmp_path: Path) -> None:
    """They once took a ModelProto, where passes give a Model."""
    net = Net(seed=1)
    model = Model(net.model(net.conv(net.input("x", ["N", 3, 8, 8]), 3, 4, name="c")).proto, "net")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32))
    ranges = oq.CalibratedRanges(oq.open_dataset(tmp_path / "x.npy", model), "percentile:99.99")
    found = oq.Quantize()(model, oq.Context(ranges=ranges)).model.proto
    wanted = oq.Quantize()(model, oq.calibrate(oq.open_dataset(tmp_path / "x.npy", model))).model.proto
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
