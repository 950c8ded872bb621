"""Mathematics of comparing dictionaries: arrays in, numbers out; no plotting, no report."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Index = NDArray[np.int64]
Bools = NDArray[np.bool_]
