"""Optical flow between two frames by OpenCV's DIS, as bytes; 128 is no motion.

Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (2016). The reference code uses TV-L1, which OpenCV keeps
in its contrib packages only; DIS is in the plain one, and about 20 times faster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ZERO = 128
"""The byte of no motion. A byte b stands for (b - 1) / 254 in [0, 1], so that 0.5 is exactly no motion."""
_SMALLEST = 16


def flow_between(first: NDArray[np.uint8], second: NDArray[np.uint8], bound: float) -> NDArray[np.uint8]:
    """Motion from one RGB frame (H, W, 3) to the next: (2, H, W), to the right and down, in pixels of these frames.

    ±`bound` pixels are the bytes 1 and 255; what moves faster is cut there.
    """
    import cv2

    cv2.setNumThreads(1)  # parallelism comes from Ray
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    height, width = grey[0].shape
    pad = max(0, _SMALLEST - min(height, width))  # DIS refuses images smaller than its patches
    if pad:
        grey = [np.pad(image, ((0, pad), (0, pad)), mode="edge") for image in grey]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    motion = method.calc(grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32))[:height, :width]
    steps = np.rint(np.nan_to_num(motion) * (127 / bound)).clip(-127, 127)
    return np.ascontiguousarray((steps + ZERO).astype(np.uint8).transpose(2, 0, 1))
