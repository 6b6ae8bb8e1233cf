"""Classifiers of images: `dro-temp vision fit | eval | view`."""

from dro_temp.cli.group import Group
from dro_temp.cli.vision.fit import fit
from dro_temp.cli.vision.run import VisionRun
from dro_temp.cli.vision.use import evaluate, view

_EXAMPLES = {
    "fit": """
examples
  dro-temp vision fit runs/scripts --crop 0.8             offline: a small model on glyphs, in minutes
  dro-temp vision fit runs/mine --model resnet50 --data ./photos --epochs 100 --batch 256 --precision bf16
  dro-temp vision fit runs/mine --model vit_small_patch16_224 --weights pretrained --data ./photos --lr 1e-4
  dro-temp vision fit runs/noisy --data ./photos --scheme cross_entropy --risk optimistic --label_smoothing 0.1
  dro-temp vision fit runs/mine --data images.csv --label_column species --val held-out.csv
  dro-temp vision fit runs/mine                           after an interruption: resumes where it stopped
  dro-temp vision fit runs/mine --epochs 200              after the end: trains for longer
  dro-temp vision fit --config runs/mine/config.yaml      the same run again
  torchrun --nproc-per-node 8 -m dro_temp.cli vision fit runs/mine     several processes
""",
    "eval": """
examples
  dro-temp vision eval runs/scripts
  dro-temp vision eval runs/noisy --data ./test           doubtful.csv lists the labels to check
""",
    "view": """
examples
  dro-temp vision view runs/scripts --out page.html
  dro-temp vision view runs/noisy --doubted 100
""",
}

VISION = Group(
    about="classifiers of images",
    detail="Classifiers of images: robust losses and risks, a temperature for every image, and doubtful labels.",
    commands={"fit": fit, "eval": evaluate, "view": view},
    examples=_EXAMPLES,
    run=VisionRun,
)
