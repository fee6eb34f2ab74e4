"""The modular norm by itself: one row for each weight array, and the maps on weights. It does not depend on the forward pass."""
