"""Log-mean-exp of rows whose scores are products, chunk by chunk, with closed-form gradients.

`autograd` is the node of the graph, `plan` what it computes, `chunked` the pass over chunks, `fused` the same pass on a
GPU (one Triton kernel between the products), and `temperatures` where a chunk asks a predictor. `matrix` is for scores
that are a matrix already, on a GPU.
"""

from dro_temp.kernels.rows.autograd import LogMeanExp, log_mean_exp_rows
from dro_temp.kernels.rows.chunked import GradOutput
from dro_temp.kernels.rows.matrix import log_mean_exp_of_matrix

__all__ = ["GradOutput", "LogMeanExp", "log_mean_exp_of_matrix", "log_mean_exp_rows"]
