"""The bridge: an ONNX graph as a torch module whose parameters are the graph's initializers, by name.

Trainable are the float initializers of more than one value, but for 1. mean and variance of
BatchNormalization (buffers, which training moves), 2. inputs that are not weights (bounds, exponents, scales
of Resize), 3. masks: what is added and holds numbers below -50. Scalars stay constant.

What depends on shapes and constants alone (Shape, Gather, Concat in front of a Reshape and the like) is
computed once for each shape of the inputs; the plan that is left holds nothing but what depends on data or
weights, so that torch.compile sees one straight graph.

Weights can be replaced when the network runs: `weight_quantizers` map the name of an initializer to a module
that gives what the network computes with, `input_quantizers` do so for what a layer reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from onnxq.training.ops.registry import Call
from onnxq.training.prepare import prepare
from onnxq.training.steps import Step, as_tensor, read_roles, read_steps
from passes.core.errors import UnsupportedModelError
from passes.graph.model import Model

__all__ = ["Network"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Plan:
    """What runs for one shape of the inputs. lists: input name -> numbers, for `listed` inputs."""

    steps: tuple[Step, ...]
    constants: dict[str, Tensor]
    lists: dict[str, list[Any]]


class Network(nn.Module):
    """A model to be trained. model: as `prepare` made it, into which `written` puts trained weights."""

    def __init__(self, model: Model) -> None:
        """Raises UnsupportedModelError naming the first operator that is not known and how many others."""
        super().__init__()
        self.model = prepare(model)
        graph = self.model.proto.graph
        self._steps = read_steps(self.model)
        held = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in held]
        self.outputs = [value.name for value in graph.output]
        trained, moved = read_roles(graph, held)
        self.weight_names, self.buffer_names = trained, moved
        self.weights = nn.ParameterList([nn.Parameter(as_tensor(held[name])) for name in trained])
        for index, name in enumerate(moved):
            self.register_buffer(f"moved{index}", as_tensor(held[name]))
        self._fixed = {name: as_tensor(item) for name, item in held.items() if name not in {*trained, *moved}}
        self._plans: dict[Any, Plan] = {}
        self.weight_quantizers = nn.ModuleDict()
        self.input_quantizers = nn.ModuleDict()
        self._weight_key: dict[str, str] = {}
        self._input_key: dict[tuple[str, str], str] = {}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Constants follow a change of type; they stay on the CPU, where shapes are computed."""
        found = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fixed = {n: fn(t).cpu() if t.is_floating_point() else t for n, t in self._fixed.items()}
        self._plans = {}
        return found

    # -- parameters by name -------------------------------------------------------------------------------

    def parameter_of(self, name: str) -> nn.Parameter:
        """The parameter of an initializer. Raises KeyError where it is none."""
        if name not in self.weight_names:
            raise KeyError(name)
        found: nn.Parameter = self.weights[self.weight_names.index(name)]
        return found

    def quantize_weight(self, name: str, quantizer: nn.Module) -> None:
        """The network computes with quantizer(weight) from now on."""
        self._weight_key[name] = f"w{self.weight_names.index(name)}"
        self.weight_quantizers[self._weight_key[name]] = quantizer

    def quantize_input(self, node: str, tensor: str, quantizer: nn.Module) -> None:
        """The node (by name) reads quantizer(tensor) from now on; give readers of one tensor one
        quantizer."""
        key = next((k for k, held in self.input_quantizers.items() if held is quantizer), None)
        key = key or f"a{len(self.input_quantizers)}"
        self.input_quantizers[key] = quantizer
        self._input_key[(node, tensor)] = key

    def drop_quantizers(self) -> None:
        """Be the float network again."""
        self.drop_weight_quantizers()
        self.input_quantizers, self._input_key = nn.ModuleDict(), {}

    def drop_weight_quantizers(self) -> None:
        """Compute with the weights themselves again."""
        self.weight_quantizers, self._weight_key = nn.ModuleDict(), {}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The values of all parameters and moved buffers, by initializer name."""
        found = dict(zip(self.weight_names, self.weights, strict=True))
        tensors: dict[str, Tensor] = {**found, **self.moved()}
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}

    def written(self, arrays: Mapping[str, npt.NDArray[Any]] | None = None) -> Model:
        """The model with the trained values in its initializers; `arrays` win over the network's own."""
        values = {**self.arrays(), **(arrays or {})}
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        for tensor in proto.graph.initializer:
            if tensor.name in values:
                wanted = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                fresh = numpy_helper.from_array(
                    np.ascontiguousarray(values[tensor.name], wanted), tensor.name
                )
                tensor.CopyFrom(fresh)
        return self.model.with_proto(proto)

    def moved(self) -> dict[str, Tensor]:
        """Means and variances of BatchNormalization, by initializer name; the tensors themselves."""
        return {name: getattr(self, f"moved{index}") for index, name in enumerate(self.buffer_names)}

    @torch.no_grad()
    def restore_moved(self, kept: Mapping[str, Tensor]) -> None:
        """Put back what `moved` gave (copies of it)."""
        for name, tensor in self.moved().items():
            tensor.copy_(kept[name])

    @torch.no_grad()
    def estimate_moved(self, batches: Iterable[Tensor]) -> None:
        """Means and variances of BatchNormalization as the mean over whole batches, all with the same
        weights: in training they trail behind, and are of the last ten batches or so (ONNX's momentum is
        mostly 0.9)."""
        moved = self.moved()
        share = {
            name: 1 - step.call.get("momentum", 0.9)
            for step in self._steps
            if step.op == "BatchNormalization"
            for name in step.inputs[3:5]
        }
        kept = {name: tensor for name, tensor in moved.items() if share.get(name, 0) > 0}
        sums, count, training = {name: torch.zeros_like(t) for name, t in kept.items()}, 0, self.training
        self.train()
        for batch in batches if kept else ():
            for tensor in kept.values():
                tensor.zero_()
            self(batch)
            count += 1
            for name, tensor in kept.items():
                sums[name] += tensor / share[name]
        for name, tensor in kept.items():
            if count:
                tensor.copy_(sums[name] / count)
        self.train(training)

    # -- running ------------------------------------------------------------------------------------------

    def values(self) -> dict[str, Tensor]:
        """What the network computes with, by initializer name: quantized where a quantizer stands."""
        found: dict[str, Tensor] = dict(self.moved())
        for index, name in enumerate(self.weight_names):
            key = self._weight_key.get(name)
            weight = self.weights[index]
            found[name] = weight if key is None else self.weight_quantizers[key](weight)
        return found

    def forward(self, *inputs: Tensor, values: Mapping[str, Tensor] | None = None) -> Any:
        """Outputs for float inputs in the order of the graph. values: instead of `self.values()`, or a
        part."""
        held = self._everything(inputs, values)
        found = [held[name] for name in self.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    def tensors(self, names: Sequence[str], *inputs: Tensor) -> dict[str, Tensor]:
        """Values of inner tensors by name; each is held until the end."""
        held = self._everything(inputs, None)
        return {name: held[name] for name in names}

    def _everything(
        self, inputs: tuple[Tensor, ...], values: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        plan = self._plans.get(_key(inputs))
        if plan is None:
            plan = self.specialise(*inputs)
        held = self.values() if values is None else {**self.values(), **values}
        held.update(plan.constants)
        held.update(zip(self.inputs, inputs, strict=True))
        for step in plan.steps:
            self._run(step, held, plan.lists, self.training)
        return held

    def _run(
        self, step: Step, held: dict[str, Tensor], lists: Mapping[str, list[Any]], training: bool
    ) -> None:
        given: list[Any] = []
        for index, name in enumerate(step.inputs):
            if not name:
                given.append(None)
            elif index in step.operator.listed:
                given.append(lists[name])
            else:
                given.append(self._read(step, name, held))
        call = step.call if not training else _training(step.call)
        result = step.operator.function(call, *given)
        if isinstance(result, Tensor):
            held[step.outputs[0]] = result
        else:
            held.update(zip(step.outputs, result, strict=False))

    def _read(self, step: Step, name: str, held: dict[str, Tensor]) -> Tensor:
        key = self._input_key.get((step.node, name))
        if key is None:
            return held[name]
        quantized = f"{name} by {key}"
        if quantized not in held:
            held[quantized] = self.input_quantizers[key](held[name])
        return held[quantized]

    @torch.no_grad()
    def specialise(self, *inputs: Tensor) -> Plan:
        """Plan for inputs of this shape. Raises UnsupportedModelError where a shape depends on data."""
        device = inputs[0].device
        # Constants live twice: on the CPU, where shapes are computed, and where the data is.
        host = dict(self._fixed)
        held = {**self.values(), **{name: tensor.clone() for name, tensor in self.moved().items()}}
        held.update({name: tensor.to(device) for name, tensor in host.items()})
        held.update(zip(self.inputs, inputs, strict=True))
        lists, steps = dict[str, list[Any]](), list[Step]()
        for step in self._steps:
            lists.update(self._listed(step, host))
            needed = [n for i, n in enumerate(step.inputs) if n and i not in step.operator.listed]
            if step.op not in ("Shape", "Size") and not all(name in host for name in needed):
                self._attempt(step, held, lists)
                steps.append(step)
                continue
            found = dict(held) if step.op in ("Shape", "Size") else dict(host)
            self._attempt(step, found, lists)
            for name in filter(None, step.outputs):
                host[name], held[name] = found[name].cpu(), found[name].to(device)
        read = {name for step in steps for name in step.inputs} | set(self.outputs)
        kept = {name: held[name] for name in host if name in read}
        plan = Plan(tuple(steps), kept, {name: numbers for name, numbers in lists.items() if name in read})
        self._plans[_key(inputs)] = plan
        return plan

    def _listed(self, step: Step, host: Mapping[str, Tensor]) -> dict[str, list[Any]]:
        """The numbers of a step's `listed` inputs."""
        found: dict[str, list[Any]] = {}
        for index in step.operator.listed:
            name = step.inputs[index] if index < len(step.inputs) else ""
            if name and name not in host:
                raise UnsupportedModelError(
                    f"{self.model.name}: node '{step.node}' ({step.op}) takes '{name}' from data, where "
                    "training needs a constant; run 'onnxq apply simplify' first, or export it with "
                    "fixed shapes"
                )
            if name:
                found[name] = host[name].reshape(-1).tolist()
        return found

    def _attempt(self, step: Step, held: dict[str, Tensor], lists: Mapping[str, list[Any]]) -> None:
        try:
            self._run(step, held, lists, False)
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnsupportedModelError(
                f"{self.model.name}: node '{step.node}' ({step.op}) cannot be computed in torch ({reason}); "
                "leave it out of the graph, or train the network where it was made"
            ) from error


def _key(inputs: tuple[Tensor, ...]) -> Any:
    return tuple(tuple(tensor.shape) for tensor in inputs)


def _training(call: Call) -> Call:
    return Call(call.attrs, call.opset, call.outputs, True)
