"""The shape of a job: every key of job.yaml, with its type. A plain dict, so that any machine can run it.

pydantic checks a job against these declarations; `None` means "derive it" (planning/ does).
"""

from typing import Any, Literal, NotRequired, cast, get_args

from typing_extensions import TypedDict  # typing's, which pydantic takes from Python 3.12 on

StageName = Literal["tokenizer", "base", "mid", "sft", "rl"]
STAGES: tuple[StageName, ...] = get_args(StageName)  # in the order in which a run has them
MODEL_STAGES = STAGES[1:]  # those that end in a model
Node = dict[str, Any]  # a mapping in a job.yaml, of whatever shape
Target = Node  # `_target_`: a constructor's dotted name; the other keys: its arguments


class Model(TypedDict):
    depth: int
    width: int | None
    heads: int | None
    kv_heads: int | None
    context: int  # tokens of a row


class Group(TypedDict):
    """The optimizer's settings for one parameter role, at width 768 and 2^19 tokens a step."""

    kind: Literal["muon", "adamw"]
    lr: float
    betas: NotRequired[list[float]]
    eps: NotRequired[float]
    weight_decay: float
    width_scaled: bool
    batch_scaled: bool


class Scaling(TypedDict):
    sizing: Literal["classic", "modern"]
    batch: Literal["fixed", "horizon"]
    target_ratio: float
    ratio_of: Literal["all", "matrices"]


class Watching(TypedDict):
    """Steps between evaluations, checkpoints and samples, and the size of the validation data."""

    eval_every: int
    eval_tokens: int
    save_every: int
    sample_every: int


class Mixture(TypedDict):
    """The data of a finetuning stage: the content of a file of conf/mixture."""

    mirror: str  # hub, sample, or a folder
    sources: list[Target]
    validation: list[Target]


class ChatTasks(TypedDict):
    """The questions for mid, sft and rl at their end: the content of a file of conf/chat_evaluation.

    `texts` and `questions` are what samples.md and the chat page begin with; without them, what is usual.
    """

    mirror: str
    max_tokens: int  # of an answer
    max_per_task: NotRequired[int]  # problems of each task, a fixed random part
    tasks: list[Target]
    texts: NotRequired[list[str]]
    questions: NotRequired[list[str]]


class FinetuneDefaults(Watching):
    mixture: str
    packing: Literal["flat", "single", "bestfit"]
    warm_start: bool  # the optimizer's state of the stage before
    lr_scale: float
    schedule: Target
    total_batch: int | None
    epoch_tokens: int | None  # about, of the recipe's own mixture; null for another


class RLDefaults(TypedDict):
    task: Target
    validation: Target
    warm_start: bool
    lr_scale: float
    schedule: Target
    questions: int
    samples: int
    temperature: float
    top_k: int
    max_new_tokens: int
    epoch_questions: int  # of the recipe's own task
    eval_every: int
    save_every: int


class Recipe(TypedDict):
    name: str
    corpus: str
    mirror: str
    vocab_size: int
    stages: list[StageName]
    packing: Literal["flat", "bestfit", "bestfit_split"]
    matmul_precision: Literal["high", "highest"]  # of float32 products: TF32, or all bits
    gpt: Target
    optimizer: Target
    groups: dict[str, Group]
    schedule: Target
    scaling: Scaling
    base: Watching
    mid: NotRequired[FinetuneDefaults]
    sft: FinetuneDefaults
    rl: RLDefaults
    chat_tasks: str


class Cluster(TypedDict):
    name: str
    kind: Literal["local", "modal", "slurm"]
    gpu: str | None
    devices: int  # of one node
    nodes: int
    cpu: NotRequired[float]  # physical cores of a node, where they are billed
    memory: NotRequired[int]  # MiB of a node, likewise


class TokenizerStage(TypedDict):
    vocab_size: int  # special tokens included
    doc_cap: int  # characters used of one document
    max_chars: int


class TextStage(TypedDict):
    """The settings that base, mid and sft share."""

    total_batch: int | None  # tokens of an optimizer step
    micro_batch: int | Literal["auto"] | None  # rows of one device
    max_steps: int | None
    eval_every: int | None
    eval_tokens: int | None
    save_every: int | None
    sample_every: int | None


class BaseStage(TextStage):
    lr_scale: float
    target_flops: float | None
    target_ratio: float | None
    core_every: int | Literal["end"] | None  # None: CORE is not asked


class FinetuneStage(TextStage):
    mixture: Mixture
    lr_scale: float | None


class RLStage(TypedDict):
    task: Target | None
    validation: Target | None
    micro_batch: int | Literal["auto"] | None
    lr_scale: float | None
    questions: int | None
    samples: int | None
    temperature: float | None
    top_k: int | None
    max_new_tokens: int | None
    max_steps: int | None
    eval_every: int | None
    save_every: int | None


class Stages(TypedDict):
    tokenizer: TokenizerStage
    base: BaseStage
    mid: NotRequired[FinetuneStage]
    sft: FinetuneStage
    rl: RLStage


class Job(TypedDict):
    """A job as it is run and stored: every key is read by what runs it."""

    phase: Literal["tokenizer", "base", "mid", "sft", "rl", "identity", "speedrun"]
    stages: list[StageName]
    model: Model
    recipe: Recipe
    data: Target
    cluster: Cluster
    logger: Target
    run: str
    seed: int
    root: str
    start_from: str | None
    precision: Literal["bf16", "fp32", "fp8"] | None
    compile: bool | None
    deterministic: bool
    chat_tasks: ChatTasks
    max_cost: float | None
    yes: bool
    dry_run: bool
    wait: bool
    offline: bool
    on_divergence: Literal["stop", "continue"]
    fast_dev_run: bool
    stage: Stages
    overrides: list[str]  # what was typed


class Choices(Job):
    """A job as a person chooses it: with shorthands too, which only fill in `stages` and `stage`."""

    rl: bool
    identity: str | None  # conversations that say who the model is
    sandbox: Literal["strong", "weak"]  # of programs that a model wrote
    total_batch: int | None
    micro_batch: int | Literal["auto"] | None
    max_steps: int | None
    target_flops: float | None
    target_ratio: float | None
    eval_every: int | None
    save_every: int | None
    sample_every: int | None
    core_every: int | Literal["end"] | None


SHORTHANDS = frozenset(Choices.__annotations__.keys() - Job.__annotations__.keys())


def finetune_settings(job: Job, stage: StageName) -> FinetuneStage:
    """Return the settings of mid or sft."""
    return cast(dict[str, FinetuneStage], job["stage"])[stage]


def finetune_defaults(job: Job, stage: StageName) -> FinetuneDefaults:
    """Return what the recipe says of mid or sft."""
    return cast(dict[str, FinetuneDefaults], job["recipe"])[stage]
