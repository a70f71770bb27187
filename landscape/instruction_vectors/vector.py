"""Making the instruction vector of an in-context task: outputs of heads, their effects, and what the vector does."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint, identify
from landscape.errors import InputError, as_typed
from landscape.instruction_vectors.effects import as_mask, indirect_effects, top_heads
from landscape.instruction_vectors.prompts import TaskPrompts, VectorOptions, make_prompts
from landscape.instruction_vectors.result import InstructionVector, check_statistics, mean_of, share_of
from landscape.instruction_vectors.runs import answers, answers_with_heads_replaced, head_outputs
from landscape.instruction_vectors.tasks import InContextTask
from landscape.objective.scope import Run
from landscape.results import Journal, Provenance, digest_of
from landscape.weights.attention import Attention, attention_of
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved
from landscape.weights.vectors import vector_digest

_RANDOM_SETS = 10  # of heads, whose effects are averaged
_CAN_DO = 0.5  # A model that is right less often does not compute the task, and its heads say nothing of it.


@dataclasses.dataclass(frozen=True)
class Statistics:
    """How intervals are computed.

    Attributes:
        confidence: Share of repetitions in which an interval would hold the true value.
        resamples: Bootstrap samples of the prompts.
        seed: Seed of all draws.
    """

    confidence: float
    resamples: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Site:
    """A model with one task, ready to be measured.

    Attributes:
        model: The model.
        name: Its name.
        described: What provenance says of it.
        attention: Its heads.
        prompts: The prompts of the task.
        batch_tokens: Tokens in memory at once, at most.
    """

    model: nn.Module
    name: str
    described: dict
    attention: Attention
    prompts: TaskPrompts
    batch_tokens: int

    @cached_property
    def clean(self) -> tuple[Tensor, np.ndarray]:
        """What every head puts out in the clean prompts, and the answers to them, as `head_outputs` returns it."""
        with preserved(self.model):
            return head_outputs(self.model, self.attention, self.prompts.clean, self.batch_tokens)

    @cached_property
    def few_shot(self) -> np.ndarray:
        """The answers to the prompts that models are judged on, as `answers` returns them."""
        with preserved(self.model):
            return answers(self.model, self.prompts.few_shot, self.batch_tokens)

    @cached_property
    def zero_shot(self) -> np.ndarray:
        """The answers to the same questions without examples."""
        with preserved(self.model):
            return answers(self.model, self.prompts.zero_shot, self.batch_tokens)


def compute_instruction_vector(
    model: nn.Module | Checkpoint,
    task: InContextTask,
    *,
    tokenizer: Any = None,
    options: VectorOptions = VectorOptions(),
    confidence: float = 0.95,
    resamples: int = 9999,
    batch_tokens: int = 4096,
    seed: int = 0,
    run: Run = Run(),
) -> InstructionVector:
    """Find the heads through which a causal language model does an in-context task, and the vector that they write.

    With h(l, j; p) the output of head j of layer l at the last token of prompt p, and its mean over clean prompts
    h(l, j), the indirect effect of a head is the rise of the probability of the right answer when its output is
    replaced by h(l, j) in a prompt whose examples have shuffled answers. With S the heads of the largest mean effects,

        vector = sum over (l, j) in S of W_O(l, j) h(l, j).

    What the heads do together, and what the vector does when it is added to the attention output of `layer` at the last
    token of prompts without examples, is measured on other questions than those the heads were chosen on.

    The model is read through forward hooks, and comes back bit for bit as it was. Inside `shared_work`, processes share
    the prompts.

    Args:
        model: A transformers causal language model, or its checkpoint. Its attention must end in one linear layer over
            the outputs of all heads (Llama, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX and others).
        task: The task, one of those that `load_tasks` reads.
        tokenizer: The model's tokenizer; a checkpoint brings its own.
        options: Numbers of examples, prompts and heads, and the layer of the vector.
        confidence: Confidence of the intervals: over prompts, studentized bootstrap; for shares of right answers,
            Wilson's.
        resamples: Bootstrap samples.
        batch_tokens: Tokens in memory at once, at most. Changes memory use, never results beyond rounding.
        seed: Seed of the prompts, the random heads and the bootstrap.
        run: Only `journal` and `progress` have a use.

    Returns:
        The vector, the heads and all effects.

    Raises:
        InputError: The task has too few pairs whose answer is one token, the model is right in fewer than half of its
            prompts, or the model has another layout of attention.

    Source:
        Jiang et al. 2024 (arXiv 2406.12227), after Todd et al. 2024 (arXiv 2310.15213), sections 2.2 and 2.3, where the
        effect is that on shuffled prompts and the vector is a sum over ten heads.

    Example:
        A model of one layer that knows nothing is refused: an instruction vector is of what a model can do.

        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from landscape import VectorOptions, compute_instruction_vector, load_tasks
        >>> words = {word: index for index, word in enumerate(["?", "Q", "A", ":", *map(str, range(40))])}
        >>> split = Tokenizer(models.WordLevel(words, unk_token="?"))
        >>> split.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=split)
        >>> shape = {"vocab_size": 44, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1))
        >>> next_one = [{"task": "next", "input": str(i), "output": str(i + 1)} for i in range(39)]
        >>> try:
        ...     compute_instruction_vector(
        ...         model, load_tasks(next_one)["next"], tokenizer=tokenizer, options=VectorOptions(heads=1)
        ...     )
        ... except ValueError as error:
        ...     print(str(error).split(":")[1])
         an instruction vector is of a task that the model can do in at least half of them.
    """
    run.only("compute_instruction_vector", "journal")
    check_statistics(confidence, resamples)
    site = open_site(model, task, tokenizer, options, seed, batch_tokens)
    return measure_vector(site, task, options, Statistics(confidence, resamples, seed), run, must_do=True)


def open_site(
    model: nn.Module | Checkpoint,
    task: InContextTask,
    tokenizer: Any,
    options: VectorOptions,
    seed: int,
    batch_tokens: int,
) -> Site:
    """Find the heads of a model and make the prompts of a task. Raises InputError where one of them does not suit."""
    module, name, described = identify(model)
    if not isinstance(task, InContextTask):
        raise InputError(f"the task is a {type(task).__name__}; give one of those that load_tasks(source) returns.")
    if tokenizer is None:
        if not isinstance(model, Checkpoint):
            raise InputError("a module has no tokenizer of its own; give tokenizer, or a Checkpoint (load_checkpoint).")
        tokenizer = model.tokenizer
    attention = attention_of(module)
    if options.layer is not None and options.layer >= attention.layers:
        raise InputError(f"{as_typed('layer', options.layer)} is none of the {attention.layers} layers of {name}.")
    if 2 * options.heads > attention.layers * attention.heads:
        raise InputError(
            f"{as_typed('heads', options.heads)} is more than half of the {attention.layers * attention.heads} heads "
            f"of {name}, so that as many random others are not there."
        )
    positions = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    prompts = make_prompts(task, tokenizer, options, seed, positions)
    vocabulary = module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    highest = max(max(*prompt.tokens, prompt.answer) for prompt in (*prompts.clean, *prompts.few_shot))
    if highest >= vocabulary:
        raise InputError(f"{name} has {vocabulary} tokens, fewer than its tokenizer; token {highest} has no embedding.")
    described = described or {"weights": vector_digest(Parameters(module, frozen=True).values())}
    return Site(module, name, described, attention, prompts, batch_tokens)


def measure_vector(
    site: Site, task: InContextTask, options: VectorOptions, statistics: Statistics, run: Run, *, must_do: bool
) -> InstructionVector:
    """Make the instruction vector of a task. With `must_do`, InputError refuses a model that cannot do it."""
    started = time.perf_counter()
    attention, prompts = site.attention, site.prompts
    settings = dataclasses.asdict(options) | {"layer": steering_layer(options, attention)}
    first = next(site.model.parameters())
    with preserved(site.model):
        outputs, answered = site.clean
        if must_do:
            _require_right(site, task, answered)
        mean = outputs.mean(0)
        computation = settings | {
            "weights": site.described,
            "task": task.digest,
            "prompts": digest_of([dataclasses.astuple(prompt) for prompt in prompts.shuffled]),
            "seed": statistics.seed,
            "device": str(first.device),
            "dtype": str(first.dtype),
        }
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(Journal(run.journal, computation)) if run.journal is not None else None
            effects = indirect_effects(
                site.model,
                attention,
                prompts.shuffled,
                mean,
                batch_tokens=site.batch_tokens,
                journal=journal,
                title=f"{site.name} {task.name}",
                progress=run.progress,
            )
        heads = top_heads(effects, options.heads)
        joint, random = joint_effects(site, heads, mean, statistics.seed)
        vector = attention.written(mean, heads)
        layer = settings["layer"]
        steered = answers(site.model, prompts.zero_shot, site.batch_tokens, lambda: attention.adding(layer, vector))
    over = (statistics.confidence, statistics.resamples, statistics.seed)
    return InstructionVector(
        name=site.name,
        task=task.name,
        heads=heads,
        vector=vector.double().cpu().numpy() if vector.device.type != "mps" else vector.cpu().double().numpy(),
        layer=layer,
        effects=effects,
        few_shot=share_of(site.few_shot[:, 1], statistics.confidence),
        zero_shot=share_of(site.zero_shot[:, 1], statistics.confidence),
        steered=share_of(steered[:, 1], statistics.confidence),
        joint_effect=mean_of(joint, *over),
        random_effect=mean_of(random, *over),
        confidence=statistics.confidence,
        questions=len(prompts.few_shot),
        left_out=prompts.left_out,
        provenance=Provenance(
            settings=settings | {"confidence": statistics.confidence, "resamples": statistics.resamples},
            seed=statistics.seed,
            checkpoint=site.described,
            data={"source": task.source, "digest": task.digest},
            device=str(first.device),
            dtype=str(first.dtype).removeprefix("torch."),
            seconds=time.perf_counter() - started,
        ),
    )


def check_can_do(site: Site, task: InContextTask) -> None:
    """Raise InputError where a model is right in fewer than half of the prompts that a vector would be made from."""
    _require_right(site, task, site.clean[1])


def _require_right(site: Site, task: InContextTask, answered: np.ndarray) -> None:
    """Raise InputError where fewer than half of the answers are right."""
    right = answered[:, 1]
    if right.mean() < _CAN_DO:
        raise InputError(
            f"{site.name} is right in {int(right.sum())} of {len(right)} prompts of task {task.name}: an instruction "
            "vector is of a task that the model can do in at least half of them."
        )


def joint_effects(
    site: Site, heads: tuple[tuple[int, ...], ...], outputs: Tensor, seed: int, draws: int = _RANDOM_SETS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the effects of replacing a set of heads at once, and those of as many random others.

    Args:
        site: The model and the prompts; the effects are those on the prompts that models are judged on.
        heads: The set.
        outputs: What takes the place of their outputs, (layers, heads, size).
        seed: Seed of the random others.
        draws: How many sets of random others are drawn.

    Returns:
        Both float64, (questions,). The second is the mean over the draws; NaN without any.
    """
    attention = site.attention
    shape = (attention.layers, attention.heads)
    others = [(layer, head) for layer, head in np.ndindex(shape) if (layer, head) not in set(heads)]
    generator = np.random.default_rng(seed)
    sets = [as_mask(heads, attention)]
    for _ in range(draws):
        drawn = generator.permutation(len(others))[: len(heads)]
        sets.append(as_mask([others[index] for index in drawn], attention))
    where = torch.stack([*sets, torch.zeros(shape, dtype=torch.bool)])
    prompts = site.prompts.few_shot_shuffled
    found = answers_with_heads_replaced(site.model, attention, prompts, where, outputs, site.batch_tokens)
    rises = found[:, :-1] - found[:, -1:]
    return rises[:, 0], rises[:, 1:].mean(1) if draws else np.full(len(rises), np.nan)


def steering_layer(options: VectorOptions, attention: Attention) -> int:
    """Return the layer to whose attention output vectors are added: a third of the way up, where none is chosen."""
    return attention.layers // 3 if options.layer is None else options.layer
