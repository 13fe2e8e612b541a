"""What a composed configuration may hold: one frozen dataclass per group that names no target of its own.

A group entry with a `_target_` (method, adapter, penalty, mix, optimizer) is checked against that target
instead (`runners/signatures.py`). Types and ranges are pydantic's; rules over several keys stand in
`__post_init__`. No torch here: checking a sweep of hundreds of cells must stay cheap.
"""

import re
import string
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

# Kinds of model that have an adapter in methods/kinds/; and none, of methods that need no model.
Kind = Literal["causal", "image", "none"]

# Of each `dataset.type` the keys that say where its responses are: templates, and those that name one column.
RESPONSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "completion": (("completion",), ()),
    "problem": (("completion",), ()),
    "negative": (("completion",), ()),
    "labelled": (("completion",), ("label",)),
    "pair": (("chosen", "rejected"), ()),
    "groups": ((), ("chosen", "rejected")),
    "ranked": ((), ("responses", "scores")),
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Model:
    """`model:` — where weights, architecture and tokenizer come from. Exactly one source of weights."""

    kind: Kind = "causal"
    id: str | None = None  # a Hugging Face hub id or a local folder
    revision: str | None = None  # of a hub id; null: main, resolved to its commit
    model_type: str | None = None  # what transformers calls the architecture of the id; debug=random builds a small one
    from_run: Annotated[list[str], Field(min_length=1)] | None = (
        None  # the overrides of the run whose final weights are taken
    )
    # of a merger: the runs whose final weights are put together
    from_runs: Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=2)] | None = None
    # the run whose final weights a frozen reference has; null: what training starts from
    reference_run: Annotated[list[str], Field(min_length=1)] | None = None
    architecture: dict[str, Any] | None = None  # random weights: `model_type` and arguments of its config class
    classes: Annotated[int, Field(ge=2)] | None = None  # image: a new head for so many; null: the one that is there
    tokenizer: str | None = None  # null: the model's own; `bytes`: one token per byte; else a hub id or folder
    init_seed: NonNegativeInt = 0  # of random weights
    dtype: Literal["float32", "bfloat16"] = "float32"  # in which weights are loaded
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.kind == "none":
            given = [key for key in ("id", "from_run", "from_runs", "reference_run", "architecture", "tokenizer")
                     if getattr(self, key) is not None]  # fmt: skip
            if given:
                raise ValueError(f"model.{given[0]}: must be null with model.kind=none, which is no model")
            return
        sources = [name for name in ("id", "from_run", "from_runs", "architecture") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(
                f"must set exactly one of model.id, model.from_run, model.from_runs, model.architecture, got {sources}"
            )
        if self.architecture is not None and self.architecture.get("model_type") is None:
            raise ValueError("model.architecture must name its model_type (that of debug=random is model.model_type)")
        if self.kind == "image" and self.tokenizer is not None:
            raise ValueError(f"model.tokenizer={self.tokenizer}: must be null with model.kind=image")
        if self.kind != "image" and self.classes is not None:
            raise ValueError(f"model.classes={self.classes}: only with model.kind=image, got {self.kind}")
        if self.architecture is not None and self.tokenizer is None and self.kind != "image":
            raise ValueError("model.tokenizer must be given with model.architecture")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Dataset:
    """`dataset:` — training examples: a prompt and its completion, or the responses to it and what is said of them.

    type: completion (to be imitated), problem (with what a response is checked against), pair (chosen and rejected),
    labelled (one response, good or bad), negative (one bad response), ranked (responses with scores), groups (several
    chosen, several rejected).
    """

    source: Literal["mini_world", "hub", "file"]
    skill: str | None = None  # mini_world: one of its skills, or `pretraining` for their mixture
    size: PositiveInt | None = None  # mini_world: items generated
    options: dict[str, float] | None = None  # mini_world: of a skill of evals/worlds.py
    seed: int = 0  # mini_world: which items
    path: str | None = None  # hub: its id; file: a .jsonl, .json or .parquet file
    name: str | None = None  # hub: the configuration of the set
    revision: str | None = None
    data_dir: str | None = None  # hub: a folder inside the set, whose files alone are read
    split: str = "train"
    data_root: str | None = None  # hub: a folder that may hold a local copy
    type: Literal["completion", "problem", "pair", "labelled", "negative", "ranked", "groups"] = "completion"
    layout: Literal["columns", "dialogue", "messages"] = "columns"  # dialogue: prompt and answer in one text
    chat: bool = False  # columns: as one turn of the tokenizer's chat template
    prompt: str = "{prompt}"  # template over the columns; empty: no prompt
    completion: str = "{answer}"
    reference: str | None = None  # problem: a function by its dotted path, from a row to the answer, not `completion`
    chosen: str = "{chosen}"  # pair: template; groups: the column with a list of responses
    rejected: str = "{rejected}"
    label: str = "{label}"  # labelled: the column that says whether the completion is good
    responses: str = "{responses}"  # ranked: the column with a list of responses,
    scores: str = "{scores}"  # and that with a score for each
    loss_on: Literal["completion", "all"] = "completion"
    add_eos: bool = True  # end the completion with EOS, which carries loss
    where: dict[str, str | int | float | bool] | None = None  # only rows with these values in these columns
    limit: PositiveInt | None = None  # take the first so many examples
    # A selector keeps a part of the training examples (`runners/selecting.py`).
    select: str | None = None  # its name in `methods/selection/`, or the dotted path of its class
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # share of the examples
    select_options: dict[str, Any] | None = None  # its hyper-parameters
    select_run: Annotated[list[str], Field(min_length=1)] | None = None  # whose final model embeds; null: the start's

    def __post_init__(self) -> None:
        if self.source == "mini_world" and (self.skill is None or self.size is None):
            raise ValueError("dataset.skill and dataset.size must be set for source mini_world")
        if self.source != "mini_world" and self.path is None:
            raise ValueError(f"dataset.path must be set for source {self.source}")
        if self.options and self.source != "mini_world":
            raise ValueError(f"dataset.options={self.options}: only source mini_world has options")
        if self.chat and self.layout != "columns":
            raise ValueError(f"dataset.chat=true: only for layout columns, as messages are a chat, got {self.layout}")
        if self.loss_on == "all" and self.type != "completion":
            raise ValueError(f"dataset.loss_on=all: only for type completion, as a response is judged, got {self.type}")
        if self.reference is not None and self.type != "problem":
            raise ValueError(f"dataset.reference={self.reference}: only for type problem, got {self.type}")
        templates, columns = ((), ()) if self.reference is not None else RESPONSES[self.type]
        for key in templates:
            if not getattr(self, key):
                raise ValueError(f"dataset.{key} must be a template, got ''")
        for key in (*columns, *(templates if self.layout == "messages" else ())):
            if not re.fullmatch(r"\{[^{}]+\}", getattr(self, key)):
                raise ValueError(f"dataset.{key} must name one column, as {{{key}}} does, got {getattr(self, key)!r}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Training:
    """`training:` — what one optimisation looks like, whatever the method."""

    batch_size: PositiveInt = 64  # examples per optimizer step, over all processes
    # examples (a pair is one), or packed rows, per forward pass of one process; changes memory, not results
    micro_batch_size: PositiveInt = 64
    steps: PositiveInt | None = None  # optimizer steps; or
    epochs: PositiveFloat | None = None  # passes over the data
    max_length: PositiveInt | None = None  # tokens of a training sequence, and of a packed row; null: the model's
    too_long: Literal["error", "truncate", "drop"] = "error"
    packing: bool = False
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    milestones: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = field(default_factory=lambda: [0.3, 0.6, 0.8])
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = (
        0.1  # step: at each of these shares of the steps the rate is so much
    )
    warmup_ratio: Fraction = 0.03  # share of the steps over which the learning rate rises linearly from 0
    clip_norm: PositiveFloat | None = 1.0  # of the global gradient; null: no clipping
    checkpoint_every: PositiveInt | None = None  # optimizer steps
    checkpoint_minutes: PositiveFloat | None = 10.0  # and whenever the last one is so old
    log_every: PositiveInt = 10
    profile: bool = False  # a trace of a few steps by torch's profiler, in the run's folder

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"must set exactly one of training.steps ({self.steps}) and training.epochs ({self.epochs})"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"training.milestones={self.milestones}: must rise")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Task:
    """One lm-eval task or group, by lm-eval's name or one of `evals/tasks/`."""

    name: str
    num_fewshot: NonNegativeInt | None = None  # null: the task's own
    limit: PositiveInt | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # reaches tasks that generate their data


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KlToBase:
    """KL(base || tuned) on what the base model writes after BOS alone."""

    samples: Annotated[int, Field(ge=2)]
    max_length: Annotated[int, Field(ge=2)]  # tokens of a sample, BOS included
    batch_size: PositiveInt = 64  # of the generation
    seed: NonNegativeInt = 0
    start_token: str | None = None  # what to begin with where the tokenizer has no BOS


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Preference:
    """What the model prefers and writes, on held-out pairs and their prompts, against what training started from."""

    dataset: dict[str, Any]  # keys of `dataset:`, of type pair
    max_pairs: Annotated[int, Field(ge=2)] | None = None  # the first so many rows; null: all
    prompts: Annotated[int, Field(ge=2)] = 200  # the first so many different ones are sampled from
    samples_per_prompt: PositiveInt = 4
    max_new_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    batch_size: PositiveInt = 64  # of the generation
    seed: NonNegativeInt = 0
    kl: bool = True  # KL to the start, and entropy, on the model's own samples
    reward: dict[str, Any] | None = None  # {function: dotted path} or {model: ID}; null: no reward, no win rate
    beta: PositiveFloat | None = None  # scale of the implicit reward; null: method.beta, 1 where there is none

    def __post_init__(self) -> None:
        if self.kl and (self.temperature != 1 or self.top_p != 1):
            raise ValueError(
                "evaluation.preference.kl=true: KL and entropy are estimated on samples as the model draws them, at "
                f"temperature 1 and top_p 1, got {self.temperature} and {self.top_p}; to leave them out, set "
                "evaluation.preference.kl=false"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Judge:
    """Answers to prompts, compared with a baseline's by a language model behind an OpenAI-compatible endpoint."""

    endpoint: str  # up to and without /chat/completions
    model: str  # the judge, as the endpoint calls it
    dataset: dict[str, Any]  # keys of `dataset:`, of type completion; its completions are the baseline's answers
    baseline: Literal["dataset", "start"] = "dataset"  # start: what training started from answers in their place
    api_key_env: str | None = None  # the environment variable that holds the key, where there is one
    template: str | None = None  # of a question, with {prompt}, {first} and {second}; null: that of evals/judge.py
    both_orders: bool = True  # ask twice, each answer first once
    prompts: Annotated[int, Field(ge=2)] | None = None  # the first so many different ones; null: all
    max_new_tokens: PositiveInt = 512  # of an answer
    temperature: NonNegativeFloat = 0.0  # of an answer; 0 takes the likeliest tokens
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    batch_size: PositiveInt = 64  # of the generation
    seed: NonNegativeInt = 0
    reply_tokens: PositiveInt = 512  # of the judge
    connections: PositiveInt = 8  # questions at the same time
    timeout: PositiveFloat = 120.0  # seconds for a reply
    retries: NonNegativeInt = 5  # where it is busy, down or broken off

    def __post_init__(self) -> None:
        if not re.match("https?://", self.endpoint):
            raise ValueError(f"evaluation.judge.endpoint={self.endpoint}: must begin with http:// or https://")
        if self.template is not None:
            try:
                names = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
            except ValueError as error:
                names = {str(error)}
            if names != {"prompt", "first", "second"}:
                raise ValueError(
                    "evaluation.judge.template: must have {prompt}, {first} and {second} (a literal brace is written "
                    f"twice), got {', '.join(sorted(names)) or 'none of them'}"
                )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Mauve:
    """MAUVE of what the model writes after prompts, against the texts of a data set."""

    dataset: dict[str, Any]  # keys of `dataset:`, of type completion
    embedding: str  # a hub id or a local folder of a model; terms: strings of characters, without a model
    embedded_tokens: PositiveInt = 1024  # of prompt and text; what follows is not seen
    prompts: Annotated[int, Field(ge=2)] | None = None  # the first so many different ones; null: all
    max_new_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    batch_size: PositiveInt = 64  # of the generation
    seed: NonNegativeInt = 0
    clusters: Annotated[int, Field(ge=2)] | None = None  # null: a tenth of the texts
    scaling: PositiveFloat = 5.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Problems:
    """Problems whose answers can be checked."""

    dataset: dict[str, Any]  # keys of `dataset:`, of type problem
    rewards: Annotated[
        list[dict[str, Any]], Field(min_length=1)
    ]  # as of `method.rewards`; from 1 on an answer is solved
    problems: Annotated[int, Field(ge=2)] | None = None  # the first so many; null: all
    samples: PositiveInt = 4  # answers to each
    pass_at: list[PositiveInt] = field(default_factory=lambda: [1])
    max_new_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    stop: list[str] | None = None  # texts that end an answer
    environment: str | None = None  # a function (prompt, actions taken) -> allowed actions; null: any text
    max_steps: PositiveInt = 8  # actions at most, where there is an environment
    batch_size: PositiveInt = 64  # of the generation
    seed: NonNegativeInt = 0
    greedy: bool = True  # also the likeliest answer
    turns: PositiveInt = 1  # attempts at most, each but the first after feedback
    feedback: dict[str, Any] | None = None  # the reward whose feedback is shown; null: the first that counts
    feedback_template: str = "{prompt}{attempt}\n{feedback}\n"
    history: Literal["last", "chain"] = "last"
    max_feedback: PositiveInt = 1500

    def __post_init__(self) -> None:
        if self.pass_at and max(self.pass_at) > self.samples:
            raise ValueError(
                f"evaluation.problems.pass_at={self.pass_at}: must be at most evaluation.problems.samples, which is "
                f"{self.samples}"
            )
        if self.environment is not None and (self.turns > 1 or self.top_p != 1 or self.stop):
            raise ValueError(
                f"evaluation.problems.environment={self.environment}: what is allowed is drawn from as it is: turns "
                f"must be 1, top_p 1 and stop null, got {self.turns}, {self.top_p} and {self.stop}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Thoughts:
    """What a thought before completions adds to their likelihood."""

    dataset: dict[str, Any]  # keys of `dataset:`, of type completion
    documents: Annotated[int, Field(ge=2)] | None = None  # the first so many; null: all
    samples: NonNegativeInt = 4  # thoughts to each; 0: none, and completions follow the prompt at once
    max_new_tokens: PositiveInt = 256  # of a thought, its closing delimiter included
    temperature: NonNegativeFloat = 1.0  # of thoughts; completions are scored at 1
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    opening: str = "<think>"  # texts around a thought
    closing: Annotated[str, Field(min_length=1)] = "</think>"
    batch_size: PositiveInt = 64  # of the generation
    seed: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Accuracy:
    """Of an image classifier: the share of test images of the run's data set that it classifies rightly.

    source: what the model could do before its head was replaced (`model.classes` of the run, or of one it starts from).
    Its original head and batch norms are put back for it.
    """

    source: dict[str, Any] | None = None  # settings of a data set of images, as `dataset:` has them; null: not measured
    hardest: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # share of the training images, by the start's loss


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluation:
    """`evaluation:` — which lm-eval tasks measure the run's final model."""

    tasks: list[Annotated[Task, BeforeValidator(_by_name)]] = field(default_factory=list)  # or bare names
    kl_to_base: KlToBase | None = None
    preference: Preference | None = None
    judge: Judge | None = None
    mauve: Mauve | None = None
    problems: Problems | None = None
    problem_sets: dict[str, dict[str, Any]] | None = None  # by name, what is different from `problems`
    thoughts: Thoughts | None = None
    accuracy: Accuracy | None = None  # of image classifiers
    batch_size: PositiveInt = 16
    limit: PositiveInt | None = None  # items per task, where the task states none
    max_length: PositiveInt | None = None  # of the context; null: the model's
    data_root: str | None = None  # folder with local copies of hub sets
    include_path: list[str] = field(default_factory=list)  # folders with further lm-eval task YAMLs
    apply_chat_template: bool = False
    confirm_run_unsafe_code: bool = False  # tasks that execute what the model wrote need this


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Engine:
    """`engine:` — how DeepSpeed runs it. Precision changes results, the rest only memory and speed."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "bf16_autocast"] = "fp32"  # bf16_autocast: fp32 weights, bf16 matmuls
    offload: Literal["none", "optimizer", "all"] = "none"  # to CPU memory; optimizer: ZeRO 1-3, all: ZeRO 3
    activation_checkpointing: bool = False
    logits_chunk: PositiveInt | None = 1024  # target tokens whose logits are made at a time; null: all at once
    sampler: Literal["in_place", "copy", "vllm"] = "in_place"  # what a policy writes with while it is trained
    sampler_memory: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3  # share of a GPU's that vllm takes
    sampler_length: PositiveInt | None = None  # tokens that vllm has room for; null: as many as the model
    threads: PositiveInt | None = None  # CPU threads of PyTorch; null: its own choice

    def __post_init__(self) -> None:
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"engine.offload={self.offload} needs engine.zero_stage >= {needed}, got {self.zero_stage}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tracker:
    """`tracker:` — where the run is mirrored. Our own files in the run's folder are the record."""

    name: Literal["wandb", "none"] = "wandb"
    project: str = "retable"
    entity: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"  # auto: online when there is an API key


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Scale:
    """`scale:` — the paper's own setting (full) or an honest miniature (mini)."""

    name: Literal["mini", "full"]


# Groups checked against these dataclasses; groups checked against the target they name.
GROUPS: dict[str, type] = {
    "model": Model,
    "dataset": Dataset,
    "training": Training,
    "evaluation": Evaluation,
    "engine": Engine,
    "tracker": Tracker,
    "scale": Scale,
}
# Keys of `dataset:` that say which examples are kept.
SELECTION = ("select", "keep", "select_options", "select_run")
TARGETS = ("method", "optimizer")
PARTS = ("adapter", "penalty", "mix")


Job = Literal["run", "table", "list", "status", "plan", "diff", "export", "clean"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Root:
    """The keys of `conf/config.yaml` that belong to no group."""

    job: Job = "run"
    seed: NonNegativeInt = 1
    row: str | None = None
    outputs: Annotated[str, Field(min_length=1)] = "outputs"
    runs_from: list[str] = field(default_factory=list)  # further folders like `outputs` whose done runs count
    keep: Literal["none", "last", "best", "all"] = "last"  # children (model.from_run) need the final weights
    best_metric: str = "train/loss"  # keep=best: the checkpoint at which this logged metric was best
    best_is: Literal["lower", "higher"] = "lower"
    rerun: Literal["missing", "stale", "all"] = "missing"
    changed: Literal["refuse", "accept"] = "refuse"  # a sweep typed again with another configuration
    busy: Literal["wait", "fail"] = "wait"  # when another process is at work on the run
    fail_fast: bool = False
    processes: PositiveInt = 1  # workers on CPU cores
    gpus: NonNegativeInt = 0  # of each node, one worker each; 0: CPU, or the one GPU that is there
    nodes: PositiveInt = 1
    debug: dict[str, Any] | None = None  # a preset, as it was expanded
    runs: list[str] = field(default_factory=list)  # job=diff, job=export: folders of runs
    to: str | None = None  # job=export: the folder to write
    plugins: str | list[str] | None = None
    experiment: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.gpus and self.processes > 1:
            raise ValueError(
                f"must set one of processes ({self.processes}) and gpus ({self.gpus}): a GPU has one process"
            )
