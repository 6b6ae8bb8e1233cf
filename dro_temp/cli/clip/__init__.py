"""Models of images and texts: `dro-temp clip fit | eval | view`."""

from dro_temp.cli.clip.fit import fit
from dro_temp.cli.clip.run import ClipRun
from dro_temp.cli.clip.use import evaluate, view
from dro_temp.cli.group import Group

_EXAMPLES = {
    "fit": """
examples
  dro-temp clip fit runs/glyphs                           offline: a small model on glyphs and their names, in minutes
  dro-temp clip fit runs/one --scheme infonce             the same with one learned temperature, as CLIP has it
  dro-temp clip fit runs/mine --model ViT-B-32 --data pairs.csv --val held-out.csv --batch 512 --precision bf16
  dro-temp clip fit runs/mine --model ViT-B-32 --data 'cc3m/{00000..00331}.tar' --val cc3m-val.tar --workers 8
  dro-temp clip fit runs/mine --model my-towers.json --data ./photos --scheme isogclr --rho 6
  dro-temp clip fit runs/mine --weights laion2b_s34b_b79k --model ViT-B-32 --data owner/name@train --lr 1e-5
  dro-temp clip fit runs/large --batch 4096 --chunk 256   gradient caching: encoders see 256 pairs at once
  dro-temp clip fit runs/mine                             after an interruption: resumes where it stopped
  dro-temp clip fit runs/mine --epochs 30                 after the end: trains for longer
  dro-temp clip fit --config runs/mine/config.yaml        the same run again
  torchrun --nproc-per-node 8 -m dro_temp.cli clip fit runs/mine     several processes
""",
    "eval": """
examples
  dro-temp clip eval runs/glyphs
  dro-temp clip eval runs/mine --data flickr30k.csv
  dro-temp clip eval runs/mine --zero_shot imagenet/val --templates 'a photo of a {}.|a drawing of a {}.'
""",
    "view": """
examples
  dro-temp clip view runs/glyphs --out page.html
  dro-temp clip view runs/mine --data held-out.csv --limit 500 --near 10
""",
}

CLIP = Group(
    about="models of images and texts",
    detail="Models of images and texts: a temperature for every image and every text.",
    commands={"fit": fit, "eval": evaluate, "view": view},
    examples=_EXAMPLES,
    run=ClipRun,
)
