"""The policy: layer -> (weight scheme, activation scheme, smoothing). The one thing that a search
returns and the one thing that quantizing passes obey. Excluding a layer is the policy `float` for it.

A scheme as text: `float`, `int8`, `int4:block32`, `uint8:tensor:asym`, `int8:channel`, `int8:dynamic`,
`gse6`, `gse4:block16`, `gse8:block32:paper` (runtime_ops/gse.py has the format and its encoders), `tcq3`
(runtime_ops/trellis.py).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from passes.errors import PolicyError
from passes.fields import check_fields
from passes.jsontext import read_json
from passes.layers import Layer
from runtime_ops.gse import Encoder
from runtime_ops.trellis import TCQ_BITS

__all__ = ["FLOAT", "POLICY_KEY", "LayerPolicy", "Policy", "Scheme", "load_policy"]

Format = Literal["float", "int", "gse", "tcq"]
Granularity = Literal["tensor", "channel", "block"]
Site = Literal["none", "input", "output"]
INTEGER_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
GSE_BITS = (2, 3, 4, 5, 6, 7, 8)
GSE_BLOCK = 32
# Where a scheme's text does not say it.
_GRANULARITY: dict[Format, Granularity] = {"int": "tensor", "gse": "block", "tcq": "channel"}


@dataclass(frozen=True)
class Scheme:
    """How one tensor is represented.

    bits: 2-8 or 16. granularity: one scale per tensor, output channel or block of `block_size`
    weights along the flattened row of an output channel. signed: two's complement codes.
    symmetric: zero point 0. dynamic (activations): the range is found at run time.
    GSE has blocks (a shared exponent each), signed and symmetric; `encoder` says how it rounds. Activations
    in GSE are simulated: `block_size` channels share an exponent that is found at run time.
    TCQ, for weights alone, has a scale per channel and levels of its own.
    """

    format: Format = "float"
    bits: int = 32
    granularity: Granularity = "tensor"
    block_size: int = 0
    symmetric: bool = True
    signed: bool = True
    dynamic: bool = False
    encoder: Encoder = "nearest"

    def __post_init__(self) -> None:
        check_fields(self, "scheme", PolicyError)
        if self.format == "int" and self.bits not in INTEGER_BITS:
            raise PolicyError(f"an integer scheme has 2 to 8 or 16 bits, not {self.bits}")
        if (self.granularity == "block") != (self.block_size > 0):
            raise PolicyError("a block scheme, and only that, has a block size, as in int4:block32")
        if self.format == "tcq":
            self._check_tcq()
        if self.format == "gse":
            self._check_gse()
        elif self.encoder != "nearest":
            raise PolicyError("only GSE has the paper's encoder, as in gse8:paper")

    def _check_gse(self) -> None:
        if self.bits not in GSE_BITS:
            raise PolicyError(f"a GSE scheme has 2 to 8 bits, not {self.bits}")
        if self.granularity != "block" or not self.signed or not self.symmetric or self.dynamic:
            raise PolicyError("GSE has groups that share an exponent, and nothing else: gse6:block32")

    def _check_tcq(self) -> None:
        if self.bits not in TCQ_BITS:
            raise PolicyError(f"a TCQ scheme has {TCQ_BITS[0]} to {TCQ_BITS[-1]} bits, not {self.bits}")
        if self.granularity != "channel" or not self.signed or not self.symmetric or self.dynamic:
            raise PolicyError("TCQ has one scale per channel, and nothing else to choose: tcq3")

    @property
    def is_float(self) -> bool:
        return self.format == "float"

    @property
    def is_integer(self) -> bool:
        """Whether codes are integers, which kernels may read; those of GSE and TCQ are not."""
        return self.format == "int"

    @property
    def is_static(self) -> bool:
        """Of activations: integers whose range is calibrated ahead of time."""
        return self.is_integer and not self.dynamic

    def __str__(self) -> str:
        if self.is_float:
            return "float"
        parts = [f"{'' if self.signed else 'u'}{self.format}{self.bits}"]
        if self.granularity == "block":
            parts.append(f"block{self.block_size}")
        elif self.granularity == "channel" and self.format != "tcq":
            parts.append("channel")
        if self.symmetric != self.signed:
            parts.append("sym" if self.symmetric else "asym")
        elif not self.signed:
            parts.append("asym")
        if self.dynamic:
            parts.append("dynamic")
        if self.encoder != "nearest":
            parts.append(self.encoder)
        return ":".join(parts)

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """A scheme from its text form. Raises PolicyError naming the part that is wrong."""
        head, *rest = text.strip().lower().split(":")
        if head in ("float", "fp32", "none"):
            return FLOAT
        match = re.fullmatch(r"(u?)(int|gse|tcq)(\d+)", head)
        if match is None:
            raise PolicyError(
                f"'{text}' is no scheme; write float, int8, uint8, int4:block32, int8:channel, gse6, tcq3"
            )
        form = cast(Format, match.group(2))
        signed = match.group(1) == ""
        granularity: Granularity = _GRANULARITY[form]
        block, symmetric, dynamic = GSE_BLOCK if form == "gse" else 0, signed, False
        encoder: Encoder = "nearest"
        for part in rest:
            if part in ("tensor", "channel"):
                granularity, block = ("tensor" if part == "tensor" else "channel"), 0
            elif re.fullmatch(r"block\d+", part):
                granularity, block = "block", int(part[5:])
            elif part in ("sym", "asym"):
                symmetric = part == "sym"
            elif part == "dynamic":
                dynamic = True
            elif part in ("nearest", "paper"):
                encoder = "paper" if part == "paper" else "nearest"
            else:
                raise PolicyError(
                    f"'{text}': '{part}' is none of tensor, channel, blockN, sym, asym, dynamic, paper"
                )
        try:
            return cls(form, int(match.group(3)), granularity, block, symmetric, signed, dynamic, encoder)
        except PolicyError as error:
            raise PolicyError(f"'{text}': {error}") from None


FLOAT = Scheme()
# The entry of a model's metadata that holds the policy it was quantized by.
POLICY_KEY = "onnxq.policy"


@dataclass(frozen=True)
class LayerPolicy:
    """What happens to one layer: its weights, its activations (inputs and output), its smoothing."""

    weights: Scheme = FLOAT
    activations: Scheme = FLOAT
    smooth: Site = "none"

    def __post_init__(self) -> None:
        check_fields(self, "policy of a layer", PolicyError)

    @property
    def is_float(self) -> bool:
        return self.weights.is_float and self.activations.is_float

    @property
    def bit_product(self) -> int:
        """Bit operations of one multiply-accumulate (SMPQ): weight bits x activation bits, float as 32."""
        return self.weights.bits * self.activations.bits

    def to_json(self) -> dict[str, str]:
        entry = {"weights": str(self.weights), "activations": str(self.activations)}
        return entry | ({"smooth": self.smooth} if self.smooth != "none" else {})

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> LayerPolicy:
        unknown = set(data) - {"weights", "activations", "smooth"}
        if unknown:
            raise PolicyError(f"unknown key '{min(unknown)}'; known: weights, activations, smooth")
        smooth = data.get("smooth", "none")
        if smooth not in ("none", "input", "output"):
            raise PolicyError(f"smooth is '{smooth}'; it must be none, input or output")
        weights, activations = (data.get(key, "float") for key in ("weights", "activations"))
        if not isinstance(weights, str) or not isinstance(activations, str):
            raise PolicyError("schemes are texts such as int8:channel")
        return cls(Scheme.parse(weights), Scheme.parse(activations), cast(Site, smooth))


@dataclass(frozen=True)
class Policy:
    """Layer name -> LayerPolicy. A layer that is not named is float."""

    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)

    @classmethod
    def uniform(cls, layers: Iterable[Layer | str], weights: Scheme, activations: Scheme = FLOAT) -> Policy:
        names = (layer if isinstance(layer, str) else layer.name for layer in layers)
        return cls({name: LayerPolicy(weights, activations) for name in names})

    def __getitem__(self, name: str) -> LayerPolicy:
        return self.layers.get(name, LayerPolicy())

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def set(self, names: Iterable[str], choice: LayerPolicy) -> Policy:
        """A copy in which the named layers have `choice`."""
        return Policy({**self.layers, **dict.fromkeys(names, choice)})

    def exclude(self, names: Iterable[str]) -> Policy:
        """A copy in which the named layers stay float."""
        return self.set(names, LayerPolicy())

    def smoothed(self, names: Iterable[str], site: Site) -> Policy:
        """A copy that records smoothing at `site` for the named layers."""
        chosen = set(names)
        return Policy(
            {
                name: dataclasses.replace(entry, smooth=site) if name in chosen else entry
                for name, entry in self.layers.items()
            }
        )

    @property
    def quantized(self) -> list[str]:
        """Names of the layers that are not float."""
        return [name for name, choice in self.layers.items() if not choice.is_float]

    def check_names(self, layers: Iterable[Layer]) -> None:
        """Raises PolicyError for a name that is no layer of the model."""
        known = {layer.name for layer in layers}
        unknown = [name for name in self.layers if name not in known]
        if unknown:
            raise PolicyError(
                f"the policy names {len(unknown)} layer(s) that the model lacks, first '{unknown[0]}'; "
                "it was written for another model, or for this one before simplify or fold"
            )

    def to_json(self) -> dict[str, object]:
        return {"version": 1, "layers": {name: choice.to_json() for name, choice in self.layers.items()}}

    @classmethod
    def from_json(cls, data: object, where: str = "policy") -> Policy:
        layers = data.get("layers") if isinstance(data, dict) else None
        if not isinstance(layers, dict):
            raise PolicyError(f'{where}: is no policy; it must be {{"layers": {{NAME: {{"weights": ...}}}}}}')
        parsed: dict[str, LayerPolicy] = {}
        for name, entry in layers.items():
            if not isinstance(entry, dict):
                raise PolicyError(f"{where}: layer '{name}': expected an object with weights and activations")
            try:
                parsed[name] = LayerPolicy.from_json(entry)
            except PolicyError as error:
                raise PolicyError(f"{where}: layer '{name}': {error}") from None
        return cls(parsed)

    def to_csv(self) -> str:
        """One line a layer: layer,weights,activations,smooth."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["layer", "weights", "activations", "smooth"])
        for name, entry in self.layers.items():
            writer.writerow([name, str(entry.weights), str(entry.activations), entry.smooth])
        return buffer.getvalue()


def load_policy(path: str | Path) -> Policy:
    """A policy from a .json or .csv file. Raises PolicyError naming the file and the layer."""
    file = Path(path)
    if file.suffix != ".csv":
        return Policy.from_json(read_json(file, "the policy", PolicyError), str(file))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise PolicyError(f"{file}: the policy cannot be read ({reason})") from None
    try:
        rows = list(csv.DictReader(io.StringIO(text), restkey="one more column"))
    except csv.Error as error:
        raise PolicyError(f"{file}: is not CSV ({error})") from None
    entries: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row.pop("layer", "")
        if name in entries:
            raise PolicyError(f"{file}: names the layer '{name}' twice; keep one line of it")
        entries[name] = {key: value for key, value in row.items() if value}
    return Policy.from_json({"layers": entries}, str(file))
