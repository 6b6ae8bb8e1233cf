"""Language models: `dro-temp lm fit | eval | generate | view`."""

from dro_temp.cli.group import Group
from dro_temp.cli.lm.fit import fit
from dro_temp.cli.lm.run import LmRun
from dro_temp.cli.lm.use import evaluate, generate, view

_EXAMPLES = {
    "fit": """
examples
  dro-temp lm fit runs/first                              offline: a small GPT-2 on Python's own source, in minutes
  dro-temp lm fit runs/smollm2 --model smollm2 --objective likelihood     a real model, from a Python package
  dro-temp lm fit runs/mine --model ./my-llama --data texts.jsonl --steps 5000
  dro-temp lm fit runs/mine --model ./my-llama --data allenai/c4:en --rho 8.5 --inputs '[logits]' --centred true
  dro-temp lm fit runs/joint --frozen false --host_lr 5e-5
  dro-temp lm fit runs/mine                               after an interruption: resumes where it stopped
  dro-temp lm fit runs/mine --steps 9000                  after the end: trains for longer
  dro-temp lm fit --config runs/mine/config.yaml          the same run again
  accelerate launch -m dro_temp.cli lm fit runs/mine      several processes
""",
    "eval": """
examples
  dro-temp lm eval runs/first
  dro-temp lm eval runs/mine --data held-out.txt
  dro-temp lm eval runs/mine --tasks '[lambada_openai, piqa]'
""",
    "generate": """
examples
  dro-temp lm generate runs/first 'def read(path):'
  dro-temp lm generate runs/mine 'Once upon a time' --tokens 200 --temperature 0.9 --seed 1
""",
    "view": """
examples
  dro-temp lm view runs/first --out page.html
  dro-temp lm view runs/mine --text story.txt --out story.html
""",
}

LM = Group(
    about="language models",
    detail="Language models: one temperature per token.",
    commands={"fit": fit, "eval": evaluate, "generate": generate, "view": view},
    examples=_EXAMPLES,
    run=LmRun,
)
