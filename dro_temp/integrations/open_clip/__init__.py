"""open_clip's training loop: a loss with its signature, and sample numbers that travel through it."""

from dro_temp.integrations.open_clip.contrastive_loss import ModelGroups, OpenClipLoss
from dro_temp.integrations.open_clip.numbered_texts import NumberedStream, NumberedTexts, read_numbers

__all__ = ["ModelGroups", "NumberedStream", "NumberedTexts", "OpenClipLoss", "read_numbers"]
