"""open_clip's training loop: a loss with its signature, and sample numbers that travel through it."""

from dro_temp.integrations.open_clip.groups import ModelGroups
from dro_temp.integrations.open_clip.loss import OpenClipLoss
from dro_temp.integrations.open_clip.numbers import NumberedStream, NumberedTexts, read_numbers

__all__ = ["ModelGroups", "NumberedStream", "NumberedTexts", "OpenClipLoss", "read_numbers"]
