"""Questions: how records are read, that choices score as plain loops say, and that format and knowledge come apart."""

import copy
import dataclasses
import json

import numpy as np
import pyarrow
import pytest
import torch
from conftest import build_model
from pyarrow import parquet

from landscape.data.questions import holds_questions, load_questions
from landscape.data.tokens import IGNORED, load_data
from landscape.errors import InputError
from landscape.forgetting.losses import Forgetting, measure_forgetting

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHOICES = ["the fox", "a loss that rises", "naïve üÿ", "None"]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def questions_of(count=12, **more):
    words = ["fox", "dog", "loss", "minimum", "function", "statement", "model", "disk", "landscape", "sharp"]
    return [
        {"question": f"{words[i % 10]} {i}?", "choices": CHOICES[: 2 + i % 3], "answer": i % 2, **more}
        for i in range(count)
    ]


# --- reading ------------------------------------------------------------------------------------------------


def test_an_answer_is_an_index_a_text_or_a_letter(tmp_path, tokenizer):
    base = {"prompt": "which?", "choices": ["B", "red", "2"]}
    answers = [0, 2, "red", "2", "C", "B", "A"]  # "B" is a text before it is a letter
    path = write(tmp_path / "q.jsonl", *({**base, "answer": answer} for answer in answers))
    assert [q.answer for q in load_questions(path, tokenizer).questions] == [0, 2, 1, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": 4}, "line 2 has 4 as 'answer', which is no index, text or letter"),
        ({"answer": -1}, "has -1 as 'answer'"),
        ({"answer": True}, "has True as 'answer'"),
        ({"answer": "D"}, "has 'D' as 'answer'"),
        ({"choices": ["one"]}, "line 2 has 'choices' that are not a list of at least two"),
        ({"choices": {"text": ["a", "b"]}}, "'choices' that are not a list"),
        ({"choices": ["one", 2, "x"]}, "line 2 has no string as choice 2"),
        ({"choices": ["one", "", "x"]}, "an empty text as choice 2"),
        ({"question": None}, "no string as 'question'"),
        ({"question": " "}, "an empty 'question'"),
        ({"instruction": "Reply."}, "line 2 is not of the kind before it"),
        ({"choices": ["one", "fox " * 40, "x"]}, "line 2 has a choice of .* tokens, which max_length=32 cannot hold"),
    ],
)
def test_a_bad_question_is_named(tmp_path, tokenizer, change, words):
    good = {"question": "which?", "choices": ["one", "two", "three"], "answer": 0}
    path = write(tmp_path / "q.jsonl", good, {**good, **change})
    with pytest.raises(InputError, match=words):
        load_questions(path, tokenizer, max_length=32)


def test_questions_are_recognized_by_their_keys(tmp_path, tokenizer, records):
    (question,) = questions_of(1)
    assert holds_questions(write(tmp_path / "a.jsonl", question))
    assert holds_questions(write(tmp_path / "b.jsonl", {"prompt": "a", "completion": " b", "instruction": "c"}))
    assert not holds_questions(records)
    assert not holds_questions(write(tmp_path / "c.jsonl", {"text": "a", "choices": ["b"]}))
    assert not holds_questions("builtin:docs")
    with pytest.raises(InputError, match="running text"):
        load_questions("builtin:docs", tokenizer)


