"""Pixels: read any format, prepare once, store, augment each step, and make phantoms.

Nothing is imported here, so that a module costs only what it needs: training on prepared volumes loads neither TorchIO
nor SimpleITK.
"""
