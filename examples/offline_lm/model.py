"""A GPT-2 of about half a million parameters."""

import transformers

LENGTH = 128


def small_gpt2(vocabulary: int, end: int) -> transformers.GPT2LMHeadModel:
    """Two layers, 128 wide, without dropout: a few hundred steps are too few to overfit."""
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers guesses it by the class's name, and here it warns
    return model
