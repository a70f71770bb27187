"""Questions asked in the chat template: the same answers as lm-evaluation-harness with --apply_chat_template."""

import copy
import json

import pytest
from conftest import build_model
from test_choices import TEMPLATE
from test_harness import offline, write_task  # noqa: F401

from landscape.data.questions import load_questions
from landscape.data.tokens import IGNORED
from landscape.errors import InputError
from landscape.forgetting.losses import measure_forgetting


@pytest.fixture
def chat(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.chat_template = TEMPLATE
    return made


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


RECORD = {"question": "fox?", "choices": ["one", "two"], "answer": 1}


def text_of(tokenizer, questions):
    return tokenizer.decode(questions.questions[0].plain[1].input_ids)


def test_the_format_is_the_template_where_there_is_one_and_plain_when_asked(tmp_path, tokenizer, chat):
    path = write(tmp_path / "q.jsonl", RECORD)
    asked = load_questions(path, chat)
    assert (asked.prompt_format, text_of(chat, asked)) == ("chat", "<|user|>fox?\n<|assistant|>two")
    assert chat.decode([token for token in asked.examples[0].labels if token != IGNORED]) == "two"
    plainly = load_questions(path, chat, prompt_format="plain")
    assert (plainly.prompt_format, text_of(chat, plainly)) == ("plain", "fox? two")
    assert load_questions(path, tokenizer).prompt_format == "plain"
    assert asked.digest != plainly.digest
    with pytest.raises(InputError, match="needs a tokenizer with a chat template"):
        load_questions(path, tokenizer, prompt_format="chat")
    with pytest.raises(InputError, match="prompt_format='char' is none of auto, chat, plain"):
        load_questions(path, tokenizer, prompt_format="char")


def test_choices_are_listed_when_asked(tmp_path, chat):
    path = write(tmp_path / "q.jsonl", RECORD)
    listed = load_questions(path, chat, list_choices=True)
    assert text_of(chat, listed) == "<|user|>fox?\n- one\n- two\n\n<|assistant|>two"
    completion = write(tmp_path / "c.jsonl", {"prompt": "a", "completion": "b", "instruction": "c"})
    with pytest.raises(InputError, match="line 1 has no choices to list"):
        load_questions(completion, chat, list_choices=True)


@pytest.mark.slow
def test_answers_are_those_of_lm_eval_with_the_template(tmp_path, chat, offline):  # noqa: F811
    """Accuracy, and the log-probability of every choice; asked plainly, they would be others."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tuned = (build_model("llama", seed) for seed in (4, 8))
    path, task = write_task(tmp_path, "asked")
    harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(chat), batch_size=4)
    manager = TaskManager(include_path=str(tmp_path))
    report = simple_evaluate(
        harness, tasks=[task.stem], task_manager=manager, apply_chat_template=True, bootstrap_iters=0, log_samples=True
    )
    theirs = report["results"]["asked"]["acc,none"]
    questions = load_questions(path, chat)
    (choices,) = measure_forgetting(model, tuned, {"asked": questions}, resamples=99).choices
    assert choices.prompt_format == "chat"
    assert choices.plain.accuracy_before == pytest.approx(theirs, abs=1e-12)
    samples = sorted(report["samples"]["asked"], key=lambda sample: sample["doc_id"])
    right = [float(s["filtered_resps"][s["doc"]["answer"]][0]) for s in samples]
    # sums of float32 log-probabilities over a few tokens; a space before the choice would move them by more than 0.01
    assert choices.plain.loss_before == pytest.approx(-sum(right) / len(right), abs=1e-4)
    plainly = load_questions(path, chat, prompt_format="plain")
    (other,) = measure_forgetting(model, tuned, {"asked": plainly}, resamples=99).choices
    assert abs(other.plain.loss_before - choices.plain.loss_before) > 1e-2
