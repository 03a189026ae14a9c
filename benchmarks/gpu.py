"""The step benchmark on CUDA: ``python benchmarks/gpu.py``, with the options of step_time.py."""

from __future__ import annotations

import step_time
import timing
import torch


def main() -> int:
    """The command line."""
    arguments = timing.options("Step time and memory on the chaotic RNN, on a CUDA device.")
    parsed = arguments.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/gpu.py needs a CUDA device, and torch "
            f"{torch.__version__} sees none. On CPU run benchmarks/step_time.py."
        )
    parsed.clock = "wall"
    device = torch.device("cuda")
    print(torch.cuda.get_device_name(device))
    return step_time.run(parsed, device, "gpu")


if __name__ == "__main__":
    raise SystemExit(main())
