"""Stands in for ``torch_npu`` where an engine runs without an NPU.

It only has to be found under this name; what it holds is put there by ``glmquant_standins``.
"""

import glmquant_standins.operators as _operators
import glmquant_standins.placeholders as _placeholders

_placeholders.fill(__name__, _operators)
