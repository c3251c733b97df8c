"""Where a head lies: transforms, the MNI152 template, and the search for the one in the other.

A transform is a matrix (4, 4) that takes millimetres (RAS+) in the fixed space to millimetres in the moving space, as
resampling needs it: `moving_mm = matrix @ fixed_mm`.
"""
