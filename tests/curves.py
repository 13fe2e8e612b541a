"""Short training runs whose losses, gradient norms and final weights tests compare; on one process or several."""

import numpy as np
import torch

from methods.finetune.flow import Flow, FlowConfig
from methods.finetune.sft import Sft, SftConfig
from methods.kinds.causal import Causal
from runners import processes, training
from runners.engine import TrainingEngine
from runners.schema import Engine, Training
from tests.models import batches_of, random_examples, tiny_llama

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.01}


class Curve:
    """A short training run: its losses, gradient norms and final weights."""

    def __init__(
        self,
        tmp_path,
        *,
        steps=8,
        micro=6,
        packing=False,
        method="sft",
        count=48,
        batch_size=6,
        shortest=4,
        optimizer=ADAMW,
        engine=None,
        model=None,
        poison=None,
        training_changes=None,
        start_method=None,
    ):
        settings = vars(
            Training(
                **{
                    "steps": steps,
                    "log_every": 1,
                    "batch_size": batch_size,
                    "warmup_ratio": 0.1,
                    **(training_changes or {}),
                }
            )
        )
        examples = random_examples(count, shortest=shortest)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.batches = batches_of(examples, batch_size=batch_size, micro=micro, packing=packing, rank=rank, world=world)
        self.method = start_method or (Sft(SftConfig()) if method == "sft" else Flow(FlowConfig()))
        self.method.kind = Causal()
        if isinstance(self.method, Flow) and self.method.weights_n is None:
            self.method.weights_n = torch.linspace(0.1, 1, count, dtype=torch.float64)
            self.method.temperature = 1.0
        engine = vars(engine or Engine())
        resume = processes.first_decides(lambda: training.find_resume(tmp_path, world, engine["zero_stage"]))
        universal = resume is not None and resume.universal
        self.engine = TrainingEngine(
            model or tiny_llama(), optimizer, engine, settings["clip_norm"], universal=universal
        )
        self.records = []
        self.folder = tmp_path
        if poison:
            poison(self)
        try:
            training.restore_method(self.method, training.method_state_of(tmp_path, resume))
            self.summary = training.train(
                self.method,
                self.engine,
                {"policy": self.engine.engine},
                self.batches,
                settings,
                lambda metrics, step: self.records.append((step, metrics)),
                lambda progress: training.save(self.engine, self.method, tmp_path, progress),
                training.restore(self.engine, resume, 0),
            )
        finally:
            self.weights = {name: value.clone() for name, value in self.engine.weights().items()}
            self.engine.close()

    @property
    def losses(self):
        return self.column("train/loss")

    def column(self, name):
        return np.array([metrics[name] for _, metrics in self.records])


class StopHere(Exception):
    """Raised in the middle of a run, in place of a power cut."""


def stopping_after(step):
    """A `poison` that ends the run right after an optimizer step (from 1), before a checkpoint of it is written."""

    def stop(curve):
        def after_step(done):
            if done + 1 == step:
                raise StopHere

        curve.method.after_step = after_step

    return stop