def test_every_source_of_records_holds_the_same_questions(tmp_path, tokenizer):
    rows = questions_of(9, instruction="Reply:")
    lines = write(tmp_path / "q.jsonl", *rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", *rows)
    digests = [load_questions(s, tokenizer).digest for s in (lines, tmp_path / "q.parquet", tmp_path / "folder")]
    assert len(set(digests)) == 1
    assert holds_questions(tmp_path / "folder")
    assert load_questions(lines, tokenizer).digest != load_questions(lines, tokenizer, limit=8).digest


def test_other_commands_take_questions_as_the_right_choice_after_the_prompt(tmp_path, tokenizer):
    path = write(tmp_path / "q.jsonl", *questions_of(9))
    plain, asked = load_data(path, tokenizer), load_questions(path, tokenizer)
    assert plain.examples == tuple(dataclasses.replace(e, labels=(IGNORED, *e.labels[1:])) for e in asked.examples)
    assert plain.tokens == asked.tokens
    assert tokenizer.decode([i for i in asked.examples[1].labels if i != IGNORED]) == " a loss that rises"


def test_tokens_of_the_instruction_format(tmp_path, tokenizer):
    (record,) = questions_of(1, instruction="Reply:")
    path = write(tmp_path / "q.jsonl", record)
    example = load_questions(path, tokenizer).questions[0].instructed[1]
    assert tokenizer.decode(example.input_ids) == "Reply:\nfox 0? a loss that rises"
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = TEMPLATE
    example = load_questions(path, chat).questions[0].instructed[1]
    assert tokenizer.decode(example.input_ids) == "<|user|>Reply:\nfox 0?\n<|assistant|>a loss that rises"
    assert tokenizer.decode([i for i in example.labels if i != IGNORED]) == "a loss that rises"
    chat.chat_template = "{{ nothing.at.all }}"
    with pytest.raises(InputError, match="line 1 cannot be rendered by the chat template"):
        load_questions(path, chat)


def test_a_long_question_loses_its_beginning_and_is_counted(tmp_path, tokenizer):
    path = write(
        tmp_path / "q.jsonl", {"question": "fox " * 50 + "which?", "choices": ["one", "two three"], "answer": 1}
    )
    found = load_questions(path, tokenizer, max_length=16)
    assert found.truncated == 1
    for example, choice in zip(found.questions[0].plain, (" one", " two three"), strict=True):
        assert len(example.input_ids) == 16
        assert tokenizer.decode(example.input_ids).endswith(f"which?{choice}")


# --- scoring ------------------------------------------------------------------------------------------------


def log_likelihood(model, example):
    """One sequence at a time, in float64 from the logits on."""
    ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels[1:])
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    kept = labels != IGNORED
    return float(log_p[kept].gather(1, labels[kept][:, None]).sum())


def test_answers_are_those_of_a_plain_loop_whatever_the_batches(tmp_path, tokenizer):
    base, tuned = build_model("llama", seed=1), build_model("llama", seed=2)
    path = write(tmp_path / "q.jsonl", *questions_of(24, instruction="Reply:"))
    asked = load_questions(path, tokenizer)
    found = measure_forgetting(base, tuned, {"mc": asked}, resamples=199)
    again = measure_forgetting(base, tuned, {"mc": asked.with_batch_tokens(20)}, resamples=199)
    (choices,) = found.choices
    assert choices.questions == 24
    assert choices.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    falls = {}
    for how, a, b in (
        ("plain", choices.plain, again.choices[0].plain),
        ("instructed", choices.instructed, again.choices[0].instructed),
    ):
        right, norm, loss = (np.zeros((24, 2)) for _ in range(3))
        for i, q in enumerate(asked.questions):
            for j, model in enumerate((base, tuned)):
                scores = np.array([log_likelihood(model, e) for e in getattr(q, how)])
                lengths = [len(c) for c in CHOICES[: len(scores)]]
                right[i, j], norm[i, j] = scores.argmax() == q.answer, (scores / lengths).argmax() == q.answer
                loss[i, j] = -scores[q.answer]
        assert (a.accuracy_before, a.accuracy_after) == tuple(right.mean(0))
        assert (a.norm_before, a.norm_after) == tuple(norm.mean(0))
        # float32 logits in batches against one sequence at a time
        assert (a.loss_before, a.loss_after) == pytest.approx(tuple(loss.mean(0)), rel=1e-5)
        assert a.accuracy_loss == pytest.approx(right[:, 0].mean() - right[:, 1].mean())
        assert a.accuracy_interval[0] <= a.accuracy_loss <= a.accuracy_interval[1]
        assert a.forgetting == pytest.approx(b.forgetting, rel=1e-4)
        assert a.accuracy_interval == b.accuracy_interval
        falls[how] = np.diff(loss).mean()
    assert choices.format_forgetting == pytest.approx(falls["instructed"] - falls["plain"], rel=1e-3, abs=1e-5)
    # the right answers alone are a task as any other
    assert found.tasks[0].loss_before == pytest.approx(choices.plain.loss_before * 24 / asked.tokens, rel=1e-5)


