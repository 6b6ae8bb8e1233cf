"""How a matrix is handed to C: where it starts, and how far its rows are apart."""

from ctypes import c_int64, c_void_p

from torch import Tensor


def rows_are_dense(x: Tensor) -> bool:
    """Whether the numbers of a row lie side by side, so that one stride describes the matrix."""
    return x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1 or x.numel() == 0)


def matrix(x: Tensor) -> tuple[c_void_p, c_int64]:
    """Address and row stride of a matrix that `rows_are_dense`; C knows no other."""
    if not rows_are_dense(x):
        raise AssertionError(f"C was given a matrix of shape {tuple(x.shape)} with strides {x.stride()}")
    return c_void_p(x.data_ptr()), c_int64(x.stride(0))
