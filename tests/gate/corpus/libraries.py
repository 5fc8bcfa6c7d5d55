"""Libraries that the corpus is written with, imported so that they leave the environment as it was.

joblib sets KMP_INIT_AT_FORK when it is imported. Ranks that other tests of this process start would inherit it, and
the `precision` detector would tell of it, rightly.
"""

import os

_before = dict(os.environ)

import h5py  # noqa: E402
import joblib  # noqa: E402
import onnx  # noqa: E402

for _name in os.environ.keys() - _before.keys():
    del os.environ[_name]

__all__ = ["h5py", "joblib", "onnx"]
