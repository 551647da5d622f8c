"""Names, shapes and metadata of a published LoRA file, without its weights: `python shapes_of.py FILE.safetensors NAME` writes NAME.txt.gz.

`cloneofsimo_sd15.txt.gz` is example_loras/analog_svd_rank4.safetensors of github.com/cloneofsimo/lora.
"""

import gzip
import sys

import fixture
from safetensors import safe_open

with safe_open(sys.argv[1], "pt") as file:
    lines = [f"{name} {','.join(map(str, file.get_slice(name).get_shape()))}" for name in sorted(file.keys())]
    lines += [f"metadata {key} {value}" for key, value in sorted(file.metadata().items()) if not key.endswith(":rank")]
path = fixture.folder() / f"{sys.argv[2]}.txt.gz"
path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), 9, mtime=0))
