"""What every test shares: no network, no tracker of anybody's account, few threads, no terminal."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("COLUMNS", None)  # the worker of a parallel pytest has it, as if it were a terminal
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
