"""Axis strings for jaxtyping annotations, and their legend.

B batch · C channels (of an image, or classes where nothing else has channels) · L logits · I, J, K the array's own axes, which for
NIfTI are x, y, z · S structures (classes without background). ``SPATIAL`` stands for one to three spatial axes.

``Float[np.ndarray, CIJK]`` reads: a floating-point NumPy array with axes channels, i, j, k. The tests check these
annotations with beartype; in production they cost nothing.
"""

from __future__ import annotations

IJK = "size_i size_j size_k"
CIJK = "channels size_i size_j size_k"
BCIJK = "batch channels size_i size_j size_k"
BIJK = "batch size_i size_j size_k"
BC_SPATIAL = "batch channels *spatial"
BL_SPATIAL = "batch logits *spatial"
BLIJK = "batch logits size_i size_j size_k"
B_SPATIAL = "batch *spatial"
AFFINE = "4 4"
ANY = "..."
