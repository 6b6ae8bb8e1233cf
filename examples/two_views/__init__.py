"""The parts of the self-supervised example: options, data, model, training, evaluation, report."""
