"""Blocks that lie on a mesh: where they lie, which scheme computes them, and how it runs inside ``shard_map``."""
