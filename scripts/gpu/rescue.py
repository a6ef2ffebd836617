"""What a cut-off run learnt, without the base model: adapters and gates of its checkpoints, in half precision.

python scripts/gpu/rescue.py CHECKPOINTS DIR
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def main(checkpoints: Path, out: Path) -> None:
    for path in sorted(checkpoints.glob("*.ckpt")):
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        learnt = {name: tensor for name, tensor in state.items() if "lora_" in name or "edge_gate" in name}
        half = {name: tensor.half() if "lora_" in name else tensor for name, tensor in learnt.items()}
        save_file({name: tensor.contiguous() for name, tensor in half.items()}, out / f"{path.stem}.safetensors")
        print(f"{path.name}: {len(learnt)} tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
