"""open_clip: a loss for its training loop, sample numbers that travel through it, and its own command with our loss.

`python -m dro_temp.integrations.open_clip` is `python -m open_clip_train.main` with further options; `main` is that
command as a function.
"""

from dro_temp.integrations.open_clip.command import main
from dro_temp.integrations.open_clip.loss import ModelGroups, OpenClipLoss
from dro_temp.integrations.open_clip.numbers import NumberedStream, NumberedTexts, read_numbers

__all__ = ["ModelGroups", "NumberedStream", "NumberedTexts", "OpenClipLoss", "main", "read_numbers"]
