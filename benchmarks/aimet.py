"""AIMET's files of EfficientNet-Lite0, for `low_bits.py --files` to measure beside ours.

    python benchmarks/low_bits.py --export FOLDER         # in onnxq's environment: the network and its images
    python benchmarks/aimet.py FOLDER [--iterations N]    # in an environment with aimet-onnx, without onnxq
    python benchmarks/low_bits.py --files FOLDER          # in onnxq's environment again

aimet-onnx 2.42 wants PyTorch and torchvision. Ranges by its `tf_enhanced` scheme from the same 100 images,
weights symmetric, biases float; AdaRound learns N steps a layer (AIMET advises 10,000, 15,000 below 8 bits).
Files hold QuantizeLinear and DequantizeLinear of standard ONNX.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import aimet_onnx
import numpy as np
import onnx
import torch
from aimet_onnx.common import quantsim_config
from aimet_onnx.cross_layer_equalization import equalize_model

CONFIGS = Path(quantsim_config.__file__).parent


def simulated(model: onnx.ModelProto, weights: str, per_channel: bool, activations: bool) -> Any:
    """A network with AIMET's quantizers; without activations theirs are off."""
    name = "default_config_per_channel.json" if per_channel else "default_config.json"
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=weights,
        activation_type="int8",
        quant_scheme="tf_enhanced",
        config_file=str(CONFIGS / name),
    )
    if not activations:
        for tensor in sim.activation_names:
            sim.qc_quantize_op_dict[tensor].enabled = False
    return sim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = np.load(args.folder / "calibration.npy")
    source = onnx.load(args.folder / "model.onnx").graph.input[0].name
    batches = [{source: batch} for batch in np.split(images, len(images) // 10)]

    rows = {
        # name: weights, per channel, quantized activations, AdaRound, cross-layer equalization
        "W8A8, per tensor": ("int8", False, True, False, False),
        "W8A8, per tensor, CLE": ("int8", False, True, False, True),
        "W8A8, per channel": ("int8", True, True, False, False),
        "W4A8, per channel": ("int4", True, True, False, False),
        f"W4A8, per channel, AdaRound {args.iterations}": ("int4", True, True, True, False),
        f"W4, per channel, AdaRound {args.iterations}": ("int4", True, False, True, False),
    }
    for name, (weights, per_channel, activations, adaround, cle) in rows.items():
        if args.rows not in name:
            continue
        start = time.process_time()
        model = onnx.load(args.folder / "model.onnx")
        if cle:
            equalize_model(model)
        sim = simulated(model, weights, per_channel, activations)
        if adaround:
            aimet_onnx.apply_adaround(sim, batches, num_iterations=args.iterations)
        sim.compute_encodings(batches)
        made = sim.to_onnx_qdq()
        onnx.save(made, args.folder / f"AIMET {name}.onnx")
        spent = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{name}: {spent:.0f} CPU s, peak of the process so far {peak} MiB", flush=True)


if __name__ == "__main__":
    main()
