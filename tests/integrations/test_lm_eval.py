"""lm-eval's own runner on a local multiple-choice task, with and without temperatures."""

import json

import pytest
import torch

import dro_temp as dt

transformers = pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""
WORDS = ["the", "sky", "is", "blue", "grass", "green", "snow", "white", "and", "not"]


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: k for k, word in enumerate(["<end>", "<unknown>", *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", unk_token="<unknown>"
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(vocab_size=len(WORDS) + 2, bos_token_id=0, eos_token_id=0, **sizes)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(40.0)  # logits that a temperature changes
    return model.eval()


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    documents = [
        {"question": f"the {thing} is", "choices": ["blue", "green and white"], "answer": k % 2}
        for k, thing in enumerate(["sky", "grass", "snow"])
    ]
    file = tmp_path / "colours.jsonl"
    file.write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "colours.yaml").write_text(TASK.format(file=file))
    return tmp_path


def _answers(model, predictor, folder):
    from lm_eval.tasks import TaskManager

    from dro_temp.integrations.lm_eval import tempered_lm

    tempered = tempered_lm(model, _tokenizer(), predictor, batch_size=2, device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(tempered, tasks=["colours"], task_manager=manager, bootstrap_iters=0)
    samples = sorted(found["samples"]["colours"], key=lambda sample: sample["doc_id"])
    return found["results"]["colours"], [[response[0] for response in s["filtered_resps"]] for s in samples]


def _log_likelihood(model, text, continuation, tau_of):
    tokenizer = _tokenizer()
    context, rest = (tokenizer(part)["input_ids"] for part in (text, continuation))
    with torch.no_grad():
        logits = model(torch.tensor([context + rest])).logits[0, len(context) - 1 : -1]
    log_p = (logits / tau_of(logits)[:, None]).log_softmax(1)
    return float(sum(row[token] for row, token in zip(log_p, rest, strict=True)))


def test_a_multiple_choice_task_with_and_without_a_tempnet(model, task):
    torch.manual_seed(1)
    tempnet = dt.TempNet.for_logits(len(WORDS) + 2, tau_min=0.2, tau_max=3.0).eval()
    for parameter in tempnet.parameters():
        torch.nn.init.normal_(parameter)
    one = dt.ConstantTemperature(1.0)
    rules = (
        (tempnet, lambda z: tempnet(support=dt.Support(z)).detach()),
        (one, lambda z: torch.ones(len(z))),
    )
    seen = []
    for predictor, tau_of in rules:
        results, answers = _answers(model, predictor, task)
        assert 0.0 <= results["acc,none"] <= 1.0
        for thing, found in zip(("sky", "grass", "snow"), answers, strict=True):
            for choice, value in zip(("blue", "green and white"), found, strict=True):
                expected = _log_likelihood(model, f"the {thing} is", choice, tau_of)
                assert value == pytest.approx(expected, rel=1e-4)
        seen.append(answers)
    assert seen[0] != seen[1]


def test_the_command(model, task, tmp_path, capsys):
    pytest.importorskip("jsonargparse")
    from dro_temp.cli.main import main

    model.save_pretrained(tmp_path / "model")
    _tokenizer().save_pretrained(tmp_path / "model")
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the sky is blue and the grass is green . " * 20)
    fit = ["--model", str(tmp_path / "model"), "--data", str(text), "--block", "8", "--steps", "2"]
    assert main(["lm", "fit", str(run), *fit]) == 0
    wanted = ["--tasks", "[colours]", "--task_folder", str(task)]
    assert main(["lm", "eval", str(run), "--data", str(text), *wanted]) == 0
    tasks = json.loads((run / "eval.json").read_text())["tasks"]
    assert list(tasks) == ["tau = 1", "TempNet"]
    said = capsys.readouterr().out
    for name, numbers in tasks.items():
        assert 0.0 <= numbers["colours"]["acc,none"] <= 1.0
        assert f"colours, {name}: acc " in said
