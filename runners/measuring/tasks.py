"""lm-eval at work for a run: what `evaluation:` settings ask for, of a model that is in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from evals.harness import Evaluation, Stopped, TaskRequest, evaluate
from runners import preemption, processes
from runners.errors import UserError


def by_lm_eval(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    seed: int,
    **options: Any,
) -> Evaluation:
    """Measure a model on tasks.

    Args:
        model: in evaluation mode, where it computes.
        tokenizer: its own.
        tasks: with the keys of one of `evaluation.tasks`; without any nothing is measured.
        settings: `evaluation:`.
        seed: of the run.
        options: of `evals.harness.evaluate`: where it keeps what it has done, whom it tells.

    Raises:
        UserError: what lm-eval refuses.
        Preempted: told to stop.
    """
    if not tasks:
        return Evaluation()
    try:
        return evaluate(
            model,
            tokenizer,
            [TaskRequest(**task) for task in tasks],
            batch_size=settings["batch_size"],
            limit=settings["limit"],
            max_length=settings["max_length"],
            data_root=settings["data_root"],
            include_path=settings["include_path"],
            seed=seed,
            apply_chat_template=settings["apply_chat_template"],
            confirm_run_unsafe_code=settings["confirm_run_unsafe_code"],
            should_stop=preemption.requested,
            **options,
        )
    except Stopped:
        raise processes.stop("in its evaluation") from None
    except ValueError as error:
        raise UserError(f"evaluation: {error}") from error