def test_results_reload_and_old_files_still_load(tmp_path, tokenizer):
    model = build_model("llama", seed=1)
    path = write(tmp_path / "q.jsonl", *questions_of(12))
    found = measure_forgetting(model, model, {"mc": load_questions(path, tokenizer)}, resamples=99)
    (asked,) = found.choices
    assert asked.instructed is None
    assert asked.plain.accuracy_loss == 0
    assert asked.plain.accuracy_interval == (0, 0)
    assert asked.plain.p_value == 1
    assert Forgetting.load(found.save(tmp_path / "new.json")).to_dict() == found.to_dict()
    assert "guessing gives" in str(found)
    content = found.to_dict()
    del content["choices"], content["benchmarks"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert Forgetting.load(tmp_path / "old.json").choices == ()


# --- knowledge and format, planted --------------------------------------------------------------------------

ANSWERS = ["fox", "dog", "loss", "disk"]


def fit(model, batches, steps=80):
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = sum(model(**batch).loss for batch in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def train(model, tokenizer, path, shifted):
    """Teach the answers of `path`, `shifted` by so many places in the (plain, instructed) form."""
    asked, batches = load_questions(path, tokenizer), []
    for form, shift in zip(("plain", "instructed"), shifted, strict=True):
        chosen = [getattr(q, form)[(q.answer + shift) % len(ANSWERS)] for q in asked.questions]
        batches += asked.as_batches(chosen)
    return fit(model, batches)


def asked_with_instruction(asked):
    return asked.as_batches([q.instructed[q.answer] for q in asked.questions])


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    write(
        path,
        *(
            {"question": f"{i} {'abcd'[i % 4]}?", "choices": ANSWERS, "answer": (i // 3) % 4, "instruction": "Reply:"}
            for i in range(16)
        ),
    )
    return path, train(build_model("llama", seed=0), tokenizer, path, (0, 0))


@pytest.mark.parametrize(("shifted", "knowledge", "instruction"), [((0, 1), 0, 1), ((1, 1), 1, 1), ((1, 0), 1, 0)])
def test_what_was_made_to_be_lost_is_what_is_found_lost(taught, tokenizer, shifted, knowledge, instruction):
    """Tuned towards wrong answers in one form while the other is kept: the split must say which it was."""
    path, base = taught
    tuned = train(copy.deepcopy(base), tokenizer, path, shifted)
    (asked,) = measure_forgetting(base, tuned, {"facts": load_questions(path, tokenizer)}, resamples=999).choices
    # memorized facts: both forms are known before, and lost or kept whole; a fact in 16 may stick
    assert asked.plain.accuracy_before == asked.instructed.accuracy_before == 1
    assert asked.plain.accuracy_loss == pytest.approx(knowledge, abs=1 / 16)
    assert asked.instructed.accuracy_loss == pytest.approx(instruction, abs=1 / 16)
    assert asked.format_accuracy_loss == pytest.approx(instruction - knowledge, abs=2 / 16)
    low, high = asked.format_forgetting_interval
    assert low <= asked.format_forgetting <= high
    if instruction > knowledge:
        assert low > 0
        assert asked.plain.p_value == 1
        assert asked.instructed.p_value < 0.001
    if instruction < knowledge:
        assert high < 0


def test_completions_with_an_instruction_are_split_too(tmp_path, tokenizer):
    """Tuned towards another completion after the instruction, and towards the old one without it."""
    rows = [{"prompt": f"{i}:", "completion": f" {ANSWERS[i % 4]}", "instruction": "Reply:"} for i in range(12)]
    path = write(tmp_path / "c.jsonl", *rows)
    others = [{**row, "completion": f" {ANSWERS[(i + 1) % 4]}"} for i, row in enumerate(rows)]
    right, wrong = load_questions(path, tokenizer), load_questions(write(tmp_path / "w.jsonl", *others), tokenizer)
    base = fit(build_model("llama", seed=0), [*right, *asked_with_instruction(right)])
    tuned = fit(copy.deepcopy(base), [*right, *asked_with_instruction(wrong)])
    found = measure_forgetting(base, tuned, {"c": right}, resamples=199)
    (asked,) = found.choices
    assert np.isnan(asked.chance)
    assert np.isnan(asked.plain.norm_before)
    assert (asked.plain.accuracy_before, asked.instructed.accuracy_before) == (1, 1)
    assert (asked.plain.accuracy_loss, asked.instructed.accuracy_loss) == (0, 1)
    assert asked.format_forgetting_interval[0] > 0
    assert "lost to the format" in str(found)
    # the bare form is the task that load_data makes of the same records
    task = measure_forgetting(base, tuned, {"c": load_data(path, tokenizer)}, resamples=99).tasks[0]
    assert found.tasks[0].forgetting == pytest.approx(task.forgetting, abs=1e-6)
