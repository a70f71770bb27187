"""What kind of model a configuration describes, in plain words: only causal language models are measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from landscape.errors import InputError

# The ends that transformers gives to the names of its classes, and what such a model is.
_OTHER_KINDS = {
    r"ForMaskedLM|ForPreTraining": "masked language model, which sees the tokens around the one that it predicts",
    r"ForSequenceClassification": "sequence classifier",
    r"ForTokenClassification": "token classifier",
    r"For\w*Classification": "classifier",
    r"ForQuestionAnswering\w*": "question-answering model, which marks an answer in a given text",
    r"ForMultipleChoice": "multiple-choice model",
    r"ForNextSentencePrediction": "next-sentence classifier",
    r"\w*RewardModel|ForReward\w*": "reward model",
    r"ForCTC|ForSpeechSeq2Seq|ForAudio\w*": "speech model",
    r"EncoderModel": "text encoder",
}
_ADAPTED_KINDS = {
    "SEQ_CLS": "sequence classifier",
    "TOKEN_CLS": "token classifier",
    "SEQ_2_SEQ_LM": "encoder-decoder model",
    "QUESTION_ANS": "question-answering model",
    "FEATURE_EXTRACTION": "text encoder",
}


def check_causal_kind(source: str, config: Any) -> None:
    """Check that a configuration is that of a causal language model, as far as it says so itself.

    What it does not say shows when the model computes: see `landscape.objective.checks`.

    Args:
        source: The checkpoint, as the user named it.
        config: Its transformers configuration.

    Raises:
        InputError: It is another kind of model; the message says which.

    Example:
        >>> from transformers import T5Config
        >>> try:
        ...     check_causal_kind("runs/t5", T5Config(architectures=["T5ForConditionalGeneration"]))
        ... except InputError as error:
        ...     print(error)
        runs/t5 is an encoder-decoder model (T5ForConditionalGeneration), not a causal language model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    named = getattr(config, "architectures", None) or []
    check_named_kind(source, named, bool(getattr(config, "is_encoder_decoder", False)))
    shown = _shown(named)
    own_code = getattr(config, "auto_map", None) or {}
    model_type = getattr(config, "model_type", "") or ""
    if model_type and model_type not in CAUSAL and "AutoModelForCausalLM" not in own_code:
        raise InputError(
            f"{source} is a {model_type!r} model{shown}, of which transformers has no causal language model."
        )


def check_named_kind(source: str, architectures: Iterable[Any], encoder_decoder: bool) -> None:
    """Check that the names of a checkpoint's classes are not those of another kind of model, without importing torch.

    Args:
        source: The checkpoint, as the user named it.
        architectures: What its config.json says under that name.
        encoder_decoder: Whether it says so (is_encoder_decoder).

    Raises:
        InputError: It is another kind of model; the message says which.

    Example:
        >>> check_named_kind("runs/llama", ["LlamaForCausalLM"], encoder_decoder=False)
    """
    named = list(architectures)
    if encoder_decoder:
        raise InputError(f"{source} is an encoder-decoder model{_shown(named)}, not a causal language model.")
    for name in named:
        for end, words in _OTHER_KINDS.items():  # no causal class of transformers has a name that ends so
            if re.search(rf"(?:{end})$", str(name)):
                raise InputError(f"{source} is a {words}{_shown(named)}, not a causal language model.")


def _shown(architectures: list[Any]) -> str:
    return f" ({', '.join(map(str, architectures))})" if architectures else ""


def check_causal_adapter(source: str, settings: dict) -> None:
    """Check that an adapter is not one for another kind of model.

    Args:
        source: The adapter, as the user named it.
        settings: The content of its adapter_config.json.

    Raises:
        InputError: Its task is that of another kind of model.
    """
    words = _ADAPTED_KINDS.get(str(settings.get("task_type")))
    if words:
        article = "an" if words[0] in "aeiou" else "a"
        raise InputError(
            f"{source} is an adapter that makes {article} {words} of its base (task_type {settings['task_type']}), "
            "not a causal language model."
        )
