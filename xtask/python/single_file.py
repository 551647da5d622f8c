"""What `cargo xtask bench convert` times of the reference: single_file.py CHECKPOINT CONFIGS DESTINATION DTYPE.

The whole program is timed, as a user runs it: import, read, write. The configs are those of a folder, so that nothing is fetched.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch

checkpoint, configs, destination, dtype = sys.argv[1:]
diffusers.utils.logging.disable_progress_bar()
pipeline = diffusers.StableDiffusionPipeline.from_single_file(checkpoint, config=configs, torch_dtype=getattr(torch, dtype), local_files_only=True)
pipeline.save_pretrained(destination)
