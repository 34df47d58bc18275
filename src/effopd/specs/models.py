"""How a model of the workflow comes about, by its `kind`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from effopd.specs.engines import EngineSettings
from effopd.specs.section import JobSpec, Section, Task
from effopd.specs.updates import LoraSettings, UpdateSettings


@dataclass(frozen=True, kw_only=True)
class TrainedSettings(UpdateSettings):
    """A model that the workflow trains."""

    kind: str
    seed: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings(TrainedSettings):
    """`kind: pretrain`: a Qwen3-shaped model from scratch."""

    batch_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    initial_deviation: float


@dataclass(frozen=True)
class EarlyStoppingSettings(Section):
    """When training ends before its last step (docs/rl.md)."""

    every: int
    patience: int
    problems: int


@dataclass(frozen=True, kw_only=True)
class RLSettings(TrainedSettings):
    """`kind: grpo`, `dapo` or `ppo` (docs/rl.md). What a kind has no key for keeps the default."""

    init: str
    prompts_per_step: int
    samples_per_prompt: int
    minibatches: int
    epochs: int
    clip_low: float
    clip_high: float
    measure_kl: bool
    max_new_tokens: int
    temperature: float
    kl_coefficient: float = 0.0
    scale_rewards: bool = False
    early_stopping: EarlyStoppingSettings | None = None
    max_draws: int = 0  # DAPO; 0: each step draws once, whatever its rewards
    overlong_buffer: int | None = None
    overlong_penalty: float = 0.0
    discount: float = 1.0  # PPO
    gae_lambda: float = 1.0
    value_scale: float = 1.0
    value_coefficient: float = 0.0
    value_clip: float = 0.0

    @property
    def actor_critic(self) -> bool:
        """Whether values are learned beside the policy."""
        return self.kind == "ppo"


@dataclass(frozen=True)
class ChosenSamples(Section):
    """Which of the samples are learned."""

    keep: str
    per_problem: int


@dataclass(frozen=True, kw_only=True)
class SFTSettings(TrainedSettings):
    """`kind: sft` (docs/sft.md)."""

    init: str
    data: str  # responses or samples
    batch_size: int
    max_tokens: int
    decay: str
    sampling: ChosenSamples | None = None  # of `data: samples`
    lora: LoraSettings | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Section):
    """How a model is sampled, for others to learn."""

    samples: int  # per problem
    temperature: float
    max_new_tokens: int
    batch_size: int
    seed: int
    problems: int | None = None  # all, if none are


@dataclass(frozen=True)
class PackageSettings(Section):
    """A GGUF file in the wheel of a Python package."""

    name: str
    version: str
    sha256: str
    file: str


@dataclass(frozen=True)
class PretrainedSettings(Section):
    """`kind: pretrained`: a model of the hub, of a local folder or GGUF file, or of a package, as it is."""

    kind: str
    dtype: str
    trust_remote_code: bool
    path: str | None = None  # of one that is not in a `package`
    revision: str | None = None
    package: PackageSettings | None = None

    @property
    def source(self) -> str:
        """Where it comes from, as messages name it."""
        if self.package is None:
            return str(self.path)
        return f"{self.package.file} of the package {self.package.name} {self.package.version}"


@dataclass(frozen=True, kw_only=True)
class FetchModel(JobSpec):
    """`fetch_model`."""

    model: PretrainedSettings


@dataclass(frozen=True, kw_only=True)
class PretrainModel(JobSpec):
    """`pretrain_model`."""

    model: PretrainingSettings
    task: Task


@dataclass(frozen=True, kw_only=True)
class TrainRL(JobSpec):
    """`train_rl`."""

    model: RLSettings
    engine: EngineSettings
    task: Task


@dataclass(frozen=True, kw_only=True)
class SampleResponses(JobSpec):
    """`sample_responses`."""

    sampling: SamplingSettings
    engine: EngineSettings
    task: Task


@dataclass(frozen=True, kw_only=True)
class TrainSFT(JobSpec):
    """`train_sft`."""

    model: SFTSettings
    parts: Mapping[str, str] = field(default_factory=dict)
