"""Run by test_sft.py on two ranks: fine-tuning on this rank's share of the sequences."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from effopd.data import batching
from sft_setup import PARTED, Experiment

torch.set_num_threads(1)
batching.FEWEST_POSITIONS = 1  # each rank cuts its passes where its own lengths say
folder = Path(sys.argv[1])
experiment = Experiment(folder)
for name, tuned in PARTED.items():
    experiment.train(folder / f"two-{name}", ranks=2, **tuned)
os._exit(0)
